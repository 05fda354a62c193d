"""A port that speaks HTTP/2, and HTTP/1 to whoever only reads: who gets what, and what it costs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import uvloop

from controlplane.base.clock import SystemClock
from controlplane.base.http import ObservabilityServer
from controlplane.base.identity import member
from controlplane.transport.h2 import frames
from controlplane.transport.h2.server import H2Server
from controlplane.transport.server import ServerOptions, listen
from controlplane.transport.tls import Reloader, client_context
from tests.fakes.pki import TestPki
from tests.unit.transport.h2.support import Client, Services, call


class Port:
    """One server, and what it serves by HTTP/1."""

    def __init__(self, options: ServerOptions, tls: Reloader | None = None) -> None:
        self.http = ObservabilityServer("127.0.0.1:0", {"fine": lambda: None})
        self.server = H2Server(options, SystemClock(), http1=self.http.connection)
        self.server.add_generic_rpc_handlers((Services().handler(),))
        self.port = listen(self.server, "127.0.0.1:0", tls)

    def url(self, path: str, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"


@asynccontextmanager
async def running(options: ServerOptions | None = None, tls: Reloader | None = None) -> AsyncIterator[Port]:
    port = Port(options or ServerOptions(), tls)
    await port.http.start()
    await port.server.start()
    try:
        yield port
    finally:
        await port.server.stop(None)
        await port.http.stop()


async def read_and_call(port: Port) -> None:
    async with aiohttp.ClientSession() as session:
        for path, expected in (
            ("/metrics", "# HELP"),
            ("/version", "gitVersion"),
            ("/health", "true"),
            ("/readyz", "ok"),
        ):
            async with session.get(port.url(path)) as answer:
                assert answer.status == 200
                assert expected in await answer.text()
        client = Client(*await asyncio.open_connection("127.0.0.1", port.port))
        client.hello()
        client.send(call(1, b"hello"))
        assert await client.echoed(1) == b"hello"
        client.writer.close()
        await client.writer.wait_closed()


async def test_one_port_answers_calls_and_readers() -> None:
    async with running() as port:
        await read_and_call(port)


def test_it_works_on_uvloop() -> None:
    async def both() -> None:
        async with running() as port:
            await read_and_call(port)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(both())


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "TRACE", "CONNECT"])
async def test_who_does_more_than_read_is_sent_away(method: str) -> None:
    async with running() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
        writer.write(f"{method} /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode())
        assert b"HTTP/1" not in await reader.read()
        writer.close()
        await writer.wait_closed()


async def test_a_reader_finds_no_other_paths() -> None:
    async with (
        running() as port,
        aiohttp.ClientSession() as session,
        session.get(port.url("/v3/kv/range")) as answer,
    ):
        assert answer.status == 404


async def test_readers_and_the_silent_are_bounded_in_number_and_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.transport.h2.opening._LIFE_S", 0.0)
    async with running(ServerOptions(connections_max=2)) as port:
        silent = [await asyncio.open_connection("127.0.0.1", port.port) for _ in range(2)]
        while len(port.server.openings) < 2:  # noqa: ASYNC110 - the server's progress
            await asyncio.sleep(0)
        refused, writer = await asyncio.open_connection("127.0.0.1", port.port)
        assert await _closed(refused)
        writer.close()
        reader, talking = silent[0]
        talking.write(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        now_s = port.server.clock.monotonic()
        for opening in list(port.server.openings):
            opening.check(now_s + 20.0, handshake_s=10.0, idle_s=1.0, answer_s=1.0)
        for each, writer in silent:
            assert await _closed(each)
            writer.close()
        while port.server.openings:  # noqa: ASYNC110 - the server's progress
            await asyncio.sleep(0)


async def _closed(reader: asyncio.StreamReader) -> bool:
    """Whether the other side ends the connection."""
    try:
        async with asyncio.timeout(10):
            await reader.read()
    except ConnectionError:
        pass
    return True


@pytest.fixture
def tls(tmp_path: Path) -> tuple[Reloader, ssl.SSLContext]:
    pki = TestPki(tmp_path)
    return Reloader(pki.files(member("r1"))), client_context(pki.admin())


async def test_with_tls_a_reader_shows_a_certificate_too(tls: tuple[Reloader, ssl.SSLContext]) -> None:
    reloader, context = tls
    async with running(tls=reloader) as port:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
            session.get(port.url("/metrics", "https")) as answer,
        ):
            assert answer.status == 200
        context.set_alpn_protocols(["h2"])
        client = Client(*await asyncio.open_connection("127.0.0.1", port.port, ssl=context))
        client.hello()
        client.send(call(1, b"hello"))
        assert await client.echoed(1) == b"hello"
        client.writer.close()
        await client.writer.wait_closed()


async def test_http2_over_tls_wants_alpn(tls: tuple[Reloader, ssl.SSLContext]) -> None:
    reloader, context = tls
    async with running(tls=reloader) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port, ssl=context)
        writer.write(frames.PREFACE + frames.settings({}))
        assert await _closed(reader)
        writer.close()
        assert not port.server.openings
