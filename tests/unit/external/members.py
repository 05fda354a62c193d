"""An etcd member that does as the test says, behind real gRPC on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from controlplane.base.clock import SystemClock
from controlplane.base.rand import SeededRand
from controlplane.external.config import StoreConfig
from controlplane.external.connection import Connection
from controlplane.external.kv import RemoteKV
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.etcd import rpc_pb2_grpc
from controlplane.transport.channel import new_channel

__all__ = ["Failure", "Member", "connected", "member"]

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Failure:
    """What a member answers instead: a status, or nothing at all (``hang``)."""

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    text: str = ""
    hang: bool = False


class Member(
    rpc_pb2_grpc.KVServicer,
    rpc_pb2_grpc.LeaseServicer,
    rpc_pb2_grpc.WatchServicer,
    rpc_pb2_grpc.AuthServicer,
    rpc_pb2_grpc.MaintenanceServicer,
):
    """``answers`` are used one by one, whatever is asked; then empty answers at revision 7. Each stream of ``streams``
    is what one Watch is told, ending in a failure if that is its last."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.streams: list[Sequence[e.WatchResponse | Failure]] = []
        self.version = "3.5.17"
        self.password = ""
        self.tokens = 0
        #: While it is not set, passwords are being checked.
        self.passwords_checked = asyncio.Event()
        self.passwords_checked.set()
        self.asked_for_tokens = 0
        self.asked_for_token = asyncio.Event()
        self.endpoint = ""

    async def _answer(self, request: Any, context: Context, empty: Any) -> Any:
        self.requests.append(request)
        self.metadata.append({str(k): str(v) for k, v in context.invocation_metadata() or ()})
        answer = self.answers.pop(0) if self.answers else empty
        if isinstance(answer, Failure):
            await self._fail(answer, context)
        return answer

    @staticmethod
    async def _fail(failure: Failure, context: Context) -> None:
        if failure.hang:
            await asyncio.Event().wait()
        await context.abort(failure.code, failure.text)

    async def Range(self, request: Any, context: Context) -> Any:
        return await self._answer(request, context, e.RangeResponse(header=_header()))

    async def Put(self, request: Any, context: Context) -> Any:
        return await self._answer(request, context, e.PutResponse(header=_header()))

    async def Txn(self, request: Any, context: Context) -> Any:
        done = e.TxnResponse(header=_header(), succeeded=True)
        if request.success and request.success[0].HasField("request_txn"):
            done.responses.add().response_txn.succeeded = True
            for _ in request.success[0].request_txn.success:
                done.responses[0].response_txn.responses.add().response_put.SetInParent()
        return await self._answer(request, context, done)

    async def LeaseGrant(self, request: Any, context: Context) -> Any:
        return await self._answer(request, context, e.LeaseGrantResponse(header=_header(), ID=request.ID, TTL=5))

    async def LeaseTimeToLive(self, request: Any, context: Context) -> Any:
        empty = e.LeaseTimeToLiveResponse(header=_header(), ID=request.ID, TTL=4, grantedTTL=5)
        return await self._answer(request, context, empty)

    async def Authenticate(self, request: Any, context: Context) -> Any:
        self.asked_for_tokens += 1
        self.asked_for_token.set()
        await self.passwords_checked.wait()
        if request.password != self.password:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "etcdserver: authentication failed, invalid user ID or password",
            )
        self.tokens += 1
        return e.AuthenticateResponse(header=_header(), token=f"token-{self.tokens}")

    async def Status(self, request: Any, context: Context) -> Any:
        return e.StatusResponse(header=_header(), version=self.version)

    async def Watch(  # type: ignore[override]
        self,
        requests: AsyncIterator[Any],
        context: Context,
    ) -> None:
        self.requests.append(await anext(aiter(requests)))
        self.metadata.append({str(k): str(v) for k, v in context.invocation_metadata() or ()})
        for response in self.streams.pop(0) if self.streams else ():
            if isinstance(response, Failure):
                await self._fail(response, context)
            await context.write(response)
        async for request in requests:
            self.requests.append(request)
            await context.write(e.WatchResponse(header=_header(50), watch_id=-1))


def _header(revision: int = 7) -> e.ResponseHeader:
    return e.ResponseHeader(cluster_id=1, member_id=2, revision=revision)


@asynccontextmanager
async def member(*answers: Any) -> AsyncIterator[Member]:
    """A member that listens."""
    made = Member(*answers)  # type: ignore[abstract] # the rest of the services is not asked for
    server = grpc.aio.server()
    for add in (
        rpc_pb2_grpc.add_KVServicer_to_server,
        rpc_pb2_grpc.add_LeaseServicer_to_server,
        rpc_pb2_grpc.add_WatchServicer_to_server,
        rpc_pb2_grpc.add_AuthServicer_to_server,
        rpc_pb2_grpc.add_MaintenanceServicer_to_server,
    ):
        add(made, server)
    made.endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with new_channel(made.endpoint) as channel:  # up before the test asks
            await channel.channel_ready()
        yield made
    finally:
        await server.stop(None)


@asynccontextmanager
async def connected(
    *endpoints: str, user: str = "", password: str = "", timeout_ms: int = 5_000, progress_every_s: float = 10.0
) -> AsyncIterator[RemoteKV]:
    """A RemoteKV that begins with the first endpoint."""
    clock, rand = SystemClock(), SeededRand(1)
    connection = Connection(StoreConfig(endpoints, user=user, password=password), clock=clock, rand=rand)
    while connection.pool.current != endpoints[0]:
        connection.pool.failed(connection.pool.current)
    try:
        yield RemoteKV(
            connection, clock=clock, rand=rand, default_timeout_ms=timeout_ms, progress_every_s=progress_every_s
        )
    finally:
        await connection.close()
