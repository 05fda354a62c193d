"""Alarms and the quota: when writes are refused, and how an operator gets out of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.etcd.integrity import Integrity
from controlplane.etcd.local import LocalKV
from controlplane.etcd.maintenance_service import MaintenanceService
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command
from tests.unit.etcd.fakes import FakeContext, Replica, put, settle

PLAIN: Any = FakeContext()
CORRUPT = (Code.DATA_LOSS, "etcdserver: corrupt cluster")
NO_SPACE = (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")


def maintenance_of(replica: Replica) -> MaintenanceService:
    return MaintenanceService(replica.kv, replica.raft, replica.store, replica.authorizer, replica.clock)


async def refused(call: Any) -> tuple[Code, str]:
    with pytest.raises(StatusError) as caught:
        await call
    return caught.value.code, caught.value.message


def limited(replica: Replica, quota_bytes: int) -> LocalKV:
    return LocalKV(replica.raft, replica.store, clock=replica.clock, rand=replica.rand, quota_bytes=quota_bytes)


async def alarm(maintenance: MaintenanceService, action: Any, **fields: Any) -> list[tuple[int, int]]:
    response = await maintenance.Alarm(e.AlarmRequest(action=action, **fields), PLAIN)
    return [(alarm.memberID, alarm.alarm) for alarm in response.alarms]


async def test_a_full_store_refuses_what_adds_and_takes_what_frees_on_every_replica() -> None:
    replica = Replica()
    follower = Replica("r2", join=replica)
    kv = limited(replica, 20_000)
    maintenance = maintenance_of(follower)
    while replica.store.size_bytes < 18_500:
        await put(kv, b"k", bytes(500))
    assert 10 < replica.store.revision < 40, "history counts, and so does what a version costs beside its value"
    assert await refused(put(kv, b"k", bytes(1_000))) == NO_SPACE
    # The other replica has a quota with room: the alarm is what makes it refuse.
    assert await alarm(maintenance, e.AlarmRequest.GET) == [(1, e.NOSPACE)]
    putting = e.TxnRequest(failure=[e.RequestOp(request_put=e.PutRequest(key=b"k"))])
    assert await refused(put(follower.kv, b"k")) == NO_SPACE
    assert await refused(follower.kv.txn(putting)) == NO_SPACE
    assert await refused(follower.kv.lease_grant(e.LeaseGrantRequest(TTL=60))) == NO_SPACE
    nested = e.TxnRequest(success=[e.RequestOp(request_txn=putting)])
    assert await refused(follower.kv.txn(nested)) == NO_SPACE
    status = await maintenance.Status(e.StatusRequest(), PLAIN)
    assert list(status.errors) == ["memberID:1 alarm:NOSPACE "]
    assert (await kv.range(e.RangeRequest(key=b"k"))).count == 1
    await kv.delete_range(e.DeleteRangeRequest(key=b"k"))
    await kv.compact(e.CompactionRequest(revision=kv.revision, physical=True))
    assert replica.store.size_bytes < 2_000
    assert await refused(put(kv, b"k")) == NO_SPACE, "room alone does not clear it: an operator does"
    cleared = await alarm(maintenance, e.AlarmRequest.DEACTIVATE, memberID=1, alarm=e.NOSPACE)
    assert cleared == [(1, e.NOSPACE)]
    await put(kv, b"k")
    assert await alarm(maintenance, e.AlarmRequest.GET) == []


async def test_the_alarm_is_raised_once_however_many_writes_are_refused() -> None:
    replica = Replica()
    kv = limited(replica, 1)
    for _ in range(3):
        assert await refused(put(kv, b"k")) == NO_SPACE
    assert replica.store.revision == 1
    assert len(replica.raft.proposals) == 1


async def test_without_a_quota_nothing_is_refused() -> None:
    replica = Replica()
    await put(limited(replica, 0), b"k", bytes(100_000))


async def test_alarms_are_listed_by_member_and_type() -> None:
    replica = Replica()
    maintenance = maintenance_of(replica)
    for member_id, kind in ((9, e.NOSPACE), (7, e.CORRUPT), (7, e.NOSPACE), (7, e.NOSPACE)):
        raised = await alarm(maintenance, e.AlarmRequest.ACTIVATE, memberID=member_id, alarm=kind)
        assert raised == [(member_id, kind)]
    get = e.AlarmRequest.GET
    assert await alarm(maintenance, get) == [(7, e.NOSPACE), (7, e.CORRUPT), (9, e.NOSPACE)]
    assert await alarm(maintenance, get, memberID=7) == [(7, e.NOSPACE), (7, e.CORRUPT)]
    assert await alarm(maintenance, get, alarm=e.CORRUPT) == [(7, e.CORRUPT)]
    assert await alarm(maintenance, e.AlarmRequest.DEACTIVATE, memberID=8, alarm=e.NOSPACE) == []
    nothing = alarm(maintenance, e.AlarmRequest.ACTIVATE, memberID=8, alarm=e.NONE)
    assert (await refused(nothing))[0] is Code.INVALID_ARGUMENT


async def test_a_member_with_a_corrupt_state_serves_nobody_and_the_others_go_on() -> None:
    replica = Replica()
    odd = Replica("r2", join=replica)
    await put(replica.kv, b"k")
    await replica.kv.condemn(2)
    assert await refused(odd.kv.range(e.RangeRequest(key=b"k", serializable=True))) == CORRUPT
    assert await refused(odd.kv.range(e.RangeRequest(key=b"k"))) == CORRUPT
    assert await refused(put(odd.kv, b"k")) == CORRUPT
    assert await refused(odd.kv.txn(e.TxnRequest())) == CORRUPT
    assert await refused(odd.kv.lease_leases()) == CORRUPT
    assert await put(replica.kv, b"k") == 3
    maintenance = maintenance_of(replica)
    assert await alarm(maintenance, e.AlarmRequest.GET) == [(2, e.CORRUPT)]
    assert await alarm(maintenance, e.AlarmRequest.DEACTIVATE, memberID=2, alarm=e.CORRUPT) == [(2, e.CORRUPT)]
    assert not replica.store.alarms


@pytest.mark.parametrize("member_id", [0, 2, 99], ids=["of all", "of one", "of nobody"])
async def test_a_clients_corrupt_alarm_has_requests_refused_until_it_is_cleared_and_stops_nobody(
    member_id: int,
) -> None:
    """As etcd: keys and leases can be neither read nor changed, whomever the alarm names; users, and alarms, can."""
    replica = Replica()
    follower = Replica("r2", join=replica)
    parts = [Integrity(r.kv, r.raft, r.store, r.clock) for r in (replica, follower)]
    running = [asyncio.ensure_future(part.run()) for part in parts]
    await put(replica.kv, b"k")
    lease = (await replica.kv.lease_grant(e.LeaseGrantRequest(ID=7, TTL=60))).ID
    maintenance = maintenance_of(follower)
    fields = {"memberID": member_id, "alarm": e.CORRUPT}
    assert await alarm(maintenance, e.AlarmRequest.ACTIVATE, **fields) == [(member_id, e.CORRUPT)]
    await settle()
    for kv in (replica.kv, follower.kv):
        assert await refused(kv.range(e.RangeRequest(key=b"k"))) == CORRUPT
        assert await refused(kv.range(e.RangeRequest(key=b"k", serializable=True))) == CORRUPT
        assert await refused(kv.txn(e.TxnRequest())) == CORRUPT
        assert await refused(kv.txn(e.TxnRequest(success=[e.RequestOp(request_put=e.PutRequest(key=b"k"))]))) == CORRUPT
        assert await refused(put(kv, b"k")) == CORRUPT
        assert await refused(kv.delete_range(e.DeleteRangeRequest(key=b"k"))) == CORRUPT
        assert await refused(kv.compact(e.CompactionRequest(revision=1))) == CORRUPT
        assert await refused(kv.lease_grant(e.LeaseGrantRequest(TTL=60))) == CORRUPT
        assert await refused(kv.lease_revoke(e.LeaseRevokeRequest(ID=lease))) == CORRUPT
    await replica.kv.change_auth(Command(auth_role_add=e.AuthRoleAddRequest(name="r")))
    # No replica's own finding: none stops, and a snapshot does not make one of it.
    other = Replica()
    other.store.restore(replica.store.snapshot())
    assert other.store.alarms.corrupt
    assert not other.store.alarms.condemned
    assert [task.done() for task in running] == [False, False]
    assert await alarm(maintenance, e.AlarmRequest.DEACTIVATE, **fields) == [(member_id, e.CORRUPT)]
    assert await put(replica.kv, b"k") == 3
    assert (await follower.kv.range(e.RangeRequest(key=b"k"))).count == 1
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_who_may_clear_an_alarm_can_while_nothing_can_be_read() -> None:
    """With authentication on, who calls is found out behind a barrier, which a declared alarm must not refuse."""
    replica = Replica()
    await replica.kv.alarm(e.AlarmRequest.ACTIVATE, 0, e.CORRUPT)
    await replica.kv.barrier()
    assert (await replica.kv.lease_leases()).leases == []


async def test_a_lease_that_runs_out_while_the_cluster_is_declared_corrupt_ends_when_that_is_cleared() -> None:
    replica = Replica()
    replica.kv.start()
    await settle()
    await replica.kv.lease_grant(e.LeaseGrantRequest(ID=7, TTL=2))
    await put(replica.kv, b"k", lease=7)
    await replica.kv.alarm(e.AlarmRequest.ACTIVATE, 0, e.CORRUPT)
    for _ in range(10):
        replica.clock.advance(0.5)
        await settle()
    assert 7 in replica.store.leases
    await replica.kv.alarm(e.AlarmRequest.DEACTIVATE, 0, e.CORRUPT)
    for _ in range(10):
        replica.clock.advance(0.5)
        await settle()
    assert 7 not in replica.store.leases
    await replica.kv.stop()


async def test_a_verdict_survives_a_snapshot_as_one() -> None:
    replica = Replica()
    await replica.kv.condemn(1)
    other = Replica()
    other.store.restore(replica.store.snapshot())
    assert other.store.alarms.condemned == (1,)
    assert not other.store.alarms.corrupt


async def test_alarms_survive_a_snapshot() -> None:
    replica = Replica()
    await replica.kv.alarm(e.AlarmRequest.ACTIVATE, 1, e.NOSPACE)
    other = Replica()
    heard: list[bool] = []
    other.store.alarms.listen(lambda: heard.append(other.store.alarms.no_space))
    other.store.restore(replica.store.snapshot())
    assert heard == [True]
    assert [alarm.memberID for alarm in other.store.alarms.raised] == [1]
