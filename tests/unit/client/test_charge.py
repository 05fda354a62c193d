"""Taking charge of a term: late writes of deposed leaders, lost answers, rivals."""

from __future__ import annotations

import asyncio

from controlplane.base.clock import ManualClock
from controlplane.client.charge import take_charge
from controlplane.client.fenced import LEADER_KEY
from controlplane.etcd.caller import Caller
from controlplane.etcd.local import LocalKV
from controlplane.pb.etcd import rpc_pb2 as e
from tests.unit.etcd.fakes import Replica, settle


class HeldBack(LocalKV):
    """Its first transaction stays on its way until let go: what a replica does that was cut off when it proposed."""

    def hold(self) -> asyncio.Event:
        self.gate = asyncio.Event()
        return self.gate

    async def txn(
        self,
        request: e.TxnRequest,
        *,
        request_id: bytes = b"",
        timeout_ms: int | None = None,
        caller: Caller | None = None,
        born_index: int = 0,
    ) -> e.TxnResponse:
        await self.gate.wait()
        return await super().txn(
            request, request_id=request_id, timeout_ms=timeout_ms, caller=caller, born_index=born_index
        )


def held_back(replica: Replica) -> HeldBack:
    return HeldBack(replica.raft, replica.store, clock=replica.clock, rand=replica.rand)


async def key_revision(kv: LocalKV) -> int:
    return (await kv.range(e.RangeRequest(key=LEADER_KEY))).kvs[0].mod_revision


async def test_the_fence_is_the_revision_of_the_key_that_was_written() -> None:
    replica = Replica()
    fence = await take_charge(replica.kv, name="r1", term=2, clock=replica.clock)
    assert fence.mod_revision == await key_revision(replica.kv)
    again = await take_charge(replica.kv, name="r1", term=3, clock=replica.clock)
    assert again.mod_revision > fence.mod_revision


async def test_the_late_write_of_a_deposed_leader_does_not_break_the_fence_of_the_next_one() -> None:
    replica = Replica()
    late = held_back(replica)
    gate = late.hold()
    deposed = asyncio.ensure_future(take_charge(late, name="r1", term=2, clock=ManualClock()))
    await settle()
    fence = await take_charge(replica.kv, name="r2", term=3, clock=replica.clock)
    gate.set()  # only now does the old leader's write reach the log
    await settle()
    assert await key_revision(replica.kv) == fence.mod_revision
    deposed.cancel()


async def test_a_rival_that_came_between_is_overwritten() -> None:
    replica = Replica()
    slow = held_back(replica)
    gate = slow.hold()
    taking = asyncio.ensure_future(take_charge(slow, name="r2", term=3, clock=replica.clock))
    await settle()
    await take_charge(replica.kv, name="r1", term=2, clock=replica.clock)
    gate.set()
    await settle()
    replica.clock.advance(0.1)
    fence = await taking
    assert fence.mod_revision == await key_revision(replica.kv)


async def test_an_attempt_that_took_effect_without_an_answer_is_not_written_again() -> None:
    replica = Replica()
    replica.raft.lose_next(applied=True)
    taking = asyncio.ensure_future(take_charge(replica.kv, name="r1", term=2, clock=replica.clock))
    await settle()
    assert not taking.done()
    replica.clock.advance(0.1)
    fence = await taking
    assert fence.mod_revision == await key_revision(replica.kv)
    assert (await replica.kv.range(e.RangeRequest(key=LEADER_KEY))).kvs[0].version == 1


async def test_a_cluster_that_a_client_declared_corrupt_is_waited_out() -> None:
    replica = Replica()
    await replica.kv.alarm(e.AlarmRequest.ACTIVATE, 0, e.CORRUPT)
    taking = asyncio.ensure_future(take_charge(replica.kv, name="r1", term=2, clock=replica.clock))
    await settle()
    assert not taking.done()
    await replica.kv.alarm(e.AlarmRequest.DEACTIVATE, 0, e.CORRUPT)
    replica.clock.advance(0.1)
    fence = await taking
    assert fence.mod_revision == await key_revision(replica.kv)
