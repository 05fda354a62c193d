"""ApiServer: the resource API as async calls on a KVStore. Any replica's serves any request.

Owns the way of a request through the rules (``registry``, ``lifecycle``) to one guarded transaction (``objects``); no
state of its own besides its parts. Knows no gRPC (``service``) and no Raft (the KVStore is all it sees).

Writes read without a quorum round first, because the transaction compares what was read; an answer that would rest on
such a read alone (an error, "nothing to change") is given only after a linearizable one.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from controlplane.api import lifecycle, storage
from controlplane.api.addresses import DEFAULT_SERVICE_CIDR, AddressPlan, ServiceAddresses
from controlplane.api.binding import bind
from controlplane.api.errors import AlreadyExistsError, ApiError, ConflictError, NotFoundError, UnavailableError
from controlplane.api.listing import Page, list_page
from controlplane.api.manifests import Manifest, applied, patched
from controlplane.api.objects import Committed, ObjectStore, Stored, attempt_id, delete_op, put_op
from controlplane.api.registry import KINDS, Kind, kind_of_field, kind_of_resource
from controlplane.api.selectors import parse_selectors
from controlplane.api.watching import open_watch, parse_resource_version
from controlplane.base.clock import Clock, SystemClock
from controlplane.base.errors import Code
from controlplane.base.limits import OBJECT_BYTES_MAX
from controlplane.base.rand import Rand, SeededRand, SystemRand
from controlplane.pb.etcd import rpc_pb2 as etcd
from controlplane.pb.k8s.core_v1_pb2 import Namespace, Node, Pod
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.store.kv import KVStore

__all__ = ["ApiServer", "LogSource"]

_log = logging.getLogger("quarterdeck.api")

#: Times one write is tried against concurrent writers before the client is told to try again.
_ATTEMPTS_MAX: Final = 16
_NAMESPACES: Final = kind_of_resource("namespaces")
_PODS: Final = kind_of_resource("pods")
_NODES: Final = kind_of_resource("nodes")


class LogSource(Protocol):
    """Where container logs come from: the agent of the pod's node."""

    def logs(self, request: api_pb2.LogsRequest, pod: Pod, node: Node) -> AsyncIterator[api_pb2.LogChunk]:
        """The log, chunk by chunk. Raises ApiError."""
        ...


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a write left behind. ``changed`` is False when there was nothing to do."""

    obj: Any
    changed: bool


@dataclass(frozen=True, slots=True)
class _Step:
    """A change, ready for its transaction. ``obj`` is the new state; ``gone``: the last one."""

    obj: Any
    op: etcd.RequestOp
    plan: AddressPlan
    gone: bool
    unchanged: bool


#: Next state from the stored one. Raises ApiError; called anew for each attempt.
_Change = Callable[[Any], Any]


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
        self._rand = rand or SystemRand()
        self._addresses = ServiceAddresses(kv, self._rand, service_cidr)
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
        stored = await self._read(kind, request.namespace, request.name, serializable=request.serializable)
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
        pod: Pod = (await self._read(_PODS, request.namespace, request.pod)).message()
        names = [c.name for c in (*pod.spec.containers, *pod.spec.initContainers)]
        if request.container and request.container not in names:
            raise _bad(f"container {request.container} is not valid for pod {request.pod}; it has: {', '.join(names)}")
        if not request.container and len(pod.spec.containers) > 1:
            raise _bad(f"a container name must be specified for pod {request.pod}, choose one of: {', '.join(names)}")
        if not pod.spec.nodeName:
            raise _bad(f'pod "{request.pod}" does not have a host assigned yet')
        node: Node = (await self._read(_NODES, "", pod.spec.nodeName)).message()
        asked = api_pb2.LogsRequest()
        asked.CopyFrom(request)
        asked.container = request.container or names[0]
        async for chunk in self.logs_from.logs(asked, pod, node):
            yield chunk

    # -- writes ---------------------------------------------------------------------------------------------------

    async def create(self, request: api_pb2.CreateRequest) -> api_pb2.Object:
        """A new object. With ``generateName`` its name is made here."""
        kind, obj = _unwrap(request.object)
        return _wrap(kind, (await self._create(kind, obj, request.options)).obj)

    async def update(self, request: api_pb2.UpdateRequest) -> api_pb2.Object:
        """Everything but the status. A resource version, if set, must be the stored one."""
        kind, obj = _unwrap(request.object)
        return _wrap(kind, (await self._modify(kind, obj, request.options, lambda old: _next(kind, obj, old))).obj)

    async def update_status(self, request: api_pb2.UpdateRequest) -> api_pb2.Object:
        """The status alone. A resource version, if set, must be the stored one."""
        kind, obj = _unwrap(request.object)
        return _wrap(
            kind,
            (await self._modify(kind, obj, request.options, lambda old: lifecycle.merge_status(kind, obj, old))).obj,
        )

    async def patch(self, request: api_pb2.PatchRequest) -> api_pb2.Object:
        """A merge patch or a JSON patch, of everything but the status or of the status."""
        kind = kind_of_resource(request.resource)
        target = _named(kind, request.namespace, request.name)

        def change(old: Any) -> Any:
            new = patched(kind, old, request)
            if request.subresource == "status":
                return lifecycle.merge_status(kind, new, old)
            return _next(kind, new, old)

        return _wrap(kind, (await self._modify(kind, target, request.options, change)).obj)

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
        options.request_id = attempt_id(request.options.request_id, _ATTEMPTS_MAX)
        try:
            created = await self._create(kind, manifest.new(), options)
        except AlreadyExistsError:  # by another client, just now
            return await self._apply_change(manifest, request.options)
        return api_pb2.ApplyResponse(
            object=_wrap(kind, created.obj), outcome=api_pb2.ApplyResponse.CREATED, warnings=manifest.warnings
        )

    async def _apply_change(self, manifest: Manifest, options: api_pb2.WriteOptions) -> api_pb2.ApplyResponse:
        kind = manifest.kind
        result = await self._modify(
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

        return _wrap(kind, (await self._modify(kind, target, request.options, change)).obj)

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

    # -- the way of a write ---------------------------------------------------------------------------------------

    async def _create(self, kind: Kind, wanted: Any, options: api_pb2.WriteOptions) -> _Outcome:
        for attempt in range(_ATTEMPTS_MAX):
            request_id = attempt_id(options.request_id, attempt)
            obj = kind.message()
            obj.CopyFrom(wanted)
            # Under a request id the name and uid follow from it, so that a retry asks for the very same object.
            rand = SeededRand(request_id.hex()) if request_id else self._rand
            lifecycle.prepare_create(kind, obj, now_s=self._now_s(), rand=rand)
            meta = obj.metadata
            compare: dict[bytes, int] = {}
            home: Stored | None = None
            if kind.namespaced:
                home = await self._open_namespace(kind, meta.namespace, meta.name, serializable=attempt == 0)
                compare[storage.key_of(_NAMESPACES, "", meta.namespace)] = home.mod_revision
            plan = await self._plan(kind, obj, None)
            value, _ = self._encoded(kind, obj)
            if options.dry_run:
                if await self._store.get(kind, meta.namespace, meta.name) is not None:
                    raise _exists(kind, meta.name)
                return _Outcome(obj, True)
            key = storage.key_of(kind, meta.namespace, meta.name)
            result = await self._store.commit(
                {key: 0, **compare, **plan.compare},
                [put_op(key, value), *plan.ops],
                request_id=attempt_id(request_id, 0, b"create " + key),
                born_index=options.born_index,
                fence=_fence(options),
            )
            if isinstance(result, Committed):
                read_revision = home.read_revision if home is not None else 0
                return _Outcome(await self._written(kind, obj, result, read_revision), True)
            if result.found[key] and wanted.metadata.name:
                raise _exists(kind, meta.name)
            plan.refuse_taken(result.found)
        raise _contended(kind, wanted.metadata.name)

    async def _modify(self, kind: Kind, target: Any, options: api_pb2.WriteOptions, change: _Change) -> _Outcome:
        """Read, change, compare and write, until nobody came between.

        ``target`` names the object; its resource version, if set, must be the stored one.
        """
        namespace, name = target.metadata.namespace, target.metadata.name
        wanted_revision = parse_resource_version(target.metadata.resourceVersion)
        fresh = options.dry_run
        commits = 0  # numbers the request ids: a retry of this write meets the same ones in the same order
        for _ in range(_ATTEMPTS_MAX):
            try:
                stored = await self._read(kind, namespace, name, serializable=not fresh)
                step = await self._prepare(kind, stored, change)
                if wanted_revision and wanted_revision != stored.mod_revision and not options.request_id:
                    raise lifecycle.conflict(kind, name)
            except ApiError as error:
                if fresh or isinstance(error, UnavailableError):
                    raise
                fresh = True
                continue
            expected = wanted_revision or stored.mod_revision
            if options.dry_run and expected != stored.mod_revision:
                raise lifecycle.conflict(kind, name)
            if options.dry_run or (step.unchanged and expected == stored.mod_revision):
                if fresh:
                    step.obj.metadata.resourceVersion = str(stored.mod_revision)
                    return _Outcome(step.obj, not step.unchanged)
                fresh = True
                continue
            key = storage.key_of(kind, namespace, name)
            result = await self._store.commit(
                {key: expected, **step.plan.compare},
                [step.op, *step.plan.ops],
                request_id=attempt_id(options.request_id, commits, b"change " + key),
                born_index=options.born_index,
                fence=_fence(options),
            )
            if isinstance(result, Committed):
                if step.gone:
                    step.obj.metadata.resourceVersion = str(stored.mod_revision)
                    return _Outcome(step.obj, True)
                return _Outcome(await self._written(kind, step.obj, result, stored.read_revision), True)
            step.plan.refuse_taken(result.found)
            if wanted_revision:
                raise lifecycle.conflict(kind, name)
            commits += 1
            fresh = True
        raise _contended(kind, name)

    async def _prepare(self, kind: Kind, stored: Stored, change: _Change) -> _Step:
        """What a change makes of a stored object."""
        old = stored.message()
        new = change(old)
        gone = lifecycle.is_gone(kind, new)
        plan = await self._plan(kind, None if gone else new, old)
        key = storage.key_of(kind, old.metadata.namespace, old.metadata.name)
        if gone:
            return _Step(new, delete_op(key), plan, gone=True, unchanged=False)
        value, raw = self._encoded(kind, new)
        return _Step(new, put_op(key, value), plan, gone=False, unchanged=raw == stored.raw)

    async def _written(self, kind: Kind, obj: Any, committed: Committed, read_revision: int) -> Any:
        """The object as stored. A revision not after our read tells that this is a retry of a write that had taken
        effect before: the answer is then what that one stored."""
        if 0 < committed.revision <= read_revision:
            meta = obj.metadata
            earlier = await self._store.get(kind, meta.namespace, meta.name, revision=committed.revision)
            if earlier is not None:
                return earlier.message()
        obj.metadata.resourceVersion = str(committed.revision)
        return obj

    async def _read(self, kind: Kind, namespace: str, name: str, *, serializable: bool = False) -> Stored:
        if not name:
            raise _bad("name: Required value: which object?")
        if kind.namespaced and not namespace:
            raise _bad(f"namespace: Required value: {kind.resource} live in namespaces")
        stored = await self._store.get(kind, namespace, name, serializable=serializable)
        if stored is None:
            raise NotFoundError(Code.NOT_FOUND, f'{kind.qualified} "{name}" not found', reason="NotFound")
        return stored

    async def _open_namespace(self, kind: Kind, namespace: str, name: str, *, serializable: bool) -> Stored:
        """The namespace a new object goes to. An error is never based on a stale read."""
        stored = await self._store.get(_NAMESPACES, "", namespace, serializable=serializable)
        terminating = stored is not None and stored.message().metadata.HasField("deletionTimestamp")
        if stored is not None and not terminating:
            return stored
        if serializable:
            return await self._open_namespace(kind, namespace, name, serializable=False)
        if stored is None:
            raise NotFoundError(Code.NOT_FOUND, f'namespaces "{namespace}" not found', reason="NotFound")
        raise ApiError(
            Code.PERMISSION_DENIED,
            f'{kind.qualified} "{name}" is forbidden: unable to create new content in namespace {namespace} '
            "because it is being terminated",
            reason="Forbidden",
        )

    async def _plan(self, kind: Kind, new: Any, old: Any) -> AddressPlan:
        if kind.kind != "Service":
            return AddressPlan()
        return await self._addresses.plan(new, old)

    def _encoded(self, kind: Kind, obj: Any) -> tuple[bytes, bytes]:
        value, raw = storage.encode(kind, obj)
        if len(value) > OBJECT_BYTES_MAX:
            raise ApiError(
                Code.INVALID_ARGUMENT,
                f'{kind.qualified} "{obj.metadata.name}" is too large: {len(value)} bytes, at most {OBJECT_BYTES_MAX}',
                reason="RequestEntityTooLarge",
            )
        return value, raw

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


def _fence(options: api_pb2.WriteOptions) -> api_pb2.Fence | None:
    return options.fence if options.HasField("fence") and options.fence.key else None


def _bad(message: str) -> ApiError:
    return ApiError(Code.INVALID_ARGUMENT, message, reason="BadRequest")


def _exists(kind: Kind, name: str) -> AlreadyExistsError:
    return AlreadyExistsError(Code.ALREADY_EXISTS, f'{kind.qualified} "{name}" already exists', reason="AlreadyExists")


def _contended(kind: Kind, name: str) -> ConflictError:
    return lifecycle.conflict(kind, name, f"too many concurrent writers ({_ATTEMPTS_MAX} attempts); try again")
