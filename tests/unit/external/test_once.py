"""Exactly once without a memory of request ids, on a store that has none here either."""

from __future__ import annotations

from controlplane.external import once
from controlplane.pb.etcd import rpc_pb2 as e
from tests.unit.etcd.fakes import Replica

ID = b"0123456789abcdef"


def put(key: bytes, value: bytes) -> e.RequestOp:
    return e.RequestOp(request_put=e.PutRequest(key=key, value=value))


def get(key: bytes) -> e.RequestOp:
    return e.RequestOp(request_range=e.RangeRequest(key=key))


def version_is(key: bytes, version: int) -> e.Compare:
    return e.Compare(key=key, target=e.Compare.VERSION, result=e.Compare.EQUAL, version=version)


async def do(replica: Replica, request: e.TxnRequest, request_id: bytes = ID) -> e.TxnResponse:
    """As RemoteKV does it; each time a new request to the store."""
    return once.unwrap(request, await replica.kv.txn(once.wrap(request, request_id, 0)))


async def value_of(replica: Replica, key: bytes) -> tuple[bytes, int]:
    kv = (await replica.kv.range(e.RangeRequest(key=key))).kvs[0]
    return kv.value, kv.version


async def test_it_happens_once_and_answers_the_same_again() -> None:
    replica = Replica()
    request = e.TxnRequest(compare=[version_is(b"k", 0)], success=[put(b"k", b"v")], failure=[get(b"k")])
    first = await do(replica, request)
    await replica.kv.put(e.PutRequest(key=b"other"))
    again = await do(replica, request)
    assert first.succeeded
    assert again.succeeded
    assert again.header.revision == first.header.revision
    assert await value_of(replica, b"k") == (b"v", 1)


async def test_the_branch_that_was_taken_is_remembered() -> None:
    replica = Replica()
    request = e.TxnRequest(compare=[version_is(b"k", 5)], success=[put(b"a", b"")], failure=[put(b"b", b"")])
    first, again = await do(replica, request), await do(replica, request)
    assert not first.succeeded
    assert not again.succeeded
    assert again.responses[0].response_put.header.revision == first.header.revision
    assert (await value_of(replica, b"b"))[1] == 1


async def test_a_branch_that_only_reads_leaves_no_marker_and_may_come_out_otherwise_later() -> None:
    replica = Replica()
    await replica.kv.put(e.PutRequest(key=b"k", value=b"held"))
    request = e.TxnRequest(compare=[version_is(b"k", 0)], success=[put(b"k", b"mine")], failure=[get(b"k")])
    refused = await do(replica, request)
    assert not refused.succeeded
    assert refused.responses[0].response_range.kvs[0].value == b"held"
    await replica.kv.delete_range(e.DeleteRangeRequest(key=b"k"))
    assert (await do(replica, request)).succeeded


async def test_another_id_is_another_write() -> None:
    replica = Replica()
    request = e.TxnRequest(success=[put(b"k", b"v")])
    await do(replica, request)
    await do(replica, request, b"another-id-16-by")
    assert (await value_of(replica, b"k"))[1] == 2


def test_what_could_not_be_answered_again_is_not_repeatable() -> None:
    assert once.repeatable(e.TxnRequest(success=[put(b"k", b"")], failure=[get(b"k")]))
    assert not once.repeatable(e.TxnRequest(success=[put(b"k", b""), get(b"k")]))
    assert not once.repeatable(e.TxnRequest(success=[put(b"%d" % n, b"") for n in range(128)]))
