"""Lease timers: never early, on the leader only, across leader changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, Reply
from controlplane.raft.types import Applied, Outcome
from tests.unit.etcd.fakes import Replica, put, settle


class Pair:
    """Two replicas on one clock: ``leader`` leads until told otherwise."""

    def __init__(self) -> None:
        self.leader = Replica("r1")
        self.follower = Replica("r2", join=self.leader, clock=self.leader.clock)
        self.leader.kv.start()
        self.follower.kv.start()

    async def advance(self, seconds: float) -> None:
        """Move time in steps shorter than a tick, letting timers run in between."""
        steps = max(1, round(seconds / (0.25 if seconds < 60 else 5)))
        for _ in range(steps):
            self.leader.clock.advance(seconds / steps)
            await settle()

    async def grant(self, lease_id: int, ttl_s: int) -> None:
        await self.leader.kv.lease_grant(e.LeaseGrantRequest(ID=lease_id, TTL=ttl_s))

    def alive(self, lease_id: int) -> bool:
        return lease_id in self.leader.store.leases

    async def renew(self, lease_id: int, through: Replica | None = None) -> int:
        kv = (through or self.leader).kv
        return (await kv.lease_keep_alive(e.LeaseKeepAliveRequest(ID=lease_id))).TTL

    async def left(self, lease_id: int, through: Replica | None = None) -> int:
        kv = (through or self.leader).kv
        return (await kv.lease_time_to_live(e.LeaseTimeToLiveRequest(ID=lease_id))).TTL


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    yield pair
    await pair.leader.kv.stop()
    await pair.follower.kv.stop()


async def test_a_lease_expires_after_its_ttl_and_takes_its_keys_along(pair: Pair) -> None:
    await pair.grant(1, 10)
    await put(pair.leader.kv, b"k", lease=1)
    await pair.advance(9.9)
    assert pair.alive(1)
    await pair.advance(0.6)
    assert not pair.alive(1)
    assert (await pair.leader.kv.range(e.RangeRequest(key=b"k"))).count == 0


async def test_expiry_is_a_logged_command_that_names_the_term(pair: Pair) -> None:
    pair.leader.raft.set_leader("r1")
    await pair.grant(1, 5)
    await pair.advance(6)
    command = Command.FromString(pair.leader.raft.proposals[-1].payload)
    assert (command.lease_expire.id, command.lease_expire.term) == (1, 2)


async def test_a_renewed_lease_lives_on_and_costs_no_log_entry(pair: Pair) -> None:
    await pair.grant(1, 5)
    entries = len(pair.leader.raft.proposals)
    for _ in range(5):
        await pair.advance(3)
        assert await pair.renew(1) == 5
    assert pair.alive(1)
    assert len(pair.leader.raft.proposals) == entries
    await pair.advance(5.5)
    assert not pair.alive(1)


async def test_a_follower_renews_through_the_leader(pair: Pair) -> None:
    await pair.grant(1, 5)
    await pair.advance(4)
    assert await pair.renew(1, through=pair.follower) == 5
    await pair.advance(4)
    assert pair.alive(1)


async def test_renewing_an_unknown_lease_answers_zero(pair: Pair) -> None:
    assert await pair.renew(77) == 0


async def test_time_to_live_counts_down_on_every_replica(pair: Pair) -> None:
    await pair.grant(1, 10)
    await pair.advance(4)
    assert [await pair.left(1), await pair.left(1, through=pair.follower)] == [6, 6]
    assert await pair.left(77) == -1


async def test_time_to_live_lists_keys_and_the_granted_ttl(pair: Pair) -> None:
    await pair.grant(1, 10)
    await put(pair.leader.kv, b"b", lease=1)
    await put(pair.leader.kv, b"a", lease=1)
    response = await pair.follower.kv.lease_time_to_live(e.LeaseTimeToLiveRequest(ID=1, keys=True))
    assert (response.grantedTTL, list(response.keys)) == (10, [b"a", b"b"])


async def test_a_new_leader_gives_every_lease_its_full_ttl_again(pair: Pair) -> None:
    await pair.grant(1, 10)
    await pair.advance(9)
    pair.leader.raft.set_leader("r2")
    await pair.advance(9.5)
    assert pair.alive(1), "expired early: the new leader must not count time it did not see"
    await pair.advance(1)
    assert not pair.alive(1)


async def test_a_deposed_leader_proposes_nothing(pair: Pair) -> None:
    await pair.grant(1, 5)
    pair.leader.raft.set_leader("r2")
    await pair.follower.kv.stop()
    await pair.advance(60)
    assert pair.alive(1)


async def test_a_checkpoint_bounds_what_a_leader_change_can_add(pair: Pair) -> None:
    await pair.grant(1, 600)
    await pair.advance(300)
    checkpointed = pair.leader.store.leases.get(1)
    assert checkpointed is not None
    assert 300 <= checkpointed.remaining_ttl_s <= 370
    pair.leader.raft.set_leader("r2")
    await pair.advance(299)
    assert pair.alive(1)
    await pair.advance(75)
    assert not pair.alive(1)


async def test_renewing_a_checkpointed_lease_makes_it_full_for_later_leaders_too(pair: Pair) -> None:
    await pair.grant(1, 600)
    await pair.advance(500)
    assert await pair.renew(1) == 600
    pair.leader.raft.set_leader("r2")
    await pair.advance(590)
    assert pair.alive(1), "expired early: an acknowledged renewal was forgotten by the leader change"


async def test_a_renewal_while_a_checkpoint_is_on_its_way_is_not_undone_by_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    raft = pair.leader.raft
    propose, gate, in_order = raft.propose, asyncio.Event(), asyncio.Lock()

    async def slowly(payload: bytes, *, request_id: bytes, timeout_ms: int) -> Outcome:
        async with in_order:
            if Command.FromString(payload).WhichOneof("op") == "lease_checkpoint":
                await gate.wait()
            return await propose(payload, request_id=request_id, timeout_ms=timeout_ms)

    await pair.grant(1, 600)
    monkeypatch.setattr(raft, "propose", slowly)
    await pair.advance(100)
    lease = pair.leader.store.leases.get(1)
    assert lease is not None
    assert not lease.remaining_ttl_s, "the checkpoint is on its way"
    renewing = asyncio.ensure_future(pair.renew(1))
    await settle()
    gate.set()
    assert await renewing == 600
    await settle()
    raft.set_leader("r2")
    await pair.advance(590)
    assert pair.alive(1), "expired early: a checkpoint from before the renewal came after it"


async def test_a_checkpoint_of_a_deposed_leader_changes_nothing(pair: Pair) -> None:
    await pair.grant(1, 600)
    late = Command(
        leader_term=1, lease_checkpoint=e.LeaseCheckpointRequest(checkpoints=[e.LeaseCheckpoint(ID=1, remaining_TTL=5)])
    )
    pair.leader.raft.set_leader("r2")
    await put(pair.follower.kv, b"k")  # the new term is in the log
    outcome = await pair.leader.raft.propose(late.SerializeToString(), request_id=b"late", timeout_ms=1_000)
    assert isinstance(outcome, Applied)
    assert Reply.FromString(outcome.reply).HasField("rejection")
    lease = pair.leader.store.leases.get(1)
    assert lease is not None
    assert not lease.remaining_ttl_s


async def test_a_renewal_is_not_answered_before_a_quorum_confirms_the_leader(pair: Pair) -> None:
    await pair.grant(1, 5)
    pair.leader.raft.hold()
    renewing = asyncio.ensure_future(pair.renew(1))
    await settle()
    assert not renewing.done()
    pair.leader.raft.release()
    assert await renewing == 5


async def test_a_renewal_that_loses_its_leader_fails_or_is_taken_by_the_next(pair: Pair) -> None:
    await pair.grant(1, 5)
    pair.leader.raft.hold()
    renewing = asyncio.ensure_future(pair.renew(1))
    await settle()
    pair.leader.raft.set_leader("r2")
    pair.leader.raft.release()
    await settle()
    await pair.advance(0.1)
    assert await renewing == 5
    await pair.advance(4.5)
    assert pair.alive(1)


async def test_a_lease_whose_expiry_is_in_the_log_cannot_be_renewed(pair: Pair) -> None:
    await pair.grant(1, 5)
    pair.leader.raft.hold()
    await pair.advance(6)
    renewing = asyncio.ensure_future(pair.renew(1))
    await settle()
    assert not renewing.done()
    pair.leader.raft.release()
    assert await renewing == 0
    assert not pair.alive(1)


async def test_an_expiry_of_unknown_fate_is_asked_again_and_happens_once(pair: Pair) -> None:
    await pair.grant(1, 5)
    await put(pair.leader.kv, b"k", lease=1)
    pair.leader.raft.lose_next(applied=False)
    await pair.advance(8)
    assert not pair.alive(1)


async def test_an_expiry_that_never_left_is_tried_again(pair: Pair) -> None:
    await pair.grant(1, 5)
    pair.leader.raft.fail_next()
    await pair.advance(5.5)
    assert pair.alive(1)
    await pair.advance(2)
    assert not pair.alive(1)


async def test_mass_expiry_is_spread_over_time(pair: Pair) -> None:
    for lease_id in range(1, 502):
        await pair.grant(lease_id, 5)
    pair.leader.clock.advance(5.3)
    await settle()
    first = sum(1 for lease_id in range(1, 502) if not pair.alive(lease_id))
    assert 0 < first <= 200
    await pair.advance(1)
    assert not any(pair.alive(lease_id) for lease_id in range(1, 502))


async def test_without_a_leader_a_renewal_is_unavailable(pair: Pair) -> None:
    await pair.grant(1, 5)
    pair.leader.raft.set_leader(None)
    renewing = asyncio.ensure_future(pair.renew(1))
    await pair.advance(6)
    with pytest.raises(StatusError) as caught:
        await renewing
    assert (caught.value.code, caught.value.message) == (Code.UNAVAILABLE, "etcdserver: no leader")


async def test_a_revoked_lease_is_not_expired_again(pair: Pair) -> None:
    await pair.grant(1, 5)
    await pair.leader.kv.lease_revoke(e.LeaseRevokeRequest(ID=1))
    entries = len(pair.leader.raft.proposals)
    await pair.advance(10)
    assert len(pair.leader.raft.proposals) == entries


async def test_a_lease_granted_anew_under_an_old_id_gets_its_own_time(pair: Pair) -> None:
    await pair.grant(1, 5)
    await pair.advance(4)
    await pair.leader.kv.lease_revoke(e.LeaseRevokeRequest(ID=1))
    await pair.grant(1, 5)
    await pair.advance(4.5)
    assert pair.alive(1)
    await pair.advance(1)
    assert not pair.alive(1)
