"""Handshakes over real sockets on loopback: who gets in, and what a renewal changes."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from controlplane.base.clock import ManualClock, SystemClock
from controlplane.base.errors import ConfigError
from controlplane.base.identity import Identity, member, node, user
from controlplane.base.pki import read_certificate
from controlplane.transport.callers import caller_of
from controlplane.transport.channel import new_channel
from controlplane.transport.server import listen, new_server
from controlplane.transport.tls import Reloader, TlsFiles, auth_context_of, client_context, server_context
from tests.fakes.pki import TestPki

AHOY = b"ahoy there"  # longer than a TLS record's header, or a server would wait for the rest


@pytest.fixture
def pki(tmp_path: Path) -> TestPki:
    return TestPki(tmp_path)


class _Seen:
    """A server's side of the connections it took."""

    def __init__(self) -> None:
        self.callers: list[Identity | None] = []
        self.received: list[bytes] = []


class _SslContext:
    """A gRPC context as the front and the gateway make it."""

    def __init__(self, ssl_object: ssl.SSLObject) -> None:
        self._auth = auth_context_of(ssl_object)

    def auth_context(self) -> object:
        return self._auth


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[tuple[int, _Seen]]:
    """An echo of one read per connection."""
    seen = _Seen()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.callers.append(caller_of(_SslContext(writer.get_extra_info("ssl_object"))))
        data = await reader.read(100)
        seen.received.append(data)
        writer.write(data)
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()
        await server.wait_closed()


async def ask(port: int, context: ssl.SSLContext | None, host: str = "127.0.0.1") -> int:
    """Say something and hear it again; the serial number of the server's certificate."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=host if context else None
    )
    try:
        writer.write(AHOY)
        # TLS 1.3: a client hears that its certificate was refused when it reads.
        answer = await reader.read(100)
        if answer != AHOY:
            raise ConnectionResetError("closed")
        ssl_object = writer.get_extra_info("ssl_object")
        return read_certificate(ssl_object.getpeercert(binary_form=True)).serial
    finally:
        writer.close()


async def refused(port: int, context: ssl.SSLContext | None) -> None:
    with pytest.raises((OSError, ssl.SSLError)):
        await ask(port, context)


@pytest.mark.parametrize("who", [member("r1"), node("node-1"), user("alice", ("dev", "ops"))])
async def test_both_sides_know_who_the_other_is(pki: TestPki, who: Identity) -> None:
    async with serving(server_context(pki.files(member("r9")))) as (port, seen):
        await ask(port, client_context(pki.files(who)))
    assert seen.callers == [who]


async def test_without_a_good_certificate_nothing_is_read(pki: TestPki, tmp_path: Path) -> None:
    other = TestPki(tmp_path, "other-ca")
    no_certificate = ssl.create_default_context(cafile=pki.ca)
    async with serving(server_context(pki.files(member("r1")))) as (port, seen):
        await refused(port, None)
        await refused(port, no_certificate)
        await refused(port, client_context(pki.foreign(other, user("alice"))))
        await refused(port, client_context(pki.files(user("bob"), days_ago=31)))
        assert seen.received == []
        await ask(port, client_context(pki.admin()))
    assert seen.received == [AHOY]


async def test_a_server_of_another_authority_name_or_kind_is_not_spoken_to(pki: TestPki, tmp_path: Path) -> None:
    other = TestPki(tmp_path, "other-ca")
    async with serving(server_context(replace(other.files(member("r1")), ca=pki.ca))) as (port, _):
        await refused(port, client_context(pki.admin()))
    async with serving(server_context(pki.files(member("r1")))) as (port, _):
        with pytest.raises(ssl.SSLCertVerificationError, match="elsewhere"):
            await ask(port, client_context(pki.admin()), "elsewhere.example")
    async with serving(server_context(pki.admin())) as (port, _):  # a user's certificate serves nothing
        await refused(port, client_context(pki.admin()))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_old_versions_of_tls_are_refused(pki: TestPki, version: ssl.TLSVersion) -> None:
    context = client_context(pki.admin())
    with pytest.warns(DeprecationWarning, match="deprecated"):
        context.minimum_version = version
    with pytest.warns(DeprecationWarning, match="deprecated"):
        context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")  # or OpenSSL would not even ask
    async with serving(server_context(pki.files(member("r1")))) as (port, seen):
        await refused(port, context)
        assert seen.callers == []


async def test_a_renewed_certificate_is_shown_from_the_next_handshake_on(pki: TestPki) -> None:
    live = Reloader(pki.files(member("r1")))
    admin = client_context(pki.admin())
    async with serving(live.server("h2")) as (port, _):
        first = await ask(port, admin)
        assert not live.check()
        pki.files(member("r1"))
        assert live.check()
        second = await ask(port, admin)
    assert second == live.certificate.serial != first


async def test_a_new_authority_replaces_the_old_one_on_a_listening_port(pki: TestPki, tmp_path: Path) -> None:
    live = Reloader(pki.files(member("r1")))
    old_admin = client_context(pki.admin())
    async with serving(live.server()) as (port, _):
        await ask(port, old_admin)
        new = TestPki(tmp_path)  # the same file names
        new.files(member("r1"))
        assert live.check()
        await refused(port, old_admin)
        await ask(port, client_context(new.admin()))


async def test_files_that_do_not_fit_leave_the_old_ones_in_use(pki: TestPki, caplog: pytest.LogCaptureFixture) -> None:
    files = pki.files(member("r1"))
    live = Reloader(files)
    admin = client_context(pki.admin())
    async with serving(live.server()) as (port, _):
        before = await ask(port, admin)
        renewed = pki.issue(member("r1"))
        files.key.write_bytes(renewed.key)  # and its certificate not yet
        with caplog.at_level(logging.ERROR):
            assert not live.check()
            assert not live.check()
        assert caplog.text.count("certificate_refused") == 1
        assert await ask(port, admin) == before
        files.cert.write_bytes(renewed.certificate)
        assert live.check()
        assert await ask(port, admin) == read_certificate(renewed.certificate).serial


async def test_the_watcher_looks_every_few_seconds(pki: TestPki) -> None:
    clock = ManualClock(wall_ms=SystemClock().wall_ms())
    live = Reloader(pki.files(member("r1")), clock=clock)
    watching = asyncio.ensure_future(live.run())
    await asyncio.sleep(0)
    pki.files(member("r1"))
    before = live.certificate.serial
    clock.advance(5)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert live.certificate.serial != before
    watching.cancel()


def test_files_that_cannot_be_used_are_named(pki: TestPki, tmp_path: Path) -> None:
    good = pki.files(member("r1"))
    with pytest.raises(ConfigError, match=r"missing\.crt"):
        Reloader(replace(good, cert=tmp_path / "missing.crt"))
    with pytest.raises(ConfigError, match=r"r1\.crt"):
        Reloader(replace(good, key=pki.admin().key))
    with pytest.raises(ConfigError, match="expired"):
        Reloader(pki.files(member("r2"), days_ago=40, days=30))


class _WhoAmI(health_pb2_grpc.HealthServicer):
    """Tells the caller's identity in the log of this test."""

    def __init__(self) -> None:
        self.callers: list[Identity | None] = []

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> health_pb2.HealthCheckResponse:
        self.callers.append(caller_of(context))
        return health_pb2.HealthCheckResponse()


async def check(port: int, files: TlsFiles | None) -> None:
    credentials = Reloader(files).channel_credentials() if files else None
    async with new_channel(f"127.0.0.1:{port}", credentials=credentials) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)


async def test_grpc_with_credentials_of_both_sides(pki: TestPki, tmp_path: Path) -> None:
    live = Reloader(pki.files(member("r1")))
    who = _WhoAmI()
    server = new_server()
    health_pb2_grpc.add_HealthServicer_to_server(who, server)
    port = listen(server, "127.0.0.1:0", live)
    await server.start()
    try:
        await check(port, pki.files(node("node-1")))
        await check(port, pki.files(user("alice", ("dev",))))
        for bad in (None, pki.foreign(TestPki(tmp_path, "other-ca"), user("alice"))):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await check(port, bad)
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        new = TestPki(tmp_path)  # a new authority under the same file names
        new.files(member("r1"))
        assert live.check()
        await check(port, new.admin())
    finally:
        await server.stop(None)
    assert [str(caller) for caller in who.callers] == ["node node-1", "user alice", "user admin"]


async def test_a_clients_credentials_follow_its_files(pki: TestPki) -> None:
    live = Reloader(pki.files(user("alice")))
    first, context = live.channel_credentials(), live.client
    assert live.channel_credentials() is first
    assert live.client is context
    pki.files(user("alice"))
    assert live.channel_credentials() is not first
    assert live.client is not context
