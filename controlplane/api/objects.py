"""ObjectStore: objects in a KVStore: reads, and writes that are one guarded transaction.

Owns the etcd requests and their errors. Knows no rule of any kind. Every write compares the mod revision of each key
it depends on, and the fence if there is one; a failed comparison is an answer (:class:`Stale`), not an error.

A write of several attempts gives each attempt its own request id, derived from the client's: a retry of the whole
write walks the same ids, so that whichever attempt took effect answers again instead of happening twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from controlplane.api import storage
from controlplane.api.errors import (
    ApiError,
    ExpiredError,
    FencedError,
    NotFoundError,
    UnavailableError,
    bad_request,
)
from controlplane.api.registry import Kind
from controlplane.base.errors import Code, StatusError
from controlplane.pb.etcd import rpc_pb2 as etcd
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.store.kv import KVStore

__all__ = ["Committed", "ObjectStore", "Stale", "Stored", "attempt_id", "delete_op", "kv_errors", "put_op"]


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as read. ``read_revision`` is the store's revision at the time."""

    kind: Kind
    raw: bytes
    mod_revision: int
    read_revision: int

    def message(self) -> Any:
        """A fresh message, with its resource version."""
        return storage.decode(self.kind, self.raw, self.mod_revision)

    def object_bytes(self) -> bytes:
        """As an ``Object``."""
        return storage.object_bytes(self.kind, self.raw, self.mod_revision)


@dataclass(frozen=True, slots=True)
class Committed:
    """The transaction took effect at ``revision``."""

    revision: int


@dataclass(frozen=True, slots=True)
class Stale:
    """A comparison failed: the mod revisions found (0: no such key). Nothing was written."""

    found: Mapping[bytes, int]


class ObjectStore:
    """See the module."""

    def __init__(self, kv: KVStore) -> None:
        self.kv = kv

    async def get(
        self, kind: Kind, namespace: str, name: str, *, serializable: bool = False, revision: int = 0
    ) -> Stored | None:
        """One object, or None. ``revision`` 0 is the present."""
        key = storage.key_of(kind, namespace, name)
        request = etcd.RangeRequest(key=key, serializable=serializable, revision=revision)
        with kv_errors():
            response = await self.kv.range(request)
        if not response.kvs:
            return None
        found = response.kvs[0]
        raw = storage.raw_message(kind, key, found.value)
        return Stored(kind, raw, found.mod_revision, response.header.revision)

    async def require(self, kind: Kind, namespace: str, name: str, *, serializable: bool = False) -> Stored:
        """One object that must be there.

        Raises:
            NotFoundError: it is not.
            ApiError: BadRequest, the kind's objects are not named so.
        """
        if not name:
            raise bad_request("name: Required value: which object?")
        if kind.namespaced and not namespace:
            raise bad_request(f"namespace: Required value: {kind.resource} live in namespaces")
        stored = await self.get(kind, namespace, name, serializable=serializable)
        if stored is None:
            raise NotFoundError(Code.NOT_FOUND, f'{kind.qualified} "{name}" not found', reason="NotFound")
        return stored

    async def commit(
        self,
        compare: Mapping[bytes, int],
        ops: Sequence[etcd.RequestOp],
        *,
        request_id: bytes = b"",
        born_index: int = 0,
        fence: api_pb2.Fence | None = None,
    ) -> Committed | Stale:
        """Do ``ops`` in one transaction if every key has that mod revision (0: does not exist).

        Raises:
            FencedError: the fence's key has another mod revision.
            UnavailableError: it was not done, or (``unknown_outcome``) may have been.
        """
        expected = dict(compare)
        if fence is not None and fence.key:
            expected[fence.key] = fence.mod_revision
        request = etcd.TxnRequest(
            compare=[mod_compare(key, revision) for key, revision in expected.items()],
            success=ops,
            failure=[etcd.RequestOp(request_range=etcd.RangeRequest(key=key, keys_only=True)) for key in expected],
        )
        with kv_errors():
            response = await self.kv.txn(request, request_id=request_id, born_index=born_index)
        if response.succeeded:
            return Committed(response.header.revision)
        found: dict[bytes, int] = {}
        for key, answer in zip(expected, response.responses, strict=True):
            kvs = answer.response_range.kvs
            found[key] = kvs[0].mod_revision if kvs else 0
        if fence is not None and fence.key and found[fence.key] != fence.mod_revision:
            raise fenced(fence)
        return Stale(found)


def mod_compare(key: bytes, revision: int) -> etcd.Compare:
    """``mod_revision(key) == revision``; 0 means that the key does not exist."""
    return etcd.Compare(key=key, target=etcd.Compare.MOD, result=etcd.Compare.EQUAL, mod_revision=revision)


def put_op(key: bytes, value: bytes, lease: int = 0) -> etcd.RequestOp:
    """Store a value."""
    return etcd.RequestOp(request_put=etcd.PutRequest(key=key, value=value, lease=lease))


def delete_op(key: bytes) -> etcd.RequestOp:
    """Delete a key."""
    return etcd.RequestOp(request_delete_range=etcd.DeleteRangeRequest(key=key))


def fenced(fence: api_pb2.Fence) -> FencedError:
    """The error of a writer that leads no more."""
    return FencedError(
        Code.FAILED_PRECONDITION,
        f"the writer is fenced off: {fence.key.decode(errors='replace')} is no longer at revision {fence.mod_revision}",
        reason="Fenced",
    )


def attempt_id(request_id: bytes, attempt: int, what: bytes = b"") -> bytes:
    """The request id of one attempt of a write; empty stays empty (the store picks one). ``what`` is being written, and
    how: a client that uses an id again for something else is not answered as if that were done already."""
    if not request_id or (attempt == 0 and not what):
        return request_id
    return hashlib.sha256(request_id + attempt.to_bytes(4, "big") + what).digest()[:16]


@contextmanager
def kv_errors() -> Iterator[None]:
    """Turn the store's statuses into errors of the resource API."""
    try:
        yield
    except ApiError:
        raise
    except StatusError as error:
        raise _translated(error) from error


def _translated(error: StatusError) -> ApiError:
    unknown = error.unknown_outcome
    if error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
        return UnavailableError(error.code, error.message, reason="ServiceUnavailable", unknown_outcome=unknown)
    if error.code is Code.OUT_OF_RANGE:
        return ExpiredError(error.code, error.message, reason="Expired")
    reason = "TooManyRequests" if error.code is Code.RESOURCE_EXHAUSTED else "InternalError"
    return ApiError(error.code, error.message, reason=reason, unknown_outcome=unknown)
