"""etcdserverpb.KV: the gRPC face of :class:`LocalKV`. Translates a call's context into arguments, nothing more."""

from __future__ import annotations

from typing import Any, TypedDict

from controlplane.etcd import metrics
from controlplane.etcd.authorizer import Authorizer
from controlplane.etcd.caller import Caller
from controlplane.etcd.context import LOG_INDEX_KEY, Context, born_index_of, request_id_of, timeout_ms_of
from controlplane.etcd.guard import LeaderGuard
from controlplane.etcd.local import LocalKV
from controlplane.pb.etcd import rpc_pb2, rpc_pb2_grpc

__all__ = ["KVService"]


class _Terms(TypedDict):
    request_id: bytes
    born_index: int
    timeout_ms: int | None
    caller: Caller


class KVService(rpc_pb2_grpc.KVServicer):
    """etcdserverpb.KV."""

    def __init__(self, kv: LocalKV, guard: LeaderGuard, authorizer: Authorizer) -> None:
        self._kv = kv
        self._guard = guard
        self._caller = authorizer.caller

    async def Range(self, request: rpc_pb2.RangeRequest, context: Context) -> rpc_pb2.RangeResponse:  # noqa: N802
        self._guard.check(context, local_read=request.serializable)
        metrics.RANGE.inc()
        # A front that takes answers serialized already says so.
        read: Any = self._kv.range_pieces if getattr(context, "takes_pieces", False) else self._kv.range
        response: rpc_pb2.RangeResponse = await read(
            request, timeout_ms=timeout_ms_of(context), caller=self._caller(context)
        )
        return response

    async def Put(self, request: rpc_pb2.PutRequest, context: Context) -> rpc_pb2.PutResponse:  # noqa: N802
        self._guard.check(context)
        metrics.PUT.inc()
        return await self._kv.put(request, **await self._terms(context))

    async def DeleteRange(  # noqa: N802
        self, request: rpc_pb2.DeleteRangeRequest, context: Context
    ) -> rpc_pb2.DeleteRangeResponse:
        self._guard.check(context)
        metrics.DELETE.inc()
        return await self._kv.delete_range(request, **await self._terms(context))

    async def Txn(self, request: rpc_pb2.TxnRequest, context: Context) -> rpc_pb2.TxnResponse:  # noqa: N802
        self._guard.check(context)
        metrics.TXN.inc()
        return await self._kv.txn(request, **await self._terms(context))

    async def Compact(  # noqa: N802
        self, request: rpc_pb2.CompactionRequest, context: Context
    ) -> rpc_pb2.CompactionResponse:
        self._guard.check(context)
        return await self._kv.compact(request, timeout_ms=timeout_ms_of(context), caller=self._caller(context))

    async def _terms(self, context: Context) -> _Terms:
        """What a write's caller says beside it; whoever may try it again elsewhere is told how far the log is."""
        request_id = request_id_of(context)
        if request_id:
            await context.send_initial_metadata(((LOG_INDEX_KEY, str(self._kv.applied_index)),))
        return {
            "request_id": request_id,
            "born_index": born_index_of(context),
            "timeout_ms": timeout_ms_of(context),
            "caller": self._caller(context),
        }
