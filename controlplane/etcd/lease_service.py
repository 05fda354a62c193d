"""etcdserverpb.Lease: the gRPC face of leases."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from controlplane.etcd.authorizer import Authorizer
from controlplane.etcd.context import Context, request_id_of, timeout_ms_of
from controlplane.etcd.guard import LeaderGuard
from controlplane.etcd.local import LocalKV
from controlplane.etcd.together import together
from controlplane.pb.etcd import rpc_pb2, rpc_pb2_grpc

__all__ = ["LeaseService"]

#: Renewals of one stream that wait for their quorum round together. More wait unread, which slows their sender.
_RENEWALS_PER_STREAM_MAX: Final = 128


class LeaseService(rpc_pb2_grpc.LeaseServicer):
    """etcdserverpb.Lease."""

    def __init__(self, kv: LocalKV, guard: LeaderGuard, authorizer: Authorizer) -> None:
        self._kv = kv
        self._guard = guard
        self._caller = authorizer.caller

    async def LeaseGrant(  # noqa: N802
        self, request: rpc_pb2.LeaseGrantRequest, context: Context
    ) -> rpc_pb2.LeaseGrantResponse:
        self._guard.check(context)
        return await self._kv.lease_grant(
            request, request_id=request_id_of(context), timeout_ms=timeout_ms_of(context), caller=self._caller(context)
        )

    async def LeaseRevoke(  # noqa: N802
        self, request: rpc_pb2.LeaseRevokeRequest, context: Context
    ) -> rpc_pb2.LeaseRevokeResponse:
        self._guard.check(context)
        return await self._kv.lease_revoke(
            request, request_id=request_id_of(context), timeout_ms=timeout_ms_of(context), caller=self._caller(context)
        )

    async def LeaseKeepAlive(  # type: ignore[override]  # noqa: N802  # writes to its context, which grpc allows
        self, requests: Any, context: Context
    ) -> None:
        """Answers come in the order of the requests; many requests share one quorum round."""
        self._guard.check(context, stream=True)
        caller = self._caller(context)
        renewals: asyncio.Queue[asyncio.Task[rpc_pb2.LeaseKeepAliveResponse] | None]
        renewals = asyncio.Queue(_RENEWALS_PER_STREAM_MAX)

        async def read() -> None:
            async for request in requests:
                await renewals.put(asyncio.create_task(self._kv.lease_keep_alive(request, caller=caller)))
            await renewals.put(None)

        async def answer() -> None:
            while (renewal := await renewals.get()) is not None:
                await context.write(await renewal)

        try:
            await self._guard.serve(context, together(read(), answer()))
        finally:
            while not renewals.empty():
                left = renewals.get_nowait()
                if left is not None:
                    left.cancel()

    async def LeaseTimeToLive(  # noqa: N802
        self, request: rpc_pb2.LeaseTimeToLiveRequest, context: Context
    ) -> rpc_pb2.LeaseTimeToLiveResponse:
        self._guard.check(context)
        return await self._kv.lease_time_to_live(
            request, timeout_ms=timeout_ms_of(context), caller=self._caller(context)
        )

    async def LeaseLeases(  # noqa: N802
        self, request: rpc_pb2.LeaseLeasesRequest, context: Context
    ) -> rpc_pb2.LeaseLeasesResponse:
        self._guard.check(context)
        return await self._kv.lease_leases(timeout_ms=timeout_ms_of(context), caller=self._caller(context))
