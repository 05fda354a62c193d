"""Peer links with certificates: members of this cluster's authority link up, and nobody else is listened to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from controlplane.base.clock import SystemClock
from controlplane.base.identity import ADMINS, Identity, member, node, user
from controlplane.base.rand import SeededRand
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import Frame, Hello
from controlplane.transport.frames import PROTOCOL_VERSION, encode
from controlplane.transport.peer import PeerAddress, PeerLinks
from controlplane.transport.tls import Reloader, TlsFiles, client_context
from tests.fakes.pki import TestPki
from tests.unit.raft.test_replica import free_ports
from tests.unit.transport.test_peer import Events, forward


@pytest.fixture
def pki(tmp_path: Path) -> TestPki:
    return TestPki(tmp_path)


@pytest.fixture
def addresses() -> dict[int, PeerAddress]:
    ports = free_ports(2)
    return {n: PeerAddress(n, f"r{n}", f"127.0.0.1:{port}") for n, port in zip((1, 2), ports, strict=True)}


@asynccontextmanager
async def replica(
    n: int, addresses: dict[int, PeerAddress], files: TlsFiles | None
) -> AsyncIterator[tuple[PeerLinks, Events]]:
    """The links of replica ``n``, whose only peer is the other one."""
    events = Events()
    links = PeerLinks(
        cluster_id=9,
        me=addresses[n],
        peers=[addresses[3 - n]],
        events=events,
        clock=SystemClock(),
        rand=SeededRand(n),
        tls=Reloader(files) if files is not None else None,
    )
    await links.start()
    try:
        yield links, events
    finally:
        await links.stop()


def refusals(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_members_link_up_and_messages_pass(pki: TestPki, addresses: dict[int, PeerAddress]) -> None:
    async with (
        replica(1, addresses, pki.files(member("r1"))) as (links, events),
        replica(2, addresses, pki.files(member("r2"))) as (_, theirs),
    ):
        await events.until(lambda: events.up)
        assert links.send(2, forward(3_000_000))
        await theirs.until(lambda: theirs.received)
        assert len(theirs.received[0][1].forward.proposals[0].payload) == 3_000_000


async def test_a_member_that_goes_away_is_dead_at_once(pki: TestPki, addresses: dict[int, PeerAddress]) -> None:
    async with replica(1, addresses, pki.files(member("r1"))) as (_, events):
        async with replica(2, addresses, pki.files(member("r2"))):
            await events.until(lambda: events.up)
        await events.until(lambda: events.died)
        assert events.died == [2]


@pytest.mark.parametrize("who", [node("node-1"), user("admin", (ADMINS,)), member("r3"), None])
async def test_who_is_not_the_member_expected_is_not_heard(
    pki: TestPki, addresses: dict[int, PeerAddress], who: Identity | None
) -> None:
    """It says a correct hello as r2, with whatever certificate it has."""
    async with replica(1, addresses, pki.files(member("r1"))) as (_, events):
        host, port = addresses[1].split()
        context = client_context(pki.files(who)) if who is not None else None
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        hello = Hello(protocol_version=PROTOCOL_VERSION, cluster_id=9, member_id=2, member_name="r2", to_member_id=1)
        writer.write(encode(Frame(hello=hello)) + encode(Frame(raft=forward(1))))
        try:
            answer = await reader.read()
        except OSError:
            answer = b""
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        # A wrong member is told why; others are not answered at all.
        assert (b"your certificate is that of r3" in answer) if who == member("r3") else (answer == b"")
        assert events.received == []


async def test_a_certificate_of_another_authority_is_counted(
    pki: TestPki, addresses: dict[int, PeerAddress], tmp_path: Path
) -> None:
    before = refusals("quarterdeck_tls_handshakes_refused_total", port="peer")
    stranger = pki.foreign(TestPki(tmp_path, "other-ca"), member("r2"))
    async with replica(1, addresses, pki.files(member("r1"))) as (_, events):
        host, port = addresses[1].split()
        reader, writer = await asyncio.open_connection(host, port, ssl=client_context(stranger))
        # Refused: the connection breaks or ends; TLS 1.3 tells the client only when it reads.
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
        writer.close()
        assert events.received == []
    assert refusals("quarterdeck_tls_handshakes_refused_total", port="peer") == before + 1


async def test_a_dialled_peer_must_have_the_certificate_of_the_member_wanted(
    pki: TestPki, addresses: dict[int, PeerAddress]
) -> None:
    before = refusals("quarterdeck_peer_connections_refused_total", reason="certificate")
    async with (
        replica(1, addresses, pki.files(member("r1"))) as (_, events),
        replica(2, addresses, pki.files(node("node-1"))) as (_, theirs),
    ):
        while refusals("quarterdeck_peer_connections_refused_total", reason="certificate") < before + 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert events.up == theirs.up == []
        assert events.died == []


async def test_a_guest_that_took_anothers_id_is_parted_from_when_the_name_of_that_id_is_known(
    pki: TestPki, addresses: dict[int, PeerAddress]
) -> None:
    async with replica(1, addresses, pki.files(member("r1"))) as (links, events):
        host, port = addresses[1].split()
        reader, writer = await asyncio.open_connection(host, port, ssl=client_context(pki.files(member("r3"))))
        hello = Hello(
            protocol_version=PROTOCOL_VERSION, cluster_id=9, member_id=99, member_name="r3", to_member_id=1,
            peer_address="127.0.0.1:9",
        )  # fmt: skip
        writer.write(encode(Frame(hello=hello)) + encode(Frame(raft=forward(1))))
        await events.until(lambda: events.received)
        links.set_peers([addresses[2], PeerAddress(99, "r9", "127.0.0.1:9")], {})
        async with asyncio.timeout(5):
            await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
