"""TypedClient: ApiClient on top of anything that answers the request messages of ``quarterdeck.v1.Resources``.

Owns the translation between kinds (Kubernetes' messages) and requests, and the request id of each logical write, drawn
once however often the write is tried. Knows neither gRPC nor the server: those are behind ``api.calls.ResourceCalls``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from controlplane.api.calls import ResourceCalls
from controlplane.base.rand import Rand
from controlplane.client.interface import ListResult, ObjT, WatchEvent, WatchType
from controlplane.client.kinds import info_of, unwrap, wrap
from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.pb.quarterdeck.v1 import api_pb2

__all__ = ["REQUEST_ID_BYTES", "TypedClient"]

REQUEST_ID_BYTES = 16


class TypedClient:
    """See ``interface.ApiClient``."""

    def __init__(self, calls: ResourceCalls, *, rand: Rand, field_manager: str = "") -> None:
        self._calls = calls
        self._rand = rand
        self._field_manager = field_manager

    def _options(self, fence: api_pb2.Fence | None = None, *, dry_run: bool = False) -> api_pb2.WriteOptions:
        return api_pb2.WriteOptions(
            request_id=self._rand.token(REQUEST_ID_BYTES),
            fence=fence,
            dry_run=dry_run,
            field_manager=self._field_manager,
        )

    async def get(self, kind: type[ObjT], name: str, *, namespace: str = "", serializable: bool = False) -> ObjT:
        request = api_pb2.GetRequest(
            resource=info_of(kind).resource, namespace=namespace, name=name, serializable=serializable
        )
        return unwrap(kind, await self._calls.get(request))

    async def list(
        self,
        kind: type[ObjT],
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 0,
        continue_token: str = "",
        serializable: bool = False,
    ) -> ListResult[ObjT]:
        request = api_pb2.ListRequest(
            resource=info_of(kind).resource,
            namespace=namespace,
            label_selector=label_selector,
            field_selector=field_selector,
            limit=limit,
            continue_token=continue_token,
            serializable=serializable,
        )
        page = await self._calls.list(request)
        return ListResult(
            items=[unwrap(kind, item) for item in page.items],
            resource_version=page.resource_version,
            continue_token=page.continue_token,
            remaining=page.remaining_item_count,
        )

    async def create(self, obj: ObjT, *, fence: api_pb2.Fence | None = None, dry_run: bool = False) -> ObjT:
        request = api_pb2.CreateRequest(object=wrap(obj), options=self._options(fence, dry_run=dry_run))
        return unwrap(type(obj), await self._calls.create(request))

    async def update(self, obj: ObjT, *, fence: api_pb2.Fence | None = None, dry_run: bool = False) -> ObjT:
        request = api_pb2.UpdateRequest(object=wrap(obj), options=self._options(fence, dry_run=dry_run))
        return unwrap(type(obj), await self._calls.update(request))

    async def update_status(self, obj: ObjT, *, fence: api_pb2.Fence | None = None) -> ObjT:
        request = api_pb2.UpdateRequest(object=wrap(obj), options=self._options(fence))
        return unwrap(type(obj), await self._calls.update_status(request))

    async def patch(
        self,
        kind: type[ObjT],
        name: str,
        patch: object,
        *,
        namespace: str = "",
        json_patch: bool = False,
        subresource: str = "",
        fence: api_pb2.Fence | None = None,
    ) -> ObjT:
        request = api_pb2.PatchRequest(
            resource=info_of(kind).resource,
            namespace=namespace,
            name=name,
            type=api_pb2.PatchRequest.JSON if json_patch else api_pb2.PatchRequest.MERGE,
            patch=json.dumps(patch).encode(),
            subresource=subresource,
            options=self._options(fence),
        )
        return unwrap(kind, await self._calls.patch(request))

    async def apply(
        self, manifest: dict[str, object], *, default_namespace: str = "default", dry_run: bool = False
    ) -> api_pb2.ApplyResponse:
        request = api_pb2.ApplyRequest(
            manifest=json.dumps(manifest).encode(),
            default_namespace=default_namespace,
            options=self._options(dry_run=dry_run),
        )
        return await self._calls.apply(request)

    async def delete(
        self,
        kind: type[ObjT],
        name: str,
        *,
        namespace: str = "",
        grace_period_s: int | None = None,
        propagation_policy: str = "",
        uid: str = "",
        resource_version: str = "",
        fence: api_pb2.Fence | None = None,
    ) -> ObjT:
        request = api_pb2.DeleteRequest(
            resource=info_of(kind).resource,
            namespace=namespace,
            name=name,
            grace_period_seconds=grace_period_s,
            propagation_policy=propagation_policy,
            uid=uid,
            resource_version=resource_version,
            options=self._options(fence),
        )
        return unwrap(kind, await self._calls.delete(request))

    @asynccontextmanager
    async def watch(
        self,
        kind: type[ObjT],
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str = "",
    ) -> AsyncIterator[AsyncIterator[WatchEvent[ObjT]]]:
        request = api_pb2.WatchRequest(
            resource=info_of(kind).resource,
            namespace=namespace,
            label_selector=label_selector,
            field_selector=field_selector,
            resource_version=resource_version,
            bookmarks=True,
        )
        async with self._calls.watch(request) as events:
            yield _typed_events(kind, events)

    async def bind(
        self, bindings: Sequence[api_pb2.Binding], *, fence: api_pb2.Fence | None = None
    ) -> Sequence[api_pb2.BindResult]:
        request = api_pb2.BindRequest(bindings=bindings, options=self._options(fence))
        return (await self._calls.bind(request)).results

    async def evict(self, name: str, *, namespace: str, grace_period_s: int | None = None) -> Pod:
        request = api_pb2.EvictRequest(
            namespace=namespace, name=name, grace_period_seconds=grace_period_s, options=self._options()
        )
        return unwrap(Pod, await self._calls.evict(request))


_TYPES = {
    api_pb2.WatchEvent.ADDED: WatchType.ADDED,
    api_pb2.WatchEvent.MODIFIED: WatchType.MODIFIED,
    api_pb2.WatchEvent.DELETED: WatchType.DELETED,
    api_pb2.WatchEvent.BOOKMARK: WatchType.BOOKMARK,
}


async def _typed_events(kind: type[ObjT], events: AsyncIterator[api_pb2.WatchEvent]) -> AsyncIterator[WatchEvent[ObjT]]:
    async for event in events:
        obj = unwrap(kind, event.object) if event.HasField("object") else None
        yield WatchEvent(_TYPES[event.type], obj, event.resource_version)
