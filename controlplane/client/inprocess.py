"""InProcessClient: the resource API inside the replica that serves it. Imported explicitly, by the composition root.

Same behaviour as over gRPC, without the wire: the same request ids, the same retries within the same time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from controlplane.api.calls import ResourceCalls
from controlplane.base.clock import Clock
from controlplane.base.rand import Rand
from controlplane.client.retry import retry_unavailable
from controlplane.client.typed import TypedClient
from controlplane.pb.quarterdeck.v1 import api_pb2

__all__ = ["InProcessClient"]

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

TIMEOUT_MS = 10_000


class InProcessClient(TypedClient):
    """An :class:`~controlplane.client.interface.ApiClient` over an API server of the same process."""

    def __init__(
        self, api: ResourceCalls, *, clock: Clock, rand: Rand, timeout_ms: int = TIMEOUT_MS, field_manager: str = ""
    ) -> None:
        calls = _RetriedCalls(api, timeout_s=timeout_ms / 1000, clock=clock, rand=rand)
        super().__init__(calls, rand=rand, field_manager=field_manager)


class _RetriedCalls:
    """``ResourceCalls`` that waits out a replica without a leader."""

    def __init__(self, api: ResourceCalls, *, timeout_s: float, clock: Clock, rand: Rand) -> None:
        self._api = api
        self._timeout_s = timeout_s
        self._clock = clock
        self._rand = rand

    async def get(self, request: api_pb2.GetRequest) -> api_pb2.Object:
        return await self._call("Get", self._api.get, request)

    async def list(self, request: api_pb2.ListRequest) -> api_pb2.ListResponse:
        return await self._call("List", self._api.list, request)

    async def create(self, request: api_pb2.CreateRequest) -> api_pb2.Object:
        return await self._call("Create", self._api.create, request)

    async def update(self, request: api_pb2.UpdateRequest) -> api_pb2.Object:
        return await self._call("Update", self._api.update, request)

    async def update_status(self, request: api_pb2.UpdateRequest) -> api_pb2.Object:
        return await self._call("UpdateStatus", self._api.update_status, request)

    async def patch(self, request: api_pb2.PatchRequest) -> api_pb2.Object:
        return await self._call("Patch", self._api.patch, request)

    async def apply(self, request: api_pb2.ApplyRequest) -> api_pb2.ApplyResponse:
        return await self._call("Apply", self._api.apply, request)

    async def delete(self, request: api_pb2.DeleteRequest) -> api_pb2.Object:
        return await self._call("Delete", self._api.delete, request)

    async def bind(self, request: api_pb2.BindRequest) -> api_pb2.BindResponse:
        return await self._call("Bind", self._api.bind, request)

    async def evict(self, request: api_pb2.EvictRequest) -> api_pb2.Object:
        return await self._call("Evict", self._api.evict, request)

    def watch(self, request: api_pb2.WatchRequest) -> AbstractAsyncContextManager[AsyncIterator[api_pb2.WatchEvent]]:
        return self._api.watch(request)

    async def _call(
        self, name: str, method: Callable[[RequestT], Awaitable[ResponseT]], request: RequestT
    ) -> ResponseT:
        async def attempt(remaining_s: float, number: int) -> ResponseT:
            return await method(request)

        return await retry_unavailable(
            attempt, what=name, timeout_s=self._timeout_s, clock=self._clock, rand=self._rand
        )
