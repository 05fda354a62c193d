"""Apply is total, and exactly once."""

from __future__ import annotations

import pytest

from controlplane.base.errors import Code, CorruptStateError
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, Proposal, Reply
from controlplane.store.dedup import Dedup
from controlplane.store.store import Store
from tests.unit.store.support import Driver, expect_rejection, put_op


def put_proposal(request_id: bytes, key: bytes, born_index: int = 0) -> Proposal:
    payload = Command(put=e.PutRequest(key=key, value=b"v")).SerializeToString()
    return Proposal(request_id=request_id, born_index=born_index, payload=payload)


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff", b"\x52\x05abc", Command(proposed_at_ms=1).SerializeToString(), b"\xfa\x7f\x00"],
    ids=["empty", "garbage", "truncated", "no-operation", "unknown-operation"],
)
def test_a_malformed_payload_is_rejected_and_the_store_goes_on(payload: bytes) -> None:
    driver = Driver()
    reply = driver.propose(Proposal(request_id=b"poison", payload=payload))
    assert reply.rejection.code == Code.INVALID_ARGUMENT
    assert driver.store.revision == 1
    assert driver.put(b"a") == 2


def test_commands_that_no_check_has_seen_are_rejected_or_harmless() -> None:
    driver = Driver()
    assert driver.apply(Command(put=e.PutRequest())).rejection.message == "etcdserver: key is not provided"
    assert driver.apply(Command(delete_range=e.DeleteRangeRequest())).delete_range.deleted == 0
    assert driver.apply(Command(lease_grant=e.LeaseGrantRequest(TTL=5))).rejection.code == Code.INVALID_ARGUMENT
    assert driver.apply(Command(txn=e.TxnRequest(success=[e.RequestOp()]))).txn.succeeded
    twice = e.TxnRequest(success=[put_op(b"a", b"1"), put_op(b"a", b"2")])
    assert driver.apply(Command(txn=twice)).txn.header.revision == 2
    assert driver.get(b"a") == (b"2", 2, 2, 2)
    other = Store()
    other.restore([driver.snapshot()])
    assert b"".join(other.snapshot()) == driver.snapshot()


def test_an_entry_is_applied_in_order_and_only_forward() -> None:
    driver = Driver()
    driver.put(b"a")
    with pytest.raises(CorruptStateError):
        driver.store.apply(1, 1, [])
    assert driver.store.apply(7, 1, []) == []
    assert driver.store.applied_index == 7


def test_a_retry_of_a_write_gets_the_first_reply_and_has_no_effect() -> None:
    driver = Driver()
    first = driver.propose(put_proposal(b"same", b"a"))
    driver.put(b"b")
    before = driver.store.state_hash()
    assert driver.propose(put_proposal(b"same", b"a")) == first
    assert driver.store.revision == 3
    assert driver.store.state_hash() == before


def test_a_retry_within_one_entry_is_applied_once() -> None:
    store = Store()
    proposal = put_proposal(b"same", b"a")
    replies = store.apply(1, 1, [proposal, proposal])
    assert replies[0] == replies[1]
    assert store.revision == 2


def test_a_rejection_is_remembered_too() -> None:
    driver = Driver()
    payload = Command(put=e.PutRequest(key=b"a", lease=7)).SerializeToString()
    first = driver.propose(Proposal(request_id=b"same", payload=payload))
    driver.grant(7)
    assert driver.propose(Proposal(request_id=b"same", payload=payload)) == first
    assert driver.get(b"a") is None


def test_a_retry_survives_a_snapshot() -> None:
    driver = Driver()
    first = driver.propose(put_proposal(b"same", b"a"))
    other = Driver()
    other.store.restore([driver.snapshot()])
    other.index = driver.index
    assert other.propose(put_proposal(b"same", b"a")) == first
    assert other.store.revision == 2


def test_a_proposal_older_than_what_is_forgotten_is_refused_as_unknown() -> None:
    driver = Driver()
    driver.store._dedup = Dedup(entries_max=2)
    for number in range(4):  # applied at 1..4; ids 0 and 1 are forgotten, the newest of them from index 2
        driver.propose(put_proposal(b"id%d" % number, b"a", born_index=number))
    assert driver.store.revision == 5
    reply = driver.propose(put_proposal(b"id0", b"a", born_index=0))
    expect_rejection(reply, Code.UNAVAILABLE, "etcdserver: request timed out")
    expect_rejection(
        driver.propose(put_proposal(b"id1", b"a", born_index=1)), Code.UNAVAILABLE, "etcdserver: request timed out"
    )
    assert driver.store.revision == 5
    assert driver.propose(put_proposal(b"new", b"a", born_index=2)).put.header.revision == 6


def test_memory_of_replies_is_bounded_in_entries_and_in_bytes() -> None:
    dedup = Dedup(entries_max=3, bytes_max=1_000)
    for index in range(1, 6):
        dedup.remember(b"%d" % index, index, b"reply")
    assert (len(dedup), dedup.floor) == (3, 2)
    dedup.remember(b"large", 6, b"x" * 900)
    assert (len(dedup), dedup.floor) == (1, 5)
    assert dedup.reply(b"large") == b"x" * 900
    assert dedup.size_bytes <= 1_000


def test_without_a_request_id_every_proposal_is_applied() -> None:
    driver = Driver()
    driver.propose(put_proposal(b"", b"a"))
    driver.propose(put_proposal(b"", b"a"))
    assert driver.store.revision == 3


def test_an_exception_that_is_no_answer_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()

    def broken(*_: object) -> Reply:
        raise RuntimeError("a defect")

    monkeypatch.setattr(driver.store, "_dispatch", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        driver.put(b"a")
