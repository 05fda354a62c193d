"""GrpcClient: the resource API over gRPC, on as many replicas as there are.

Owns the attempts of a call: which replica, how long, and when to go to the next. A replica that is dead, paused or
without a quorum costs a call at most one attempt timeout; a call fails only when its whole time is up. Writes are
repeated under one request id, so a write that is acknowledged happened once.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import grpc

from controlplane.base.clock import Clock, SystemClock
from controlplane.base.rand import Rand, SystemRand
from controlplane.client import metrics
from controlplane.client.endpoints import EndpointPool
from controlplane.client.interface import UnavailableError
from controlplane.client.retry import log_index_in, retry_unavailable
from controlplane.client.status import to_api_error
from controlplane.client.typed import TypedClient
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.pb.quarterdeck.v1.api_pb2_grpc import ResourcesStub
from controlplane.transport.channel import Credentials

__all__ = ["ATTEMPT_TIMEOUT_MS", "TIMEOUT_MS", "GrpcClient"]

#: One call, retries included.
TIMEOUT_MS = 10_000
#: One attempt on one replica. After each round over all replicas it doubles, so that a slow answer is not asked for
#: for ever in pieces too small for it.
ATTEMPT_TIMEOUT_MS = 1_000

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class GrpcClient(TypedClient):
    """An :class:`~controlplane.client.interface.ApiClient` over gRPC. Close it, or use it as a context manager.

    Args:
        endpoints: ``host:port`` of every replica; order does not matter.
        timeout_ms: a call's whole time, retries included.
        attempt_timeout_ms: one attempt's, the first time round.
        field_manager: who writes, for the record.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        timeout_ms: int = TIMEOUT_MS,
        attempt_timeout_ms: int = ATTEMPT_TIMEOUT_MS,
        field_manager: str = "",
        credentials: Credentials | None = None,
        clock: Clock | None = None,
        rand: Rand | None = None,
    ) -> None:
        rand = rand or SystemRand()
        self.pool = EndpointPool(endpoints, rand=rand, credentials=credentials)
        self._remote = _RemoteCalls(
            self.pool,
            timeout_s=timeout_ms / 1000,
            attempt_timeout_s=attempt_timeout_ms / 1000,
            clock=clock or SystemClock(),
            rand=rand,
        )
        super().__init__(self._remote, rand=rand, field_manager=field_manager)

    async def kinds(self) -> Sequence[api_pb2.Kind]:
        """The kinds the replica serves."""
        return (await self._remote.kinds(api_pb2.KindsRequest())).kinds

    async def logs(self, request: api_pb2.LogsRequest) -> AsyncIterator[bytes]:
        """A container's log, in pieces. Every replica is asked in turn until one begins to answer; a stream that breaks
        later raises UnavailableError, because where to go on is not known."""
        begun = False
        for remaining in reversed(range(len(self.pool.endpoints))):
            try:
                async with self._remote.stream("Logs", lambda stub: stub.Logs, request) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk.data
                return
            except UnavailableError:
                if begun or not remaining:
                    raise

    async def close(self) -> None:
        """Close all connections; calls in flight fail."""
        await self.pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


class _RemoteCalls:
    """``ResourceCalls`` over a pool of replicas."""

    def __init__(
        self, pool: EndpointPool, *, timeout_s: float, attempt_timeout_s: float, clock: Clock, rand: Rand
    ) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._attempt_timeout_s = attempt_timeout_s
        self._clock = clock
        self._rand = rand
        self._stubs: dict[str, tuple[grpc.aio.Channel, Any]] = {}
        #: A log index that a replica told with an earlier write; 0: none yet.
        self._heard_index = 0

    async def get(self, request: api_pb2.GetRequest) -> api_pb2.Object:
        return await self._call("Get", lambda stub: stub.Get, request)

    async def list(self, request: api_pb2.ListRequest) -> api_pb2.ListResponse:
        return await self._call("List", lambda stub: stub.List, request)

    async def create(self, request: api_pb2.CreateRequest) -> api_pb2.Object:
        return await self._call("Create", lambda stub: stub.Create, request, write=True)

    async def update(self, request: api_pb2.UpdateRequest) -> api_pb2.Object:
        return await self._call("Update", lambda stub: stub.Update, request, write=True)

    async def update_status(self, request: api_pb2.UpdateRequest) -> api_pb2.Object:
        return await self._call("UpdateStatus", lambda stub: stub.UpdateStatus, request, write=True)

    async def patch(self, request: api_pb2.PatchRequest) -> api_pb2.Object:
        return await self._call("Patch", lambda stub: stub.Patch, request, write=True)

    async def apply(self, request: api_pb2.ApplyRequest) -> api_pb2.ApplyResponse:
        return await self._call("Apply", lambda stub: stub.Apply, request, write=True)

    async def delete(self, request: api_pb2.DeleteRequest) -> api_pb2.Object:
        return await self._call("Delete", lambda stub: stub.Delete, request, write=True)

    async def bind(self, request: api_pb2.BindRequest) -> api_pb2.BindResponse:
        return await self._call("Bind", lambda stub: stub.Bind, request, write=True)

    async def evict(self, request: api_pb2.EvictRequest) -> api_pb2.Object:
        return await self._call("Evict", lambda stub: stub.Evict, request, write=True)

    async def kinds(self, request: api_pb2.KindsRequest) -> api_pb2.KindsResponse:
        return await self._call("Kinds", lambda stub: stub.Kinds, request)

    @asynccontextmanager
    async def watch(self, request: api_pb2.WatchRequest) -> AsyncIterator[AsyncIterator[api_pb2.WatchEvent]]:
        async with self.stream("Watch", lambda stub: stub.Watch, request) as events:
            yield events

    @asynccontextmanager
    async def stream(
        self,
        name: str,
        method: Callable[[Any], grpc.aio.UnaryStreamMultiCallable[RequestT, ResponseT]],
        request: RequestT,
    ) -> AsyncIterator[AsyncIterator[ResponseT]]:
        """A server's stream, from the current replica, once."""
        endpoint = self._pool.current
        call = method(self._stub(endpoint))(request)
        try:
            yield self._items(name, endpoint, call)
        finally:
            call.cancel()

    async def _items(self, name: str, endpoint: str, call: AsyncIterable[ResponseT]) -> AsyncIterator[ResponseT]:
        code = "OK"
        try:
            async for item in call:
                yield item
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            self._note_failure(endpoint, error)
            raise to_api_error(error, write=False) from error
        finally:
            metrics.REQUESTS.labels(code, name, endpoint).inc()

    async def _call(
        self,
        name: str,
        method: Callable[[Any], grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT]],
        request: RequestT,
        *,
        write: bool = False,
    ) -> ResponseT:
        heard_index, born_index = self._heard_index, 0

        async def attempt(remaining_s: float, number: int) -> ResponseT:
            nonlocal request, born_index
            if number and write:
                request = _retried(request, born_index or heard_index)
            endpoint = self._pool.current
            rounds = number // len(self._pool.endpoints)
            timeout_s = min(remaining_s, self._attempt_timeout_s * (1 << min(rounds, 16)))
            code = "OK"
            started = self._clock.monotonic()
            try:
                call = method(self._stub(endpoint))(request, timeout=timeout_s)
                answer = await call
                if write:
                    self._heard_index = log_index_in(await call.initial_metadata()) or self._heard_index
                return answer
            except grpc.aio.AioRpcError as error:
                code = error.code().name
                born_index = born_index or log_index_in(error.initial_metadata())
                self._note_failure(endpoint, error)
                raise to_api_error(error, write=write) from error
            finally:
                metrics.REQUESTS.labels(code, name, endpoint).inc()
                metrics.REQUEST_SECONDS.labels(name, endpoint).observe(self._clock.monotonic() - started)

        return await retry_unavailable(
            attempt, what=name, timeout_s=self._timeout_s, clock=self._clock, rand=self._rand
        )

    def _note_failure(self, endpoint: str, error: grpc.aio.AioRpcError) -> None:
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
            self._pool.failed(endpoint)

    def _stub(self, endpoint: str) -> Any:
        # mypy-protobuf types a stub by its channel; ours is always asyncio's.
        channel = self._pool.channel(endpoint)
        known = self._stubs.get(endpoint)
        if known is None or known[0] is not channel:
            known = self._stubs[endpoint] = (channel, ResourcesStub(channel))
        return known[1]


def _retried(request: RequestT, born_index: int) -> RequestT:
    """The same write for another replica, which cannot know when it was first tried."""
    again = copy.deepcopy(request)
    again.options.born_index = born_index  # type: ignore[attr-defined] # every write has options
    return again
