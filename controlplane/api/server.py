"""ApiServer: the resource API as async calls on a KVStore. Any replica's serves any request.

Owns what each request means: which object, which change of it by the rules (``registry``, ``lifecycle``), which answer.
A change is made by ``writes``; no state of its own besides its parts. Knows no gRPC (``service``) and no Raft (the
KVStore is all it sees).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol

from controlplane.api import lifecycle, storage
from controlplane.api.addresses import DEFAULT_SERVICE_CIDR, ServiceAddresses
from controlplane.api.binding import bind
from controlplane.api.errors import AlreadyExistsError, ApiError, NotFoundError, bad_request
from controlplane.api.listing import Page, list_page
from controlplane.api.manifests import Manifest, applied, patched
from controlplane.api.objects import ObjectStore, attempt_id
from controlplane.api.registry import KINDS, Kind, kind_of_field, kind_of_resource
from controlplane.api.selectors import parse_selectors
from controlplane.api.watching import open_watch
from controlplane.api.writes import ATTEMPTS_MAX, Writes
from controlplane.base.clock import Clock, SystemClock
from controlplane.base.errors import Code
from controlplane.base.rand import Rand, SystemRand
from controlplane.pb.k8s.core_v1_pb2 import Namespace, Node, Pod
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.store.kv import KVStore

__all__ = ["ApiServer", "LogSource"]

_PODS: Final = kind_of_resource("pods")
_NODES: Final = kind_of_resource("nodes")


class LogSource(Protocol):
    """Where container logs come from: the agent of the pod's node."""

    def logs(self, request: api_pb2.LogsRequest, pod: Pod, node: Node) -> AsyncIterator[api_pb2.LogChunk]:
        """The log, chunk by chunk. Raises ApiError."""
        ...


class ApiServer:
    """See the module; implements ``api.calls.ResourceCalls``. Every method raises ApiError and its children.

    Args:
        service_cidr: the range of service addresses; the same on all replicas.
        logs: None refuses log requests.
    """

    def __init__(
        self,
        kv: KVStore,
        *,
        clock: Clock | None = None,
        rand: Rand | None = None,
        service_cidr: str = DEFAULT_SERVICE_CIDR,
        logs: LogSource | None = None,
    ) -> None:
        self._store = ObjectStore(kv)
        self._kv = kv
        self._clock = clock or SystemClock()
        rand = rand or SystemRand()
        self._writes = Writes(self._store, ServiceAddresses(kv, rand, service_cidr), self._clock, rand)
        self.logs_from = logs

    async def bootstrap(self) -> None:
        """Create the namespaces every cluster has. Idempotent; the leader calls it."""
        for name in lifecycle.PROTECTED_NAMESPACES:
            namespace = Namespace()
            namespace.metadata.name = name
            try:
                await self.create(api_pb2.CreateRequest(object=api_pb2.Object(namespace=namespace)))
            except AlreadyExistsError:
                continue

    # -- reads ----------------------------------------------------------------------------------------------------

    async def get(self, request: api_pb2.GetRequest) -> api_pb2.Object:
        """One object."""
        return api_pb2.Object.FromString(await self.get_bytes(request))

    async def get_bytes(self, request: api_pb2.GetRequest) -> bytes:
        """:meth:`get` without parsing what is stored."""
        kind = kind_of_resource(request.resource)
        stored = await self._store.require(kind, request.namespace, request.name, serializable=request.serializable)
        return stored.object_bytes()

    async def list(self, request: api_pb2.ListRequest) -> api_pb2.ListResponse:
        """A page of objects, or all."""
        return api_pb2.ListResponse.FromString(await self.list_bytes(request))

    async def list_bytes(self, request: api_pb2.ListRequest) -> bytes:
        """:meth:`list` without parsing what is stored, unless a selector needs it."""
        kind = kind_of_resource(request.resource)
        page: Page = await list_page(
            self._kv,
            kind,
            request.namespace,
            matches=parse_selectors(kind, request.label_selector, request.field_selector),
            limit=request.limit,
            continue_token=request.continue_token,
            serializable=request.serializable,
        )
        items = [storage.object_bytes(kind, raw, revision) for raw, revision in page.items]
        return storage.list_response_bytes(items, page.revision, page.continue_token, page.remaining)

    @asynccontextmanager
    async def watch(self, request: api_pb2.WatchRequest) -> AsyncIterator[AsyncIterator[api_pb2.WatchEvent]]:
        """See ``ResourceCalls.watch``."""
        async with self.watch_bytes(request) as events:
            yield _parsed_events(events)

    def watch_bytes(self, request: api_pb2.WatchRequest) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """:meth:`watch`, as serialized ``WatchEvent``."""
        kind = kind_of_resource(request.resource)
        return open_watch(
            self._kv,
            kind,
            request.namespace,
            matches=parse_selectors(kind, request.label_selector, request.field_selector),
            resource_version=request.resource_version,
            bookmarks=request.bookmarks,
        )

    async def kinds(self, request: api_pb2.KindsRequest) -> api_pb2.KindsResponse:
        """The kinds served here."""
        return api_pb2.KindsResponse(
            kinds=[
                api_pb2.Kind(
                    api_version=kind.api_version,
                    kind=kind.kind,
                    resource=kind.resource,
                    short_names=kind.short_names,
                    namespaced=kind.namespaced,
                )
                for kind in KINDS
            ]
        )

    async def logs(self, request: api_pb2.LogsRequest) -> AsyncIterator[api_pb2.LogChunk]:
        """A container's log, from the node that runs it."""
        if self.logs_from is None:
            raise ApiError(Code.UNIMPLEMENTED, "this replica has no way to read logs", reason="NotImplemented")
        pod: Pod = (await self._store.require(_PODS, request.namespace, request.pod)).message()
        names = [c.name for c in (*pod.spec.containers, *pod.spec.initContainers)]
        if request.container and request.container not in names:
            raise bad_request(
                f"container {request.container} is not valid for pod {request.pod}; it has: {', '.join(names)}"
            )
        if not request.container and len(pod.spec.containers) > 1:
            raise bad_request(
                f"a container name must be specified for pod {request.pod}, choose one of: {', '.join(names)}"
            )
        if not pod.spec.nodeName:
            raise bad_request(f'pod "{request.pod}" does not have a host assigned yet')
        node: Node = (await self._store.require(_NODES, "", pod.spec.nodeName)).message()
        asked = api_pb2.LogsRequest()
        asked.CopyFrom(request)
        asked.container = request.container or names[0]
        async for chunk in self.logs_from.logs(asked, pod, node):
            yield chunk

    # -- writes ---------------------------------------------------------------------------------------------------

    async def create(self, request: api_pb2.CreateRequest) -> api_pb2.Object:
        """A new object. With ``generateName`` its name is made here."""
        kind, obj = _unwrap(request.object)
        return _wrap(kind, (await self._writes.create(kind, obj, request.options)).obj)

    async def update(self, request: api_pb2.UpdateRequest) -> api_pb2.Object:
        """Everything but the status. A resource version, if set, must be the stored one."""
        kind, obj = _unwrap(request.object)
        written = await self._writes.modify(kind, obj, request.options, lambda old: _next(kind, obj, old))
        return _wrap(kind, written.obj)

    async def update_status(self, request: api_pb2.UpdateRequest) -> api_pb2.Object:
        """The status alone. A resource version, if set, must be the stored one."""
        kind, obj = _unwrap(request.object)
        written = await self._writes.modify(
            kind, obj, request.options, lambda old: lifecycle.merge_status(kind, obj, old)
        )
        return _wrap(kind, written.obj)

    async def patch(self, request: api_pb2.PatchRequest) -> api_pb2.Object:
        """A merge patch or a JSON patch, of everything but the status or of the status."""
        kind = kind_of_resource(request.resource)
        target = _named(kind, request.namespace, request.name)

        def change(old: Any) -> Any:
            new = patched(kind, old, request)
            if request.subresource == "status":
                return lifecycle.merge_status(kind, new, old)
            return _next(kind, new, old)

        return _wrap(kind, (await self._writes.modify(kind, target, request.options, change)).obj)

    async def apply(self, request: api_pb2.ApplyRequest) -> api_pb2.ApplyResponse:
        """Create what the manifest says, or merge it into what is there."""
        manifest = applied(request.manifest, request.default_namespace)
        kind = manifest.kind
        try:
            return await self._apply_change(manifest, request.options)
        except NotFoundError:
            pass  # then it is created
        # A retry of the whole apply walks the same request ids: those of the change first, then those of the create.
        options = api_pb2.WriteOptions()
        options.CopyFrom(request.options)
        options.request_id = attempt_id(request.options.request_id, ATTEMPTS_MAX)
        try:
            created = await self._writes.create(kind, manifest.new(), options)
        except AlreadyExistsError:  # by another client, just now
            return await self._apply_change(manifest, request.options)
        return api_pb2.ApplyResponse(
            object=_wrap(kind, created.obj), outcome=api_pb2.ApplyResponse.CREATED, warnings=manifest.warnings
        )

    async def _apply_change(self, manifest: Manifest, options: api_pb2.WriteOptions) -> api_pb2.ApplyResponse:
        kind = manifest.kind
        result = await self._writes.modify(
            kind, manifest.message, options, lambda old: _next(kind, manifest.merged_into(old), old)
        )
        outcome = api_pb2.ApplyResponse.CONFIGURED if result.changed else api_pb2.ApplyResponse.UNCHANGED
        return api_pb2.ApplyResponse(object=_wrap(kind, result.obj), outcome=outcome, warnings=manifest.warnings)

    async def delete(self, request: api_pb2.DeleteRequest) -> api_pb2.Object:
        """Begin the end of an object; its last known state. See ``lifecycle.begin_deletion``."""
        kind = kind_of_resource(request.resource)
        target = _named(kind, request.namespace, request.name)
        target.metadata.resourceVersion = request.resource_version
        grace_s = request.grace_period_seconds if request.HasField("grace_period_seconds") else None

        def change(old: Any) -> Any:
            if request.uid and request.uid != old.metadata.uid:
                raise lifecycle.conflict(
                    kind,
                    request.name,
                    f"Precondition failed: UID in precondition: {request.uid}, UID in object meta: {old.metadata.uid}",
                )
            now_s = self._now_s()
            return lifecycle.begin_deletion(kind, old, grace_s=grace_s, policy=request.propagation_policy, now_s=now_s)

        return _wrap(kind, (await self._writes.modify(kind, target, request.options, change)).obj)

    async def evict(self, request: api_pb2.EvictRequest) -> api_pb2.Object:
        """Delete a pod gracefully, on behalf of a drain."""
        return await self.delete(
            api_pb2.DeleteRequest(
                resource=_PODS.resource,
                namespace=request.namespace,
                name=request.name,
                grace_period_seconds=request.grace_period_seconds if request.HasField("grace_period_seconds") else None,
                options=request.options,
            )
        )

    async def bind(self, request: api_pb2.BindRequest) -> api_pb2.BindResponse:
        """Pods to nodes; see ``api.binding``."""
        results = await bind(self._kv, request.bindings, options=request.options, now_s=self._now_s())
        return api_pb2.BindResponse(results=results)

    def _now_s(self) -> int:
        return self._clock.wall_ms() // 1000


async def _parsed_events(events: AsyncIterator[bytes]) -> AsyncIterator[api_pb2.WatchEvent]:
    async for event in events:
        yield api_pb2.WatchEvent.FromString(event)


def _next(kind: Kind, wanted: Any, old: Any) -> Any:
    new = kind.message()
    new.CopyFrom(wanted)
    lifecycle.merge_update(kind, new, old)
    return new


def _unwrap(wrapped: api_pb2.Object) -> tuple[Kind, Any]:
    kind = kind_of_field(wrapped.WhichOneof("kind"))
    return kind, getattr(wrapped, kind.field)


def _wrap(kind: Kind, obj: Any) -> api_pb2.Object:
    wrapped = api_pb2.Object()
    getattr(wrapped, kind.field).CopyFrom(obj)
    return wrapped


def _named(kind: Kind, namespace: str, name: str) -> Any:
    obj = kind.message()
    obj.metadata.namespace = namespace
    obj.metadata.name = name
    return obj
