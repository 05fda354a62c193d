"""The rest of the etcd API: members, maintenance, keep-alive streams, metadata, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from controlplane.base.errors import Code, StatusError
from controlplane.etcd import metrics
from controlplane.etcd.cluster_service import ETCD_VERSION, ClusterService
from controlplane.etcd.context import born_index_of, request_id_of, timeout_ms_of
from controlplane.etcd.guard import LeaderGuard
from controlplane.etcd.kv_service import KVService
from controlplane.etcd.lease_service import LeaseService
from controlplane.etcd.maintenance_service import MaintenanceService
from controlplane.etcd.metrics import StateMetrics
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.store.dedup import Dedup
from tests.unit.etcd.fakes import FakeContext, Replica, put, settle

PLAIN: Any = FakeContext()


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    replica = Replica()
    replica.kv.start()
    yield replica
    await replica.kv.stop()


def guard(replica: Replica) -> LeaderGuard:
    return LeaderGuard(replica.raft, replica.clock, election_timeout_ms=1_000)


def maintenance(replica: Replica) -> MaintenanceService:
    return MaintenanceService(replica.kv, replica.raft, replica.store, replica.authorizer, replica.clock)


def cluster(replica: Replica) -> ClusterService:
    return ClusterService(replica.kv, replica.raft, replica.authorizer)


async def refused(call: Any) -> tuple[Code, str]:
    with pytest.raises(StatusError) as caught:
        await call
    return caught.value.code, caught.value.message


async def test_status_names_the_leader_and_where_the_log_is(replica: Replica) -> None:
    follower = Replica("r2", join=replica)
    await put(replica.kv, b"k")
    for asked in (replica, follower):
        status = await maintenance(asked).Status(e.StatusRequest(), PLAIN)
        assert (status.leader, status.raftTerm, status.raftIndex, status.raftAppliedIndex) == (1, 1, 1, 1)
        assert status.version == ETCD_VERSION
        assert status.dbSize > 0
        assert list(status.errors) == []


async def test_status_without_a_leader_says_so_and_still_answers(replica: Replica) -> None:
    replica.raft.set_leader(None)
    status = await maintenance(replica).Status(e.StatusRequest(), PLAIN)
    assert (status.leader, list(status.errors)) == (0, ["etcdserver: no leader"])


def test_the_version_turns_on_what_kube_apiserver_looks_for() -> None:
    assert tuple(map(int, ETCD_VERSION.split("."))) >= (3, 5, 13)


async def test_members_have_ids_names_and_urls(replica: Replica) -> None:
    Replica("r2", join=replica)
    members = (await cluster(replica).MemberList(e.MemberListRequest(), PLAIN)).members
    assert [(m.ID, m.name) for m in members] == [(1, "r1"), (2, "r2")]
    assert all(m.peerURLs[0].startswith("http://") and m.clientURLs[0].startswith("http://") for m in members)


async def test_moving_the_leader_is_refused_as_etcd_refuses_it(replica: Replica) -> None:
    follower = Replica("r2", join=replica)
    move = e.MoveLeaderRequest(targetID=9)
    not_leader = await refused(maintenance(follower).MoveLeader(move, PLAIN))
    assert not_leader == (Code.FAILED_PRECONDITION, "etcdserver: not leader")
    bad_target = await refused(maintenance(replica).MoveLeader(move, PLAIN))
    assert bad_target == (Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee")


async def test_replicas_hash_alike_and_a_change_changes_the_hash(replica: Replica) -> None:
    follower = Replica("r2", join=replica)
    for i in range(2_500):  # more than one page
        await put(replica.kv, b"k%d" % i)

    async def hash_of(asked: Replica, revision: int = 0) -> e.HashKVResponse:
        request = e.HashKVRequest(revision=revision)
        return await maintenance(asked).HashKV(request, PLAIN)

    before = await hash_of(replica)
    assert (await hash_of(follower)).hash == before.hash
    await put(replica.kv, b"k7", b"other")
    assert (await hash_of(replica)).hash != before.hash
    assert (await hash_of(replica, before.hash_revision)).hash == before.hash


async def test_keep_alives_of_one_stream_are_answered_in_order_and_share_quorum_rounds(replica: Replica) -> None:
    for lease_id in range(1, 101):
        await replica.kv.lease_grant(e.LeaseGrantRequest(ID=lease_id, TTL=60))

    async def requests() -> AsyncIterator[e.LeaseKeepAliveRequest]:
        for lease_id in range(1, 101):
            yield e.LeaseKeepAliveRequest(ID=lease_id)

    replica.raft.hold()
    context: Any = FakeContext()
    serving = asyncio.ensure_future(
        LeaseService(replica.kv, guard(replica), replica.authorizer).LeaseKeepAlive(requests(), context)
    )
    await settle()
    await settle()
    assert replica.raft.barriers == 100, "all renewals must be waiting together"
    replica.raft.release()
    await serving
    answers = [context.written.get_nowait() for _ in range(100)]
    assert [(answer.ID, answer.TTL) for answer in answers] == [(lease_id, 60) for lease_id in range(1, 101)]


async def test_a_keep_alive_that_fails_ends_its_stream(replica: Replica) -> None:
    await replica.kv.lease_grant(e.LeaseGrantRequest(ID=1, TTL=60))
    replica.raft.set_leader(None)

    async def requests() -> AsyncIterator[e.LeaseKeepAliveRequest]:
        yield e.LeaseKeepAliveRequest(ID=1)
        await asyncio.Event().wait()

    context: Any = FakeContext()
    serving = asyncio.ensure_future(
        LeaseService(replica.kv, guard(replica), replica.authorizer).LeaseKeepAlive(requests(), context)
    )
    for _ in range(20):
        await settle()
        replica.clock.advance(1)
    assert await refused(serving) == (Code.UNAVAILABLE, "etcdserver: no leader")


async def test_a_client_gives_its_own_request_id(replica: Replica) -> None:
    context: Any = FakeContext({"qd-request-id": "00" * 15 + "ff"})
    service = KVService(replica.kv, guard(replica), replica.authorizer)
    for _ in range(3):
        await service.Put(e.PutRequest(key=b"k"), context)
    assert replica.kv.revision == 2
    assert replica.raft.proposals[0].request_id == b"\x00" * 15 + b"\xff"


async def test_a_write_under_a_request_id_tells_how_far_the_log_is_before_it_is_proposed(replica: Replica) -> None:
    service = KVService(replica.kv, guard(replica), replica.authorizer)
    for _ in range(3):
        await put(replica.kv, b"k")
    named: Any = FakeContext({"qd-request-id": "00" * 16})
    replica.raft.fail_next()
    with pytest.raises(StatusError):
        await service.Put(e.PutRequest(key=b"k"), named)
    assert named.initial == {"qd-log-index": "3"}
    nameless: Any = FakeContext()
    await service.Put(e.PutRequest(key=b"k"), nameless)
    assert nameless.initial == {}


async def test_a_retry_older_than_what_is_remembered_is_refused_with_its_fate_unknown(replica: Replica) -> None:
    replica.store._dedup = Dedup(entries_max=2)
    await put(replica.kv, b"k")
    service = KVService(replica.kv, guard(replica), replica.authorizer)
    first: Any = FakeContext({"qd-request-id": "01" * 16})
    await service.Put(e.PutRequest(key=b"k", value=b"1"), first)
    for _ in range(5):
        await put(replica.kv, b"k", b"2")
    again: Any = FakeContext({"qd-request-id": "01" * 16, "qd-log-index": first.initial["qd-log-index"]})
    calls = (
        service.Put(e.PutRequest(key=b"k", value=b"1"), again),
        service.DeleteRange(e.DeleteRangeRequest(key=b"k"), again),
        service.Txn(e.TxnRequest(success=[e.RequestOp(request_put=e.PutRequest(key=b"k"))]), again),
    )
    for call in calls:
        with pytest.raises(StatusError) as refused:
            await call
        assert refused.value.unknown_outcome
    assert (await replica.kv.range(e.RangeRequest(key=b"k"))).kvs[0].value == b"2"


@pytest.mark.parametrize("text", ["-1", "1.5", "²", "9" * 20, str(1 << 63)])
def test_a_malformed_log_index_is_refused_not_ignored(text: str) -> None:
    context: Any = FakeContext({"qd-log-index": text})
    with pytest.raises(StatusError, match="qd-log-index"):
        born_index_of(context)


@pytest.mark.parametrize("text", ["", "00", "zz" * 16, "00" * 17])
def test_a_malformed_request_id_is_refused_not_ignored(text: str) -> None:
    context: Any = FakeContext({"qd-request-id": text})
    with pytest.raises(StatusError, match="qd-request-id"):
        request_id_of(context)


@pytest.mark.parametrize(("remaining_s", "timeout_ms"), [(None, None), (1e12, None), (2.5, 2_500), (0.0, 1)])
def test_the_clients_deadline_is_the_works_deadline(remaining_s: float | None, timeout_ms: int | None) -> None:
    context: Any = FakeContext(remaining_s=remaining_s)
    assert timeout_ms_of(context) == timeout_ms


async def test_a_client_that_requires_a_leader_is_refused_without_one(replica: Replica) -> None:
    await put(replica.kv, b"k")
    replica.raft.set_leader(None)
    service = KVService(replica.kv, guard(replica), replica.authorizer)
    read = e.RangeRequest(key=b"k", serializable=True)
    assert (await service.Range(read, PLAIN)).count == 1
    demanding: Any = FakeContext({"hasleader": "true"})
    assert await refused(service.Range(read, demanding)) == (Code.UNAVAILABLE, "etcdserver: no leader")


async def test_state_metrics_show_the_state_at_the_scrape(replica: Replica) -> None:
    registry = CollectorRegistry()
    StateMetrics(replica.store, replica.raft, version=ETCD_VERSION, quota_bytes=7).register(registry)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("etcd_server_has_leader") == value("etcd_server_is_leader") == 1
    await put(replica.kv, b"k")
    assert value("etcd_debugging_mvcc_keys_total") == 1
    assert value("etcd_server_quota_backend_bytes") == 7
    assert value("etcd_server_is_learner") == 0
    assert value("etcd_debugging_mvcc_current_revision") == 2
    assert value("etcd_server_proposals_applied_total") == 1
    assert value("etcd_mvcc_db_total_size_in_bytes") == replica.store.size_bytes
    assert value("etcd_server_version", server_version=ETCD_VERSION) == 1
    replica.raft.set_leader(None)
    assert value("etcd_server_has_leader") == 0
    replica.raft.set_leader("r1")
    assert value("etcd_server_leader_changes_seen_total") == 1


async def test_requests_are_counted_by_the_clients_version_of_which_few_are_told_apart(replica: Replica) -> None:
    service = KVService(replica.kv, guard(replica), replica.authorizer)

    def count(version: str) -> float:
        return float(metrics.CLIENT_REQUESTS.labels("unary", version)._value.get())

    unknown, other = count("unknown"), count("other")
    await service.Range(e.RangeRequest(key=b"k"), PLAIN)
    named: Any = FakeContext({"client-api-version": "3.5.1"})
    await service.Range(e.RangeRequest(key=b"k"), named)
    assert (count("unknown"), count("3.5.1")) == (unknown + 1, 1)
    for n in range(100):
        odd: Any = FakeContext({"client-api-version": f"odd {n}"})
        await service.Range(e.RangeRequest(key=b"k"), odd)
    assert count("other") >= other + 60
