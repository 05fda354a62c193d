"""``hasleader``: a stream of any service that asked for a leader ends when there was none for too long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.etcd.guard import LeaderGuard
from controlplane.etcd.service import add_services
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.etcd import v3election_pb2 as ve
from controlplane.transport.handlers import HandlerTable
from tests.unit.etcd.fakes import FakeContext, Replica, put, settle


async def _renewals() -> AsyncIterator[e.LeaseKeepAliveRequest]:
    yield e.LeaseKeepAliveRequest(ID=7)
    await asyncio.Event().wait()


async def _watches() -> AsyncIterator[e.WatchRequest]:
    yield e.WatchRequest(create_request=e.WatchCreateRequest(key=b"k"))
    await asyncio.Event().wait()


#: Every stream there is that does not end by itself, and what begins it.
STREAMS: dict[str, Callable[[], Any]] = {
    "/etcdserverpb.Watch/Watch": _watches,
    "/etcdserverpb.Lease/LeaseKeepAlive": _renewals,
    "/v3electionpb.Election/Observe": lambda: ve.LeaderRequest(name=b"e"),
}


@dataclass
class Desk:
    """Every etcd service of one replica, and one client of it."""

    replica: Replica
    table: HandlerTable

    async def call(self, method: str, request: Any, metadata: dict[str, str]) -> list[Any]:
        """Take the whole stream; what the client was sent."""
        handler: Any = await self.table.find(method, ())
        assert handler is not None
        context = FakeContext(metadata)
        answers = (handler.stream_stream or handler.unary_stream or handler.unary_unary)(request, context)
        if hasattr(answers, "__aiter__"):
            return [answer async for answer in answers]
        await answers
        return [context.written.get_nowait() for _ in range(context.written.qsize())]

    async def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            await settle()
            self.replica.clock.advance(1)
        await settle()


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    replica, table = Replica(), HandlerTable()
    replica.kv.start()
    await replica.kv.lease_grant(e.LeaseGrantRequest(ID=7, TTL=600))
    await put(replica.kv, b"e/7", b"candidate", lease=7)
    add_services(table, replica.kv, replica.raft, replica.store, clock=replica.clock, rand=replica.rand)
    try:
        yield Desk(replica, table)
    finally:
        await replica.kv.stop()


async def _ended(*streams: asyncio.Future[list[Any]]) -> None:
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)


@pytest.mark.parametrize("method", STREAMS)
async def test_a_stream_that_asked_for_a_leader_is_cut_when_it_is_lost(method: str, desk: Desk) -> None:
    demanding = asyncio.ensure_future(desk.call(method, STREAMS[method](), {"hasleader": "true"}))
    patient = asyncio.ensure_future(desk.call(method, STREAMS[method](), {}))
    await settle()
    desk.replica.raft.set_leader(None)
    await desk.time_passes(2)
    assert not demanding.done(), "two election timeouts are an election, not a loss"
    await desk.time_passes(2)
    with pytest.raises(StatusError, match="etcdserver: no leader") as cut:
        await demanding
    assert cut.value.code is Code.UNAVAILABLE
    assert not patient.done()
    await _ended(patient)
    assert len(desk.replica.store.watches) == 0


@pytest.mark.parametrize("method", STREAMS)
async def test_a_short_election_cuts_none(method: str, desk: Desk) -> None:
    demanding = asyncio.ensure_future(desk.call(method, STREAMS[method](), {"hasleader": "true"}))
    await settle()
    for leader in (None, "r1", None, "r1", None, "r1"):
        desk.replica.raft.set_leader(leader)
        await desk.time_passes(2)
    assert not demanding.done()
    await _ended(demanding)


@pytest.mark.parametrize("method", [*STREAMS, "/etcdserverpb.Maintenance/Snapshot", "/etcdserverpb.Maintenance/Status"])
async def test_a_call_that_asks_for_a_leader_is_refused_at_once_where_there_is_none(method: str, desk: Desk) -> None:
    desk.replica.raft.set_leader(None)
    request = STREAMS.get(method, e.SnapshotRequest)()
    if method.endswith("Status"):
        request = e.StatusRequest()
    with pytest.raises(StatusError, match="etcdserver: no leader"):
        await desk.call(method, request, {"hasleader": "true"})


async def test_a_backup_that_asked_for_a_leader_comes_whole(desk: Desk) -> None:
    method = "/etcdserverpb.Maintenance/Snapshot"
    asked = await desk.call(method, e.SnapshotRequest(), {"hasleader": "true"})
    plain = await desk.call(method, e.SnapshotRequest(), {})
    assert len(asked) == len(plain) > 1
    assert asked[-1].remaining_bytes == 0


async def test_a_backup_is_cut_between_two_of_its_pieces(desk: Desk) -> None:
    closed = []

    async def pieces() -> AsyncGenerator[int, None]:
        try:
            for piece in range(10):
                yield piece
                await desk.replica.clock.sleep(1)
        finally:
            closed.append(True)

    guard = LeaderGuard(desk.replica.raft, desk.replica.clock, election_timeout_ms=1_000)
    context: Any = FakeContext({"hasleader": "true"})
    taken: list[int] = []

    async def take() -> None:
        async for piece in guard.served(context, pieces()):
            taken.append(piece)  # noqa: PERF401 - it is cut, and what came before is looked at

    desk.replica.raft.set_leader(None)
    taking = asyncio.ensure_future(take())
    await desk.time_passes(5)
    with pytest.raises(StatusError, match="etcdserver: no leader"):
        await taking
    assert 2 <= len(taken) <= 4
    assert closed


async def test_what_a_stream_fails_with_is_what_its_client_hears(desk: Desk) -> None:
    guard = LeaderGuard(desk.replica.raft, desk.replica.clock, election_timeout_ms=1_000)

    async def failing() -> None:
        raise StatusError(Code.NOT_FOUND, "gone")

    context: Any = FakeContext({"hasleader": "true"})
    with pytest.raises(StatusError, match="gone"):
        await guard.serve(context, failing())
