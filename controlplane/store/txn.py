"""Puts, deletes and transactions on an open revision of the keyspace.

Owns etcd's order of evaluation: every compare of a transaction, those of nested ones included, sees the state before
it; then everything that can fail is checked along the chosen path; only then anything is written. So a refused
transaction has no effect, and reads inside one see its earlier writes.

Source: etcd server/etcdserver/txn. Raises StatusError; the caller commits the keyspace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.store import errors
from controlplane.store.keyspan import span
from controlplane.store.leases import Leases
from controlplane.store.mvcc import Keyspace, Version, kv_bytes, parse_kv
from controlplane.store.query import check_revision, run_range
from controlplane.store.wire import put_reply, put_reply_with

__all__ = ["run_delete", "run_put", "run_txn"]

#: Outcomes of the compares of a transaction and of the nested ones on its path, depth first, in order of operations.
_Path = list[bool]

# Looked up once: protobuf's enum wrappers resolve a name in Python on every access.
_VERSION = e.Compare.CompareTarget.VERSION
_CREATE = e.Compare.CompareTarget.CREATE
_MOD = e.Compare.CompareTarget.MOD
_VALUE = e.Compare.CompareTarget.VALUE
_LEASE = e.Compare.CompareTarget.LEASE
_HOLDS: dict[int, Callable[[int], bool]] = {
    e.Compare.CompareResult.EQUAL: lambda order: order == 0,
    e.Compare.CompareResult.NOT_EQUAL: lambda order: order != 0,
    e.Compare.CompareResult.GREATER: lambda order: order > 0,
    e.Compare.CompareResult.LESS: lambda order: order < 0,
}

#: What a key that does not exist is compared as.
_MISSING = Version(0, 0, 0, 0, b"\x12\x00")


def run_put(keyspace: Keyspace, leases: Leases, request: e.PutRequest) -> bytes:
    """The serialized Reply. Raises: StatusError: empty key, key not found (ignore_*), lease not found."""
    _check_put(keyspace, leases, request)
    before = _put(keyspace, leases, request)
    revision = keyspace.revision + 1
    return put_reply_with(revision, before.frame) if before is not None and request.prev_kv else put_reply(revision)


def run_delete(keyspace: Keyspace, leases: Leases, request: e.DeleteRangeRequest) -> e.DeleteRangeResponse:
    response = e.DeleteRangeResponse()
    keys = keyspace.keys(span(request.key, request.range_end)) if request.range_end else [request.key]
    deleted = 0
    for key in keys:
        before = keyspace.delete(key)
        if before is None:
            continue
        deleted += 1
        if before.lease:
            leases.move(key, before.lease, 0)
        if request.prev_kv:
            response.prev_kvs.add().ParseFromString(kv_bytes(before.frame))
    response.deleted = deleted
    response.header.revision = _revision(keyspace)
    return response


def run_txn(keyspace: Keyspace, leases: Leases, request: e.TxnRequest) -> e.TxnResponse:
    """Raises: StatusError, before anything is written."""
    path: _Path = []
    _decide(keyspace, request, path)
    _check(keyspace, leases, request, iter(path))
    response = e.TxnResponse()
    _execute(keyspace, leases, request, iter(path), response)
    response.header.revision = _revision(keyspace)
    return response


def _revision(keyspace: Keyspace) -> int:
    return keyspace.revision + 1 if keyspace.changed else keyspace.revision


def _check_put(keyspace: Keyspace, leases: Leases, request: e.PutRequest) -> None:
    if not request.key:
        raise errors.empty_key()
    if (request.ignore_value or request.ignore_lease) and keyspace.get(request.key) is None:
        raise errors.key_not_found()
    if request.lease and request.lease not in leases:
        raise errors.lease_not_found()


def _put(keyspace: Keyspace, leases: Leases, request: e.PutRequest) -> Version | None:
    """Write; the version before."""
    key, value, lease = request.key, request.value, request.lease
    before = keyspace.get(key)
    if before is not None:
        if request.ignore_value:
            value = parse_kv(before).value
        if request.ignore_lease:
            lease = before.lease
    keyspace.put(key, value, lease)
    held = 0 if before is None else before.lease
    if held != lease:
        leases.move(key, held, lease)
    return before


def _branch(request: e.TxnRequest, path: Iterator[bool]) -> tuple[bool, Iterable[e.RequestOp]]:
    succeeded = next(path)
    return succeeded, request.success if succeeded else request.failure


def _decide(keyspace: Keyspace, request: e.TxnRequest, path: _Path) -> None:
    succeeded = all(_holds(keyspace, compare) for compare in request.compare)
    path.append(succeeded)
    for op in request.success if succeeded else request.failure:
        if op.HasField("request_txn"):
            _decide(keyspace, op.request_txn, path)


def _check(keyspace: Keyspace, leases: Leases, request: e.TxnRequest, path: Iterator[bool]) -> None:
    _, ops = _branch(request, path)
    for op in ops:
        match op.WhichOneof("request"):
            case "request_range":
                check_revision(keyspace, op.request_range.revision)
            case "request_put":
                _check_put(keyspace, leases, op.request_put)
            case "request_txn":
                _check(keyspace, leases, op.request_txn, path)


def _execute(
    keyspace: Keyspace, leases: Leases, request: e.TxnRequest, path: Iterator[bool], response: e.TxnResponse
) -> None:
    response.header.SetInParent()
    response.succeeded, ops = _branch(request, path)
    for op in ops:
        answer = response.responses.add()
        match op.WhichOneof("request"):
            case "request_range":
                answer.response_range.CopyFrom(run_range(keyspace, op.request_range))
            case "request_put":
                before = _put(keyspace, leases, op.request_put)
                if before is not None and op.request_put.prev_kv:
                    answer.response_put.prev_kv.ParseFromString(kv_bytes(before.frame))
                answer.response_put.header.revision = keyspace.revision + 1
            case "request_delete_range":
                answer.response_delete_range.CopyFrom(run_delete(keyspace, leases, op.request_delete_range))
            case "request_txn":
                _execute(keyspace, leases, op.request_txn, path, answer.response_txn)


def _holds(keyspace: Keyspace, compare: e.Compare) -> bool:
    """A compare on a range must hold for every key in it; one that finds no key sees zeros, and never a value."""
    if compare.range_end:
        found = keyspace.scan(span(compare.key, compare.range_end))
    else:
        version = keyspace.get(compare.key)
        found = [] if version is None else [version]
    if not found:
        return compare.target != _VALUE and _matches(compare, _MISSING)
    return all(_matches(compare, version) for version in found)


def _matches(compare: e.Compare, version: Version) -> bool:
    """As in etcd, a target or a result that is not known compares as equal, or holds."""
    target = compare.target
    order = 0
    if target == _MOD:
        order = _order(version.mod_revision, compare.mod_revision)
    elif target == _VERSION:
        order = _order(version.version, compare.version)
    elif target == _CREATE:
        order = _order(version.create_revision, compare.create_revision)
    elif target == _LEASE:
        order = _order(version.lease, compare.lease)
    elif target == _VALUE and compare.HasField("value"):
        value = parse_kv(version).value
        order = (value > compare.value) - (value < compare.value)
    holds = _HOLDS.get(compare.result)
    return holds is None or holds(order)


def _order(left: int, right: int) -> int:
    return (left > right) - (left < right)
