"""KVStore: the etcd-shaped store as the API layer sees it. Protocol only.

Implemented by the local replica (``etcd.local.LocalKV``: raft + store) and, later, by a client of a real etcd.
Messages are etcd's own (``docs``: etcd API v3); semantics are etcd's.

Every method raises :class:`controlplane.base.errors.StatusError` with etcd's code and text; a write whose fate is
not known raises it with ``unknown_outcome=True``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from controlplane.pb.etcd import rpc_pb2 as e

__all__ = ["KVStore"]


class KVStore(Protocol):
    """Range, transactions, leases, watches. Timeouts in milliseconds; None means the store's default (5 s)."""

    async def range(self, request: e.RangeRequest, *, timeout_ms: int | None = None) -> e.RangeResponse:
        """Linearizable unless ``request.serializable``."""
        ...

    async def put(
        self, request: e.PutRequest, *, request_id: bytes = b"", timeout_ms: int | None = None
    ) -> e.PutResponse: ...

    async def delete_range(
        self, request: e.DeleteRangeRequest, *, request_id: bytes = b"", timeout_ms: int | None = None
    ) -> e.DeleteRangeResponse: ...

    async def txn(
        self, request: e.TxnRequest, *, request_id: bytes = b"", timeout_ms: int | None = None, born_index: int = 0
    ) -> e.TxnResponse:
        """A transaction without writes is served as a read. ``born_index``: of a write that was tried before, through
        another replica, a log index from before that; 0: it is new, or the store keeps no log of ours."""
        ...

    async def compact(self, request: e.CompactionRequest, *, timeout_ms: int | None = None) -> e.CompactionResponse: ...

    async def lease_grant(
        self, request: e.LeaseGrantRequest, *, request_id: bytes = b"", timeout_ms: int | None = None
    ) -> e.LeaseGrantResponse: ...

    async def lease_revoke(
        self, request: e.LeaseRevokeRequest, *, request_id: bytes = b"", timeout_ms: int | None = None
    ) -> e.LeaseRevokeResponse: ...

    async def lease_keep_alive(
        self, request: e.LeaseKeepAliveRequest, *, timeout_ms: int | None = None
    ) -> e.LeaseKeepAliveResponse: ...

    def watch(self, request: e.WatchCreateRequest) -> AbstractAsyncContextManager[AsyncIterator[e.WatchResponse]]:
        """One watch. The iterator yields responses with events (a revision is never split) and, with
        ``progress_notify``, event-less responses whose header revision is a bookmark. It ends with a response
        that has ``canceled`` set (``compact_revision`` says why) or raises StatusError."""
        ...

    @property
    def revision(self) -> int:
        """The revision applied on this replica now."""
        ...
