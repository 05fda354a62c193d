"""Replicas that compare their states: who is found odd, and what happens to it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.base.errors import Code, StatusError
from controlplane.etcd.integrity import EVERY_S, CorruptMemberError, Integrity, judge
from controlplane.pb.etcd import rpc_pb2 as e
from tests.unit.etcd.fakes import Replica, put, settle

A, B, C = b"a", b"b", b"c"


class Trio:
    """Three replicas of one log, r1 leading, each comparing."""

    def __init__(self) -> None:
        first = Replica()
        self.replicas = [first, Replica("r2", join=first), Replica("r3", join=first)]
        self.parts = [Integrity(r.kv, r.raft, r.store, r.clock) for r in self.replicas]
        self.running = [asyncio.ensure_future(part.run()) for part in self.parts]

    async def tick(self) -> None:
        """Time for one comparison."""
        await settle()
        for replica in self.replicas:
            replica.clock.advance(EVERY_S)
        await settle()

    async def damage(self, number: int) -> None:
        """A bit flips in the memory of one replica, and the next write of the key shows it."""
        live = self.replicas[number].store._keyspace._live
        live[b"k"] = live[b"k"]._replace(version=99)
        await put(self.replicas[0].kv, b"k")

    def stopped(self) -> list[bool]:
        return [task.done() for task in self.running]

    async def close(self) -> None:
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)


async def trio() -> Trio:
    made = Trio()
    await put(made.replicas[0].kv, b"k")
    return made


async def test_equal_states_raise_no_alarm() -> None:
    cluster = await trio()
    for _ in range(3):
        await put(cluster.replicas[1].kv, b"k")
        await cluster.tick()
    assert not cluster.replicas[0].store.alarms
    assert cluster.stopped() == [False, False, False]
    await cluster.close()


@pytest.mark.parametrize("number", [0, 1, 2], ids=["leader", "follower", "other follower"])
async def test_the_odd_replica_is_named_and_stops_and_the_others_serve_on(number: int) -> None:
    cluster = await trio()
    await cluster.damage(number)
    await cluster.tick()
    assert [alarm.memberID for alarm in cluster.replicas[1].store.alarms.raised] == [number + 1]
    assert cluster.stopped() == [other == number for other in range(3)]
    with pytest.raises(CorruptMemberError, match=f"r{number + 1}.*qd member remove"):
        cluster.running[number].result()
    odd, sound = cluster.replicas[number], cluster.replicas[(number + 1) % 3]
    with pytest.raises(StatusError) as caught:
        await odd.kv.range(e.RangeRequest(key=b"k", serializable=True))
    assert (caught.value.code, caught.value.message) == (Code.DATA_LOSS, "etcdserver: corrupt cluster")
    assert await put(sound.kv, b"k")
    await cluster.close()


async def test_the_alarm_stops_the_odd_replica_again_when_it_comes_back() -> None:
    cluster = await trio()
    await cluster.damage(2)
    await cluster.tick()
    again = cluster.replicas[2]
    part = Integrity(again.kv, again.raft, again.store, again.clock)
    with pytest.raises(CorruptMemberError):
        await part.run()
    await cluster.close()


async def test_two_that_differ_wait_for_the_third_which_decides() -> None:
    cluster = await trio()
    cluster.replicas[1].raft.reachable = False
    await cluster.damage(2)
    for _ in range(3):
        await cluster.tick()
    assert not cluster.replicas[0].store.alarms, "nobody can tell yet which of the two is right"
    cluster.replicas[1].raft.reachable = True
    await cluster.tick()
    assert [alarm.memberID for alarm in cluster.replicas[0].store.alarms.raised] == [3]
    await cluster.close()


async def test_three_that_differ_are_all_out_of_service() -> None:
    cluster = await trio()
    live = cluster.replicas[1].store._keyspace._live
    live[b"k"] = live[b"k"]._replace(version=77)
    await cluster.damage(2)
    await cluster.tick()
    assert [alarm.memberID for alarm in cluster.replicas[0].store.alarms.raised] == [1, 2, 3]
    assert cluster.stopped() == [True, True, True]
    await cluster.close()


async def test_a_replica_that_installed_a_snapshot_is_compared_from_there_on() -> None:
    cluster = await trio()
    cluster.replicas[2].store.restore(cluster.replicas[0].store.snapshot())
    await cluster.tick()
    assert not cluster.replicas[0].store.alarms
    await cluster.damage(2)
    await cluster.tick()
    assert [alarm.memberID for alarm in cluster.replicas[0].store.alarms.raised] == [3]
    await cluster.close()


def test_the_majority_of_the_voters_is_right() -> None:
    assert judge({1: A, 2: A, 3: A}, [1, 2, 3]) == []
    assert judge({1: A, 2: A, 3: B}, [1, 2, 3]) == [3]
    assert judge({1: A, 2: B, 3: B}, [1, 2, 3]) == [1]
    assert judge({1: A, 2: B}, [1, 2, 3]) is None
    assert judge({1: A, 2: B}, [1, 2]) == [1, 2]
    assert judge({1: A, 2: B, 3: C}, [1, 2, 3]) == [1, 2, 3]
    assert judge({1: A, 2: A, 4: B}, [1, 2, 3]) == [4], "a learner is judged and does not judge"
    assert judge({1: A, 4: B, 5: B}, [1, 2, 3]) is None
    assert judge({}, [1]) == []


@given(
    st.dictionaries(st.integers(1, 5), st.sampled_from([A, B, C])),
    st.lists(st.integers(1, 5), unique=True, min_size=1),
)
def test_nobody_of_a_majority_is_ever_found_odd(hashes: dict[int, bytes], voters: list[int]) -> None:
    odd = judge(hashes, voters)
    for digest in (A, B, C):
        alike = [member for member, theirs in hashes.items() if theirs == digest]
        if sum(1 for voter in voters if voter in alike) > len(voters) // 2:
            assert odd is not None
            assert not [member for member in alike if member in odd]
