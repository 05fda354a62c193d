"""LocalKV: reads wait for their index, and each request is answered as etcd answers it."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.base.errors import Code
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.raft.types import RaftHandle
from controlplane.store.kv import KVStore
from tests.unit.etcd.fakes import Replica, put, refused, settle


@pytest.fixture
async def replica() -> Replica:
    return Replica()


def test_it_is_a_kv_store_over_a_raft_handle() -> None:
    replica = Replica()
    kv: KVStore = replica.kv
    raft: RaftHandle = replica.raft
    assert kv.revision == 1
    assert raft.status().leader == "r1"


async def test_a_put_can_be_read_back_and_headers_say_who_answered(replica: Replica) -> None:
    written = await replica.kv.put(e.PutRequest(key=b"k", value=b"v"))
    read = await replica.kv.range(e.RangeRequest(key=b"k"))
    assert (read.kvs[0].value, read.kvs[0].mod_revision) == (b"v", 2)
    for header in (written.header, read.header):
        assert (header.cluster_id, header.member_id, header.revision, header.raft_term) == (0xC1, 1, 2, 1)


async def test_without_a_leader_writes_and_linearizable_reads_say_no_leader(replica: Replica) -> None:
    await put(replica.kv, b"k")
    replica.raft.set_leader(None)
    for call in (replica.kv.put(e.PutRequest(key=b"k")), replica.kv.range(e.RangeRequest(key=b"k"))):
        error = await refused(call)
        assert (error.code, error.message) == (Code.UNAVAILABLE, "etcdserver: no leader")
    stale = await replica.kv.range(e.RangeRequest(key=b"k", serializable=True))
    assert stale.kvs[0].value == b"v"


async def test_a_linearizable_read_waits_for_the_barrier_and_a_serializable_one_does_not(replica: Replica) -> None:
    await put(replica.kv, b"k")
    replica.raft.hold()
    reading = asyncio.ensure_future(replica.kv.range(e.RangeRequest(key=b"k")))
    await replica.kv.range(e.RangeRequest(key=b"k", serializable=True))
    await settle()
    assert not reading.done()
    replica.raft.release()
    assert (await reading).count == 1
    assert replica.raft.barriers == 1


async def test_a_read_only_txn_is_read_not_proposed(replica: Replica) -> None:
    await put(replica.kv, b"k")
    get = e.RequestOp(request_range=e.RangeRequest(key=b"k"))
    response = await replica.kv.txn(e.TxnRequest(success=[get]))
    assert response.succeeded
    assert response.responses[0].response_range.count == 1
    assert len(replica.raft.proposals) == 1
    assert replica.raft.barriers == 1


async def test_a_read_only_txn_with_compares_waits_for_the_barrier_even_if_its_ranges_are_serializable(
    replica: Replica,
) -> None:
    get = e.RequestOp(request_range=e.RangeRequest(key=b"k", serializable=True))
    await replica.kv.txn(e.TxnRequest(success=[get]))
    assert replica.raft.barriers == 0
    await replica.kv.txn(e.TxnRequest(compare=[e.Compare(key=b"k", version=0)], success=[get]))
    assert replica.raft.barriers == 1


async def test_a_txn_with_a_write_is_one_proposal(replica: Replica) -> None:
    operation = e.RequestOp(request_put=e.PutRequest(key=b"k", value=b"v"))
    response = await replica.kv.txn(e.TxnRequest(success=[operation]))
    assert response.header.revision == 2
    assert len(replica.raft.proposals) == 1


async def test_delete_range_says_how_many(replica: Replica) -> None:
    await put(replica.kv, b"a")
    await put(replica.kv, b"b")
    response = await replica.kv.delete_range(e.DeleteRangeRequest(key=b"a", range_end=b"z", prev_kv=True))
    assert (response.deleted, [kv.key for kv in response.prev_kvs]) == (2, [b"a", b"b"])


async def test_compaction_refuses_older_reads(replica: Replica) -> None:
    for _ in range(4):
        await put(replica.kv, b"k")
    await replica.kv.compact(e.CompactionRequest(revision=4, physical=True))
    error = await refused(replica.kv.range(e.RangeRequest(key=b"k", revision=3)))
    assert error.code is Code.OUT_OF_RANGE
    assert replica.kv.compact_revision == 4


async def test_a_picked_lease_id_is_positive_and_new(replica: Replica) -> None:
    ids = {(await replica.kv.lease_grant(e.LeaseGrantRequest(TTL=60))).ID for _ in range(20)}
    assert len(ids) == 20
    assert all(0 < lease_id < 1 << 63 for lease_id in ids)


@pytest.mark.parametrize(("asked_s", "granted_s"), [(-5, 2), (0, 2), (1, 2), (2, 2), (3, 3)])
async def test_a_ttl_is_at_least_one_and_a_half_elections(replica: Replica, asked_s: int, granted_s: int) -> None:
    response = await replica.kv.lease_grant(e.LeaseGrantRequest(ID=1, TTL=asked_s))
    assert granted_s == response.TTL


async def test_a_taken_lease_id_is_refused(replica: Replica) -> None:
    await replica.kv.lease_grant(e.LeaseGrantRequest(ID=1, TTL=60))
    error = await refused(replica.kv.lease_grant(e.LeaseGrantRequest(ID=1, TTL=60)))
    assert (error.code, error.message) == (Code.FAILED_PRECONDITION, "etcdserver: lease already exists")


async def test_leases_lists_what_was_granted(replica: Replica) -> None:
    for lease_id in (3, 1):
        await replica.kv.lease_grant(e.LeaseGrantRequest(ID=lease_id, TTL=60))
    assert {status.ID for status in (await replica.kv.lease_leases()).leases} == {1, 3}


async def test_a_long_range_is_the_same_in_steps_and_serialized(replica: Replica) -> None:
    for start in range(0, 1_500, 100):
        keys = range(start, start + 100)
        puts = [e.RequestOp(request_put=e.PutRequest(key=b"long/%05d" % n, value=b"v")) for n in keys]
        await replica.kv.txn(e.TxnRequest(success=puts))
    request = e.RangeRequest(key=b"long/", range_end=b"long0")
    reading = asyncio.ensure_future(replica.kv.range(request))
    await settle_little()
    await put(replica.kv, b"long/zz")
    response = await reading
    assert [kv.key for kv in response.kvs] == [b"long/%05d" % n for n in range(1_500)]
    assert (response.count, response.more) == (1_500, False)
    assert (response.header.member_id, response.header.revision) == (1, 16)
    again = await replica.kv.range_pieces(request)
    assert isinstance(again, list)
    parsed = e.RangeResponse.FromString(b"".join(again))
    assert (parsed.count, parsed.header.revision) == (1_501, 17)
    assert parsed == await replica.kv.range(request)


async def settle_little() -> None:
    """Let a read begin, but not end."""
    for _ in range(3):
        await asyncio.sleep(0)
