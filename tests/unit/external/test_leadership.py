"""Leadership by lease: one at a time, terms that grow, given up before the store may give it to somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from controlplane.base.clock import ManualClock
from controlplane.base.errors import Code, StatusError
from controlplane.client.fenced import LEADER_KEY
from controlplane.external.election import Election
from controlplane.external.peers import Peers
from controlplane.external.roster import REPLICAS_PREFIX, Roster
from controlplane.external.seat import Seat
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1 import peers_pb2
from tests.unit.etcd.fakes import Replica

LEASES = (11, 22)


async def settle() -> None:
    for _ in range(60):
        await asyncio.sleep(0)


class Process:
    """One control-plane process on a shared store: its roster, its election, and what it was told."""

    def __init__(self, replica: Replica, name: str, lease: int) -> None:
        self.roster = Roster(replica.kv, replica.clock)
        self.election = Election(replica.kv, self.roster, name=name, clock=replica.clock)
        self.heard: list[tuple[int, bool]] = []
        self.election.on_leadership(lambda term, leading: self.heard.append((term, leading)))
        self.lease = lease
        self.tasks: list[asyncio.Task[Any]] = []

    def start(self) -> None:
        self.tasks = [
            asyncio.create_task(self.roster.run()),
            asyncio.create_task(self.election.stand(self.lease)),
        ]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@asynccontextmanager
async def two(replica: Replica) -> AsyncIterator[tuple[Process, Process]]:
    for lease in LEASES:
        await replica.kv.lease_grant(e.LeaseGrantRequest(ID=lease, TTL=5))
    processes = Process(replica, "a", LEASES[0]), Process(replica, "b", LEASES[1])
    try:
        processes[0].start()
        await settle()
        processes[1].start()
        await settle()
        yield processes
    finally:
        for process in processes:
            await process.stop()


async def test_the_first_leads_and_the_next_when_its_lease_is_gone() -> None:
    replica = Replica()
    async with two(replica) as (a, b):
        assert (a.heard, b.heard) == ([(1, True)], [])
        assert b.roster.leader is not None
        assert (b.roster.leader.name, b.roster.leader.term) == ("a", 1)
        await replica.kv.lease_revoke(e.LeaseRevokeRequest(ID=LEASES[0]))
        await settle()
        replica.clock.advance(1)
        await settle()
        assert a.heard == [(1, True), (1, False)]
        assert b.heard == [(2, True)]
        assert a.election.held is None
        assert b.election.held is not None
        assert a.roster.term == 2


async def test_the_fence_is_the_leader_keys_revision_and_an_old_one_fits_no_more() -> None:
    replica = Replica()
    async with two(replica) as (a, b):
        assert a.election.held is not None
        old = a.election.held.mod_revision
        await replica.kv.lease_revoke(e.LeaseRevokeRequest(ID=LEASES[0]))
        await settle()
        replica.clock.advance(1)
        await settle()
        stored = (await replica.kv.range(e.RangeRequest(key=LEADER_KEY))).kvs[0]
        assert b.election.held is not None
        assert stored.mod_revision == b.election.held.mod_revision > old
        assert stored.lease == LEASES[1]


async def test_a_win_of_which_no_answer_came_is_found_and_not_taken_twice() -> None:
    replica = Replica()
    await replica.kv.lease_grant(e.LeaseGrantRequest(ID=LEASES[0], TTL=5))
    process = Process(replica, "a", LEASES[0])
    replica.raft.lose_next(applied=True)
    try:
        process.start()
        await settle()
        assert process.heard == []
        replica.clock.advance(1)
        await settle()
        assert process.heard == [(1, True)]
        stored = (await replica.kv.range(e.RangeRequest(key=LEADER_KEY))).kvs[0]
        assert stored.version == 1
        assert process.election.held is not None
        assert process.election.held.mod_revision == stored.mod_revision
    finally:
        await process.stop()


async def test_nobody_stands_on_a_lease_that_is_gone() -> None:
    replica = Replica()
    process = Process(replica, "a", 99)
    process.start()
    try:
        await settle()
        assert process.tasks[1].done()
        assert process.heard == []
    finally:
        await process.stop()


async def test_a_leader_whose_key_is_taken_away_stands_down_at_once() -> None:
    replica = Replica()
    async with two(replica) as (a, b):
        await replica.kv.delete_range(e.DeleteRangeRequest(key=LEADER_KEY))
        await settle()
        assert a.heard[:2] == [(1, True), (1, False)]
        terms = [term for term, leading in (*a.heard, *b.heard) if leading]
        assert sorted(terms) == [1, 2]


# -- the seat ------------------------------------------------------------------------------------------------------


class Leases:
    """A store whose leases do as the test says."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.answers: list[int | StatusError] = []
        self.renewals: list[tuple[float, int | None]] = []
        self.revoked: list[int] = []

    async def lease_grant(self, request: e.LeaseGrantRequest) -> e.LeaseGrantResponse:
        return e.LeaseGrantResponse(ID=5, TTL=request.TTL)

    async def lease_keep_alive(
        self, request: e.LeaseKeepAliveRequest, *, timeout_ms: int | None = None
    ) -> e.LeaseKeepAliveResponse:
        self.renewals.append((self.clock.monotonic(), timeout_ms))
        answer = self.answers.pop(0) if self.answers else 3
        if isinstance(answer, StatusError):
            await self.clock.sleep((timeout_ms or 0) / 1000)
            raise answer
        return e.LeaseKeepAliveResponse(ID=request.ID, TTL=answer)

    async def lease_revoke(
        self, request: e.LeaseRevokeRequest, *, timeout_ms: int | None = None
    ) -> e.LeaseRevokeResponse:
        self.revoked.append(request.ID)
        return e.LeaseRevokeResponse()


async def _seated(clock: ManualClock) -> tuple[Leases, Seat, asyncio.Task[str]]:
    leases = Leases(clock)
    seat = Seat(leases, ttl_s=3, clock=clock)  # type: ignore[arg-type]
    await seat.take()
    keeping = asyncio.create_task(seat.keep())
    await settle()
    return leases, seat, keeping


async def test_a_seat_is_renewed_three_times_a_ttl() -> None:
    clock = ManualClock(start_s=0)
    leases, seat, keeping = await _seated(clock)
    for _ in range(6):
        clock.advance(1)
        await settle()
    assert [at for at, _ in leases.renewals] == [1, 2, 3, 4, 5, 6]
    assert not keeping.done()
    keeping.cancel()
    await seat.leave()
    assert leases.revoked == [5]
    assert seat.lease == 0


async def test_a_seat_that_cannot_be_renewed_is_given_up_before_its_ttl_ends() -> None:
    clock = ManualClock(start_s=0)
    leases, _, keeping = await _seated(clock)
    leases.answers = [StatusError(Code.UNAVAILABLE, "nobody there")]
    clock.advance(1)
    await settle()
    ((_, timeout_ms),) = leases.renewals
    assert timeout_ms == 1_700  # 3 s less a tenth, less the second that has gone
    clock.advance(1.7)
    await settle()
    assert keeping.done()
    assert clock.monotonic() < 3


async def test_a_process_that_did_not_run_gives_its_seat_up_without_asking() -> None:
    clock = ManualClock(start_s=0)
    leases, _, keeping = await _seated(clock)
    clock.advance(10)
    await settle()
    assert keeping.done()
    assert leases.renewals == []


async def test_a_lease_that_expired_in_the_store_is_no_seat() -> None:
    clock = ManualClock(start_s=0)
    leases, _, keeping = await _seated(clock)
    leases.answers = [0]
    clock.advance(1)
    await settle()
    assert keeping.result() == "the lease expired"


# -- peers ---------------------------------------------------------------------------------------------------------


async def test_a_peers_call_needs_the_token_of_the_roster() -> None:
    replica = Replica()
    roster = Roster(replica.kv, replica.clock)
    peers = Peers(roster, name="a", token=b"t" * 16)

    async def echo(caller: str, payload: bytes) -> bytes:
        return caller.encode() + b":" + payload

    peers.serve("echo", echo)
    right = peers_pb2.PeerCall(caller="b", channel="echo", payload=b"x", token=b"t" * 16)
    context: Any = None
    assert (await peers.Call(right, context)).payload == b"b:x"
    assert await peers.call("a", "echo", b"y", timeout_ms=100) == b"a:y"
    for wrong, code in (
        (peers_pb2.PeerCall(caller="b", channel="echo", token=b""), Code.PERMISSION_DENIED),
        (peers_pb2.PeerCall(caller="b", channel="none", token=b"t" * 16), Code.UNIMPLEMENTED),
    ):
        with pytest.raises(StatusError) as refused:
            await peers.Call(wrong, context)
        assert refused.value.code is code
    with pytest.raises(StatusError) as absent:
        await peers.call("b", "echo", b"", timeout_ms=100)
    assert absent.value.code is Code.UNAVAILABLE


async def test_the_roster_follows_the_leases_of_processes() -> None:
    replica = Replica()
    await replica.kv.lease_grant(e.LeaseGrantRequest(ID=7, TTL=5))
    roster = Roster(replica.kv, replica.clock)
    running = asyncio.create_task(roster.run())
    entry = peers_pb2.RosterEntry(name="a", client_endpoint="127.0.0.1:1")
    key = REPLICAS_PREFIX + b"a"
    await replica.kv.put(e.PutRequest(key=key, value=entry.SerializeToString(), lease=7))
    await settle()
    assert roster.members == {"a": entry}
    await replica.kv.lease_revoke(e.LeaseRevokeRequest(ID=7))
    await settle()
    assert roster.members == {}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
