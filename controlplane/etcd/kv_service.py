"""etcdserverpb.KV: the gRPC face of :class:`LocalKV`. Translates a call's context into arguments, nothing more."""

from __future__ import annotations

from controlplane.etcd import metrics
from controlplane.etcd.authorizer import Authorizer
from controlplane.etcd.context import Context, request_id_of, timeout_ms_of
from controlplane.etcd.guard import LeaderGuard
from controlplane.etcd.local import LocalKV
from controlplane.pb.etcd import rpc_pb2, rpc_pb2_grpc

__all__ = ["KVService"]


class KVService(rpc_pb2_grpc.KVServicer):
    """etcdserverpb.KV."""

    def __init__(self, kv: LocalKV, guard: LeaderGuard, authorizer: Authorizer) -> None:
        self._kv = kv
        self._guard = guard
        self._caller = authorizer.caller

    async def Range(self, request: rpc_pb2.RangeRequest, context: Context) -> rpc_pb2.RangeResponse:  # noqa: N802
        self._guard.check(context, local_read=request.serializable)
        metrics.RANGE.inc()
        return await self._kv.range(request, timeout_ms=timeout_ms_of(context), caller=self._caller(context))

    async def Put(self, request: rpc_pb2.PutRequest, context: Context) -> rpc_pb2.PutResponse:  # noqa: N802
        self._guard.check(context)
        metrics.PUT.inc()
        return await self._kv.put(
            request, request_id=request_id_of(context), timeout_ms=timeout_ms_of(context), caller=self._caller(context)
        )

    async def DeleteRange(  # noqa: N802
        self, request: rpc_pb2.DeleteRangeRequest, context: Context
    ) -> rpc_pb2.DeleteRangeResponse:
        self._guard.check(context)
        metrics.DELETE.inc()
        return await self._kv.delete_range(
            request, request_id=request_id_of(context), timeout_ms=timeout_ms_of(context), caller=self._caller(context)
        )

    async def Txn(self, request: rpc_pb2.TxnRequest, context: Context) -> rpc_pb2.TxnResponse:  # noqa: N802
        self._guard.check(context)
        metrics.TXN.inc()
        return await self._kv.txn(
            request, request_id=request_id_of(context), timeout_ms=timeout_ms_of(context), caller=self._caller(context)
        )

    async def Compact(  # noqa: N802
        self, request: rpc_pb2.CompactionRequest, context: Context
    ) -> rpc_pb2.CompactionResponse:
        self._guard.check(context)
        return await self._kv.compact(request, timeout_ms=timeout_ms_of(context), caller=self._caller(context))
