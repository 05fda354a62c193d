"""Range: from a request and a keyspace to a response, with etcd's sorting, filtering and counting.

Source: etcd server/etcdserver/txn (range), observable rules in its API documentation. Reads only.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.store import errors
from controlplane.store.keyspan import span
from controlplane.store.mvcc import Keyspace, Version, parse_kv
from controlplane.store.wire import varint, without_value

__all__ = ["check_revision", "in_key_order", "run_range"]

# Looked up once: protobuf's enum wrappers resolve a name in Python on every access.
_NONE = e.RangeRequest.SortOrder.NONE
_DESCEND = e.RangeRequest.SortOrder.DESCEND
_SORT_KEYS: dict[int, Callable[[Version], Any]] = {
    e.RangeRequest.SortTarget.VERSION: lambda version: version.version,
    e.RangeRequest.SortTarget.CREATE: lambda version: version.create_revision,
    e.RangeRequest.SortTarget.MOD: lambda version: version.mod_revision,
    e.RangeRequest.SortTarget.VALUE: lambda version: parse_kv(version).value,
}


def check_revision(keyspace: Keyspace, revision: int) -> None:
    """Raises: StatusError, OutOfRange, if that revision cannot be read."""
    if revision > keyspace.revision:
        raise errors.future_revision()
    if 0 < revision < keyspace.compact_revision:
        raise errors.compacted()


def run_range(keyspace: Keyspace, request: e.RangeRequest) -> e.RangeResponse:
    """The response; its header has the current revision (of the open transaction, if one has written).

    Raises:
        StatusError: OutOfRange, a future or compacted revision.
    """
    check_revision(keyspace, request.revision)
    current = keyspace.revision + 1 if keyspace.changed else keyspace.revision
    revision = request.revision if 0 < request.revision < current else 0
    if not request.range_end:
        version = keyspace.get(request.key, revision)
        count = 0 if version is None else 1
        found = [] if version is None or request.count_only else [version]
    else:
        count, found = _scan(keyspace, request, revision)
    more = False
    if found:
        found = _sort(_filter(found, request), request)
        if 0 < request.limit < len(found):
            del found[request.limit :]
            more = True
    return _response(found, request.keys_only, more, count, current)


def _scan(keyspace: Keyspace, request: e.RangeRequest, revision: int) -> tuple[int, list[Version]]:
    keys = span(request.key, request.range_end)
    # A sort or a filter needs every key before it can cut; else one key more than asked tells whether there is more.
    whole = request.sort_order != _NONE or _has_filter(request)
    limit = request.limit + 1 if request.limit > 0 and not whole else 0
    if not revision:
        return keyspace.count(keys), [] if request.count_only else keyspace.scan(keys, limit)
    if request.count_only:
        return keyspace.count_at(keys, revision), []
    found = list(islice(keyspace.scan_at(keys, revision), limit or None))
    complete = not limit or len(found) < limit
    return len(found) if complete else keyspace.count_at(keys, revision), found


def in_key_order(request: e.RangeRequest) -> bool:
    """Whether its answer is every key of the range, in ascending order, up to its limit."""
    plain = request.sort_order != _DESCEND and request.sort_target not in _SORT_KEYS
    return plain and not _has_filter(request)


def _has_filter(request: e.RangeRequest) -> bool:
    return bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )


def _filter(found: list[Version], request: e.RangeRequest) -> list[Version]:
    if not _has_filter(request):
        return found
    min_mod, max_mod = request.min_mod_revision, request.max_mod_revision or (1 << 63)
    min_create, max_create = request.min_create_revision, request.max_create_revision or (1 << 63)
    return [
        version
        for version in found
        if min_mod <= version.mod_revision <= max_mod and min_create <= version.create_revision <= max_create
    ]


def _sort(found: list[Version], request: e.RangeRequest) -> list[Version]:
    """``found`` is in key order. As in etcd, a target other than the key sorts even if no order is asked for."""
    descend = request.sort_order == _DESCEND
    sort_key = _SORT_KEYS.get(request.sort_target)
    if sort_key is not None:
        return sorted(found, key=sort_key, reverse=descend)
    return found[::-1] if descend else found


def _response(found: list[Version], keys_only: bool, more: bool, count: int, revision: int) -> e.RangeResponse:
    header = b"\x18" + varint(revision)
    parts = [b"\x0a", varint(len(header)), header]
    if keys_only:
        parts += [without_value(version.frame) for version in found]
    else:
        parts += [version.frame for version in found]
    if more:
        parts.append(b"\x18\x01")
    if count:
        parts += (b"\x20", varint(count))
    return e.RangeResponse.FromString(b"".join(parts))
