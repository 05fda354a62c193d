"""Static checks of requests, before they are proposed: what can be refused without looking at the state.

Source: etcd server/etcdserver/api/v3rpc/key.go and lease.go; the texts are etcd's. Raises StatusError.
Apply does not depend on these checks for its integrity, only for etcd's manners.
"""

from __future__ import annotations

from collections.abc import Iterable

from controlplane.base.limits import LEASE_TTL_S_MAX, REQUEST_BYTES_MAX, TXN_OPS_MAX
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command
from controlplane.store import errors
from controlplane.store.keyspan import Span, span

__all__ = ["check_command", "check_range", "check_txn", "is_read_only", "peer_revision_of"]

_KNOWN_TO_0_1 = frozenset(
    ("put", "delete_range", "txn", "compact", "lease_grant", "lease_revoke", "lease_checkpoint", "lease_expire")
)
_SORT_ORDERS = frozenset(e.RangeRequest.SortOrder.values())
_SORT_TARGETS = frozenset(e.RangeRequest.SortTarget.values())


def peer_revision_of(command: Command) -> int:
    """The revision of the peer protocol (transport.frames) from which on replicas know this kind of command. One that
    does not would apply it as a rejection, and its state would be another than the others'."""
    return 0 if command.WhichOneof("op") in _KNOWN_TO_0_1 else 1


def check_command(command: Command) -> None:
    """Raises: StatusError, with etcd's code and text."""
    if command.ByteSize() > REQUEST_BYTES_MAX:
        raise errors.request_too_large()
    match command.WhichOneof("op"):
        case "put":
            check_put(command.put)
        case "delete_range":
            check_delete(command.delete_range)
        case "txn":
            check_txn(command.txn)
        case "lease_grant":
            if command.lease_grant.TTL > LEASE_TTL_S_MAX:
                raise errors.lease_ttl_too_large()
            if command.lease_grant.ID == 0:
                raise errors.malformed("the proposer picks the lease id")
        case "auth_user_add" | "auth_user_change_password":
            if command.auth_user_add.password or command.auth_user_change_password.password:
                raise errors.malformed("a password must be hashed before it is proposed")
        case None:
            raise errors.malformed("no operation")


def check_range(request: e.RangeRequest) -> None:
    if not request.key:
        raise errors.empty_key()
    if request.sort_order not in _SORT_ORDERS or request.sort_target not in _SORT_TARGETS:
        raise errors.invalid_sort_option()


def check_put(request: e.PutRequest) -> None:
    if not request.key:
        raise errors.empty_key()
    if request.ignore_value and request.value:
        raise errors.value_provided()
    if request.ignore_lease and request.lease:
        raise errors.lease_provided()


def check_delete(request: e.DeleteRangeRequest) -> None:
    if not request.key:
        raise errors.empty_key()


def check_txn(request: e.TxnRequest) -> None:
    _check_ops(request, TXN_OPS_MAX)
    _intervals(request.success)
    _intervals(request.failure)


def is_read_only(request: e.TxnRequest) -> bool:
    """No writes in either branch, at any depth: the transaction can be served as a read."""
    for op in (*request.success, *request.failure):
        kind = op.WhichOneof("request")
        if kind == "request_txn":
            if not is_read_only(op.request_txn):
                return False
        elif kind != "request_range":
            return False
    return True


def _check_ops(request: e.TxnRequest, ops_max: int) -> None:
    """Nested transactions share what their parent leaves of the limit."""
    ops = max(len(request.compare), len(request.success), len(request.failure))
    if ops > ops_max:
        raise errors.too_many_ops()
    if any(not compare.key for compare in request.compare):
        raise errors.empty_key()
    for op in (*request.success, *request.failure):
        match op.WhichOneof("request"):
            case "request_range":
                check_range(op.request_range)
            case "request_put":
                check_put(op.request_put)
            case "request_delete_range":
                check_delete(op.request_delete_range)
            case "request_txn":
                _check_ops(op.request_txn, ops_max - ops)
            case None:
                raise errors.key_not_found()


def _intervals(ops: Iterable[e.RequestOp]) -> tuple[dict[bytes, None], list[Span]]:
    """Keys put and spans deleted by a branch. No key may be put twice, nor put inside a span that is deleted."""
    ops = list(ops)
    puts: dict[bytes, None] = {}
    deleted = [
        span(op.request_delete_range.key, op.request_delete_range.range_end)
        for op in ops
        if op.HasField("request_delete_range")
    ]

    def check(key: bytes, also_allowed: dict[bytes, None]) -> None:
        if (key in puts and key not in also_allowed) or any(key in gone for gone in deleted):
            raise errors.duplicate_key()

    for op in ops:
        if not op.HasField("request_txn"):
            continue
        then_puts, then_deleted = _intervals(op.request_txn.success)
        else_puts, else_deleted = _intervals(op.request_txn.failure)
        for key in then_puts:
            check(key, {})
        puts.update(then_puts)
        for key in else_puts:
            check(key, then_puts)  # only one of the two branches runs
        puts.update(else_puts)
        deleted += then_deleted + else_deleted
    for op in ops:
        if op.HasField("request_put"):
            check(op.request_put.key, {})
            puts[op.request_put.key] = None
    return puts, deleted
