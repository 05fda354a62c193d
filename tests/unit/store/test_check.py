"""What is refused before it is proposed: one test per rule, with etcd's code and text."""

from __future__ import annotations

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.base.limits import LEASE_TTL_S_MAX, REQUEST_BYTES_MAX, TXN_OPS_MAX
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command
from controlplane.store.check import check_range, is_read_only
from controlplane.store.store import Store
from tests.unit.store.support import delete_op, put_op, range_op


def nested(*ops: e.RequestOp, otherwise: tuple[e.RequestOp, ...] = ()) -> e.RequestOp:
    return e.RequestOp(request_txn=e.TxnRequest(success=ops, failure=otherwise))


def txn(*ops: e.RequestOp) -> Command:
    return Command(txn=e.TxnRequest(success=ops))


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        pytest.param(Command(put=e.PutRequest()), 3, "key is not provided", id="put-empty-key"),
        pytest.param(
            Command(put=e.PutRequest(key=b"a", value=b"v", ignore_value=True)), 3, "value is provided", id="value"
        ),
        pytest.param(
            Command(put=e.PutRequest(key=b"a", lease=1, ignore_lease=True)), 3, "lease is provided", id="lease"
        ),
        pytest.param(Command(delete_range=e.DeleteRangeRequest()), 3, "key is not provided", id="delete-empty-key"),
        pytest.param(txn(put_op(b"")), 3, "key is not provided", id="txn-put-empty-key"),
        pytest.param(txn(range_op(b"")), 3, "key is not provided", id="txn-range-empty-key"),
        pytest.param(
            Command(txn=e.TxnRequest(compare=[e.Compare()])), 3, "key is not provided", id="compare-empty-key"
        ),
        pytest.param(txn(e.RequestOp()), 3, "key not found", id="txn-empty-op"),
        pytest.param(
            txn(*[range_op(b"a")] * (TXN_OPS_MAX + 1)), 3, "too many operations in txn request", id="too-many-ops"
        ),
        pytest.param(
            txn(*[nested(*[range_op(b"a")] * (TXN_OPS_MAX - 1))] * 2),
            3,
            "too many operations in txn request",
            id="nested-ops-share-the-limit",
        ),
        pytest.param(txn(put_op(b"a"), put_op(b"a")), 3, "duplicate key given in txn request", id="put-twice"),
        pytest.param(
            txn(put_op(b"b"), delete_op(b"a", b"c")), 3, "duplicate key given in txn request", id="in-deleted"
        ),
        pytest.param(
            txn(put_op(b"b"), delete_op(b"a", b"\0")), 3, "duplicate key given in txn request", id="to-the-end"
        ),
        pytest.param(txn(put_op(b"a"), nested(put_op(b"a"))), 3, "duplicate key given in txn request", id="nested-put"),
        pytest.param(
            txn(nested(put_op(b"a")), nested(put_op(b"a"))), 3, "duplicate key given in txn request", id="siblings"
        ),
        pytest.param(
            txn(put_op(b"a"), nested(otherwise=(delete_op(b"a"),))),
            3,
            "duplicate key given in txn request",
            id="nested-delete",
        ),
        pytest.param(
            Command(lease_grant=e.LeaseGrantRequest(ID=1, TTL=LEASE_TTL_S_MAX + 1)), 11, "too large lease TTL", id="ttl"
        ),
        pytest.param(
            Command(put=e.PutRequest(key=b"a", value=bytes(REQUEST_BYTES_MAX))), 3, "request is too large", id="size"
        ),
    ],
)
def test_refused_with_etcds_code_and_text(command: Command, code: int, message: str) -> None:
    with pytest.raises(StatusError) as caught:
        Store().check(command)
    assert (caught.value.code, caught.value.message) == (code, f"etcdserver: {message}")


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(txn(*[range_op(b"a")] * TXN_OPS_MAX), id="ops-at-the-limit"),
        pytest.param(txn(put_op(b"c"), delete_op(b"a", b"c")), id="put-beside-deleted"),
        pytest.param(txn(delete_op(b"a", b"c"), delete_op(b"b")), id="delete-twice"),
        pytest.param(txn(nested(put_op(b"a"), otherwise=(put_op(b"a"),))), id="either-branch"),
        pytest.param(txn(nested(put_op(b"a")), nested(delete_op(b"a"))), id="sibling-put-then-delete"),
        pytest.param(Command(lease_grant=e.LeaseGrantRequest(ID=1, TTL=LEASE_TTL_S_MAX)), id="ttl-at-the-limit"),
    ],
)
def test_accepted(command: Command) -> None:
    Store().check(command)


def test_a_command_without_operation_or_a_lease_without_id_is_refused() -> None:
    for command in (Command(), Command(lease_grant=e.LeaseGrantRequest(TTL=5))):
        with pytest.raises(StatusError) as caught:
            Store().check(command)
        assert caught.value.code == Code.INVALID_ARGUMENT


def test_an_unknown_sort_option_is_refused() -> None:
    request = e.RangeRequest.FromString(b"\x0a\x01a\x28\x09")
    with pytest.raises(StatusError, match="invalid sort option"):
        check_range(request)


def test_only_a_transaction_without_any_write_is_a_read() -> None:
    assert is_read_only(e.TxnRequest(success=[range_op(b"a"), nested(range_op(b"b"))]))
    assert not is_read_only(e.TxnRequest(failure=[put_op(b"a")]))
    assert not is_read_only(e.TxnRequest(success=[nested(otherwise=(delete_op(b"a"),))]))
    assert Store().read_txn(e.TxnRequest(success=[range_op(b"a")])).succeeded
    with pytest.raises(StatusError):
        Store().read_txn(e.TxnRequest(success=[put_op(b"a")]))
