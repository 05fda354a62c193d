"""Peer links over real loopback sockets: who gets in, what arrives, what a broken link does."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable

import pytest

from controlplane.base.clock import Clock, SystemClock
from controlplane.base.errors import Code, ConfigError, StatusError
from controlplane.base.rand import SeededRand
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import Forward, Frame, HelloAck, Ping, RaftMessage
from controlplane.transport.frames import HEADER_BYTES, decode, encode, frame_length
from controlplane.transport.peer import PeerAddress, PeerLinks
from tests.unit.raft.test_replica import free_ports
from tests.unit.transport.hellos import hello


class Events:
    """Remembers what it hears; ``changed`` is set each time."""

    def __init__(self) -> None:
        self.received: list[tuple[int, RaftMessage]] = []
        self.up: list[int] = []
        self.down: list[int] = []
        self.died: list[int] = []
        self.changed = asyncio.Event()

    def receive(self, peer_id: int, message: RaftMessage, size_bytes: int) -> None:
        self.received.append((peer_id, message))
        self.changed.set()

    def link_up(self, peer_id: int) -> None:
        self.up.append(peer_id)
        self.changed.set()

    def link_down(self, peer_id: int) -> None:
        self.down.append(peer_id)
        self.changed.set()

    def peer_died(self, peer_id: int) -> None:
        self.died.append(peer_id)
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Pair:
    """Two replicas' links, 1 and 2, of cluster 9."""

    def __init__(self) -> None:
        ports = free_ports(2)
        self.addresses = {
            n: PeerAddress(n, f"r{n}", f"127.0.0.1:{port}") for n, port in zip((1, 2), ports, strict=True)
        }
        self.events = {1: Events(), 2: Events()}
        self.links: dict[int, PeerLinks] = {}

    async def start(self, n: int, cluster_id: int = 9, clock: Clock | None = None) -> PeerLinks:
        links = PeerLinks(
            cluster_id=cluster_id,
            me=self.addresses[n],
            peers=[self.addresses[3 - n]],
            events=self.events[n],
            clock=clock or SystemClock(),
            rand=SeededRand(n),
        )
        await links.start()
        self.links[n] = links
        return links

    async def stop(self, n: int) -> None:
        await self.links.pop(n).stop()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    yield made
    for n in list(made.links):
        await made.stop(n)


async def both(pair: Pair) -> None:
    await pair.start(1)
    await pair.start(2)
    await pair.events[1].until(lambda: pair.events[1].up)
    await pair.events[2].until(lambda: pair.events[2].up)


def forward(size: int, term: int = 1) -> RaftMessage:
    message = RaftMessage(term=term, forward=Forward())
    message.forward.proposals.add(request_id=b"id", payload=b"x" * size)
    return message


async def test_messages_arrive_in_order_whatever_their_size(pair: Pair) -> None:
    await both(pair)
    sizes = [1, 3_000_000, 0, 70_000, 5]
    for term, size in enumerate(sizes):
        assert pair.links[1].send(2, forward(size, term))
    events = pair.events[2]
    await events.until(lambda: len(events.received) == len(sizes))
    assert [(p, m.term, len(m.forward.proposals[0].payload)) for p, m in events.received] == [
        (1, term, size) for term, size in enumerate(sizes)
    ]


async def test_a_peer_that_goes_away_is_down_and_dead_and_comes_back(pair: Pair) -> None:
    await both(pair)
    await pair.stop(2)
    events = pair.events[1]
    await events.until(lambda: events.died)
    assert (events.down, events.died) == ([2], [2])
    assert not pair.links[1].send(2, forward(1))
    await pair.start(2)
    await events.until(lambda: len(events.up) == 2)
    assert events.died == [2]


async def test_a_member_that_one_has_not_heard_of_is_answered_for_as_long_as_it_is_there(pair: Pair) -> None:
    """It may have been made a member, and lead, while this replica was away: who else would tell it?"""
    ours = await pair.start(1)
    events, (port,) = Events(), free_ports(1)
    newcomer = PeerLinks(
        cluster_id=9,
        me=PeerAddress(99, "r9", f"127.0.0.1:{port}"),
        peers=[pair.addresses[1]],
        events=events,
        clock=SystemClock(),
        rand=SeededRand(99),
    )
    await newcomer.start()
    try:
        await pair.events[1].until(lambda: 99 in pair.events[1].up)
        await events.until(lambda: events.up)
        assert newcomer.send(1, forward(1))
        await pair.events[1].until(lambda: pair.events[1].received)
        assert ours.send(99, forward(2))
        await events.until(lambda: events.received)
        assert [peer for peer, _ in (*pair.events[1].received, *events.received)] == [99, 1]
        ours.set_peers([pair.addresses[2], PeerAddress(99, "r9", f"127.0.0.1:{port}")], {})
        assert ours.send(99, forward(2)), "it is a member now: the link stays as it was"
        assert pair.events[1].down == []
        ours.set_peers([pair.addresses[2]], {99: 50})
        await pair.events[1].until(lambda: pair.events[1].down)
        assert not ours.send(99, forward(2))
    finally:
        await newcomer.stop()


class _CountedSleep(SystemClock):
    """Nobody's wait lasts; how long each would have been is remembered."""

    def __init__(self, events: Events) -> None:
        super().__init__()
        self._events = events
        self.waits_s: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        self._events.changed.set()
        await asyncio.sleep(0 if seconds < 2 else seconds)


async def test_a_guest_that_leaves_is_looked_for_no_more(pair: Pair) -> None:
    clock, (port,) = _CountedSleep(pair.events[1]), free_ports(1)
    ours = await pair.start(1, clock=clock)
    ours.set_peers([], {})  # so that whoever waits for less than a handshake's time looks for the guest
    theirs = {
        "me": PeerAddress(99, "r9", f"127.0.0.1:{port}"),
        "peers": [pair.addresses[1]],
        "clock": SystemClock(),
        "rand": SeededRand(99),
    }
    for visit in (1, 2):
        newcomer = PeerLinks(cluster_id=9, events=Events(), **theirs)  # type: ignore[arg-type]
        await newcomer.start()
        await pair.events[1].until(lambda visit=visit: pair.events[1].up.count(99) == visit)  # type: ignore[misc]
        await newcomer.stop()
        await pair.events[1].until(lambda visit=visit: pair.events[1].down.count(99) == visit)  # type: ignore[misc]
        assert not ours.send(99, forward(1))
        await _turns(100)  # the end of its own connection may be heard a little later
        waits = len(clock.waits_s)
        await _turns(500)
        assert len(clock.waits_s) == waits


async def _turns(count: int) -> None:
    """Of the loop: in each, whoever dials in vain comes a step further."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_guest_whose_address_no_resolver_takes_is_tried_again_like_any_other(pair: Pair) -> None:
    clock = _CountedSleep(pair.events[1])
    links = await pair.start(1, clock=clock)
    links.set_peers([], {})  # so that whoever waits for less than a handshake's time looks for the guest
    clock.waits_s.clear()
    _, port = pair.addresses[1].split()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(encode(hello(member_id=99, member_name="r9", peer_address="a..b:80")))
    await pair.events[1].until(lambda: len([wait_s for wait_s in clock.waits_s if wait_s < 2]) >= 2)
    writer.close()
    await writer.wait_closed()


class _EndlessSleep(SystemClock):
    """``sleeping`` is set when somebody begins to wait, and nobody's wait ends."""

    def __init__(self) -> None:
        super().__init__()
        self.sleeping = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.sleeping.set()
        await asyncio.Event().wait()


async def test_a_peer_that_calls_is_dialled_at_once_however_long_it_was_away(pair: Pair) -> None:
    patient = _EndlessSleep()
    await pair.start(1, clock=patient)
    async with asyncio.timeout(5):
        await patient.sleeping.wait()  # its dial was refused
    await pair.start(2)
    await pair.events[1].until(lambda: pair.events[1].up)


async def test_a_peer_that_was_never_there_is_not_dead(pair: Pair) -> None:
    await pair.start(1)
    await asyncio.sleep(0.15)
    assert pair.events[1].died == []


async def test_members_of_another_cluster_never_meet(pair: Pair) -> None:
    await pair.start(1, cluster_id=9)
    await pair.start(2, cluster_id=10)
    await asyncio.sleep(0.2)
    assert pair.events[1].up == []
    assert pair.events[2].up == []


async def raw(pair: Pair, *data: bytes) -> bytes:
    """Speak raw bytes to replica 1; what it says until it closes."""
    host, port = pair.addresses[1].split()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        for part in data:
            writer.write(part)
        async with asyncio.timeout(4):
            return await reader.read()
    finally:
        writer.close()


async def test_a_wrong_hello_is_refused_with_the_reason_and_the_connection_closed(pair: Pair) -> None:
    await pair.start(1)
    answer = await raw(pair, encode(hello(cluster_id=8)))
    ack: HelloAck = decode(answer[HEADER_BYTES : HEADER_BYTES + frame_length(answer[:HEADER_BYTES])]).hello_ack
    assert "cluster 8" in ack.refused
    assert len(answer) == HEADER_BYTES + frame_length(answer[:HEADER_BYTES])


@pytest.mark.parametrize(
    "data",
    [
        (1 << 31).to_bytes(4, "big") + b"x" * 100,
        (5_000).to_bytes(4, "big") + b"x" * 5_000,
        len(pickle.dumps("x" * 50)).to_bytes(4, "big") + pickle.dumps("x" * 50),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["2 GiB", "large before hello", "pickle", "http"],
)
async def test_bytes_that_are_no_hello_close_the_connection(pair: Pair, data: bytes) -> None:
    await pair.start(1)
    assert await raw(pair, data) == b""
    assert pair.events[1].received == []


async def test_nothing_is_heard_from_someone_who_did_not_say_hello(pair: Pair) -> None:
    await pair.start(1)
    answer = await raw(pair, encode(Frame(raft=forward(1))))
    assert decode(answer[HEADER_BYTES:]).hello_ack.refused == "say hello first"
    assert pair.events[1].received == []


async def test_a_newer_connection_of_a_peer_replaces_the_older(pair: Pair) -> None:
    await pair.start(1)
    host, port = pair.addresses[1].split()
    old_reader, old_writer = await asyncio.open_connection(host, port)
    old_writer.write(encode(hello(epoch=b"old")))
    await old_reader.readexactly(HEADER_BYTES)
    new_reader, new_writer = await asyncio.open_connection(host, port)
    new_writer.write(encode(hello(epoch=b"new")) + encode(Frame(ping=Ping(seq=3))))
    await new_reader.readexactly(HEADER_BYTES)
    new_writer.write(encode(Frame(raft=forward(1, term=8))))
    events = pair.events[1]
    await events.until(lambda: events.received)
    async with asyncio.timeout(4):
        with _allow_reset():
            await old_reader.read()
    assert [m.term for _, m in events.received] == [8]
    old_writer.close()
    new_writer.close()


class _allow_reset:  # noqa: N801 - reads as a statement
    """The old connection may end in a reset or in an end of file: both are an end."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, ConnectionError)


async def test_a_call_is_answered(pair: Pair) -> None:
    await both(pair)

    async def echo(peer: str, payload: bytes) -> bytes:
        return peer.encode() + b":" + payload

    pair.links[2].serve("echo", echo)
    assert await pair.links[1].call(2, "echo", b"hi", timeout_ms=2_000) == b"r1:hi"


async def test_a_call_fails_when_the_link_breaks_under_it(pair: Pair) -> None:
    await both(pair)
    started = asyncio.Event()

    async def never(peer: str, payload: bytes) -> bytes:
        started.set()
        await asyncio.Event().wait()
        return b""

    pair.links[2].serve("never", never)
    call = asyncio.create_task(pair.links[1].call(2, "never", b"", timeout_ms=60_000))
    await started.wait()
    await pair.stop(2)
    with pytest.raises(StatusError, match="broke") as broken:
        await call
    assert broken.value.code == Code.UNAVAILABLE


async def test_a_call_without_a_link_is_unavailable(pair: Pair) -> None:
    await pair.start(1)
    with pytest.raises(StatusError, match="no link to r2"):
        await pair.links[1].call(2, "echo", b"", timeout_ms=100)


async def test_an_address_in_use_says_so(pair: Pair) -> None:
    await pair.start(1)
    with pytest.raises(ConfigError, match="cannot be bound"):
        await pair.start(1)
