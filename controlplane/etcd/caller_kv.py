"""A store as one caller sees it: the same :class:`KVStore`, with what the caller may not do refused.

For services made of several requests (locks, elections), which act as their caller.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from controlplane.etcd.caller import Caller
from controlplane.etcd.local import LocalKV
from controlplane.pb.etcd import rpc_pb2

__all__ = ["CallerKV"]


class CallerKV:
    """See the module."""

    def __init__(self, kv: LocalKV, caller: Caller) -> None:
        self._kv = kv
        self._caller = caller

    @property
    def revision(self) -> int:
        """The revision applied on this replica now."""
        return self._kv.revision

    async def range(self, request: rpc_pb2.RangeRequest, *, timeout_ms: int | None = None) -> rpc_pb2.RangeResponse:
        return await self._kv.range(request, timeout_ms=timeout_ms, caller=self._caller)

    async def put(
        self, request: rpc_pb2.PutRequest, *, request_id: bytes = b"", timeout_ms: int | None = None
    ) -> rpc_pb2.PutResponse:
        return await self._kv.put(request, request_id=request_id, timeout_ms=timeout_ms, caller=self._caller)

    async def delete_range(
        self, request: rpc_pb2.DeleteRangeRequest, *, request_id: bytes = b"", timeout_ms: int | None = None
    ) -> rpc_pb2.DeleteRangeResponse:
        return await self._kv.delete_range(request, request_id=request_id, timeout_ms=timeout_ms, caller=self._caller)

    async def txn(
        self,
        request: rpc_pb2.TxnRequest,
        *,
        request_id: bytes = b"",
        timeout_ms: int | None = None,
        born_index: int = 0,
    ) -> rpc_pb2.TxnResponse:
        return await self._kv.txn(
            request, request_id=request_id, timeout_ms=timeout_ms, caller=self._caller, born_index=born_index
        )

    async def compact(
        self, request: rpc_pb2.CompactionRequest, *, timeout_ms: int | None = None
    ) -> rpc_pb2.CompactionResponse:
        return await self._kv.compact(request, timeout_ms=timeout_ms, caller=self._caller)

    async def lease_grant(
        self, request: rpc_pb2.LeaseGrantRequest, *, request_id: bytes = b"", timeout_ms: int | None = None
    ) -> rpc_pb2.LeaseGrantResponse:
        return await self._kv.lease_grant(request, request_id=request_id, timeout_ms=timeout_ms, caller=self._caller)

    async def lease_revoke(
        self, request: rpc_pb2.LeaseRevokeRequest, *, request_id: bytes = b"", timeout_ms: int | None = None
    ) -> rpc_pb2.LeaseRevokeResponse:
        return await self._kv.lease_revoke(request, request_id=request_id, timeout_ms=timeout_ms, caller=self._caller)

    async def lease_keep_alive(
        self, request: rpc_pb2.LeaseKeepAliveRequest, *, timeout_ms: int | None = None
    ) -> rpc_pb2.LeaseKeepAliveResponse:
        return await self._kv.lease_keep_alive(request, timeout_ms=timeout_ms, caller=self._caller)

    def watch(
        self, request: rpc_pb2.WatchCreateRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[rpc_pb2.WatchResponse]]:
        return self._kv.watch(request, caller=self._caller)
