"""FakeApi: an in-memory, stateful ApiClient for tests of anything written against ``controlplane.client``.

It keeps what the real API promises and controllers rely on: resource versions and conflicts, uids, generations,
finalizers, graceful deletion of bound pods, terminating namespaces, label and field selectors, watches that resume,
bindings, and the leader's fence. It does not validate or default.

Faults are methods: ``fail_next(verb, error)``, ``expire_watches()``, ``break_watches()``. ``writes`` records what was
asked for, as ``(verb, Kind, key)``. Set ``fence_revision`` to the mod revision of the present leader to have fences
checked.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from controlplane.base.clock import ManualClock
from controlplane.base.errors import Code
from controlplane.client.interface import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    ExpiredError,
    FencedError,
    ListResult,
    NotFoundError,
    ObjT,
    UnavailableError,
    WatchEvent,
    WatchType,
)
from controlplane.client.kinds import info_of
from controlplane.pb.k8s.core_v1_pb2 import Namespace, Pod
from controlplane.pb.quarterdeck.v1 import api_pb2

__all__ = ["FakeApi"]

_Key = tuple[str, str]


class FakeApi:
    """See the module. One instance is one cluster; every client of it sees the same objects."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock()
        self.revision = 0
        self.fence_revision: int | None = None
        self.writes: list[tuple[str, str, str]] = []
        self._objects: dict[type[Any], dict[_Key, Any]] = defaultdict(dict)
        self._history: list[tuple[int, type[Any], WatchType, Any, Any]] = []
        self._compacted = 0
        self._faults: dict[str, deque[ApiError]] = defaultdict(deque)
        self._changed = asyncio.Event()
        self._watch_epoch = 0
        self._uids = 0

    # -- faults ----------------------------------------------------------------------------------------------------

    def fail_next(self, verb: str, error: ApiError, times: int = 1) -> None:
        """The next calls of ``verb`` (get, list, create, update, update_status, patch, delete, bind) raise."""
        self._faults[verb].extend([error] * times)

    def break_watches(self) -> None:
        """Every open watch ends with UnavailableError."""
        self._watch_epoch += 1
        self._changed.set()

    def expire_watches(self) -> None:
        """History is compacted: watches from an old revision raise ExpiredError."""
        self._compacted = self.revision
        self.break_watches()

    def _meet(self, verb: str) -> None:
        if self._faults[verb]:
            raise self._faults[verb].popleft()

    # -- direct access for tests -------------------------------------------------------------------------------------

    def put(self, obj: ObjT) -> ObjT:
        """Store an object as it is, status included, whatever was there; returns a copy with its metadata filled."""
        key = self._key(obj)
        old = self._objects[type(obj)].get(key)
        new = _copy(obj)
        if old is None:
            self._admit(new)
        else:
            new.metadata.uid = old.metadata.uid
        self._store(new, WatchType.ADDED if old is None else WatchType.MODIFIED, old)
        return _copy(new)

    def peek(self, kind: type[ObjT], name: str, namespace: str = "") -> ObjT | None:
        """The stored object, or None."""
        found = self._objects[kind].get((namespace, name))
        return None if found is None else _copy(found)

    def all(self, kind: type[ObjT]) -> list[ObjT]:
        """Every stored object of a kind, by key."""
        return [_copy(o) for _, o in sorted(self._objects[kind].items())]

    def remove(self, kind: type[ObjT], name: str, namespace: str = "") -> None:
        """Delete at once, whatever finalizers and grace say: what a node does to a pod it has stopped."""
        self._erase(self._objects[kind][namespace, name])

    # -- reads -----------------------------------------------------------------------------------------------------

    async def get(self, kind: type[ObjT], name: str, *, namespace: str = "", serializable: bool = False) -> ObjT:
        await asyncio.sleep(0)
        self._meet("get")
        return _copy(self._find(kind, name, namespace))

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
        await asyncio.sleep(0)
        self._meet("list")
        items = [
            o for _, o in sorted(self._objects[kind].items()) if _selected(o, namespace, label_selector, field_selector)
        ]
        start = int(continue_token or 0)
        page = items[start : start + limit] if limit else items[start:]
        end = start + len(page)
        more = len(items) - end
        return ListResult([_copy(o) for o in page], str(self.revision), str(end) if more else "", more)

    # -- writes ----------------------------------------------------------------------------------------------------

    async def create(self, obj: ObjT, *, fence: api_pb2.Fence | None = None, dry_run: bool = False) -> ObjT:
        await self._begin("create", obj, fence)
        new = _copy(obj)
        if not new.metadata.name:
            self._uids += 1
            new.metadata.name = f"{new.metadata.generateName}{self._uids:05x}"
        if self._key(new) in self._objects[type(obj)]:
            raise AlreadyExistsError(
                Code.ALREADY_EXISTS, f'{_kind(obj)} "{new.metadata.name}" already exists', reason="AlreadyExists"
            )
        self._admit(new)
        if not dry_run:
            self._store(new, WatchType.ADDED, None)
        return _copy(new)

    async def update(self, obj: ObjT, *, fence: api_pb2.Fence | None = None, dry_run: bool = False) -> ObjT:
        await self._begin("update", obj, fence)
        old = self._find(type(obj), obj.metadata.name, obj.metadata.namespace)
        self._check_version(obj, old)
        new = _copy(obj)
        after: Any = new
        before: Any = old
        if hasattr(before, "status"):
            after.status.CopyFrom(before.status)
        after.metadata.generation = before.metadata.generation
        if hasattr(before, "spec") and after.spec != before.spec:
            after.metadata.generation += 1
        return _copy(old) if dry_run else self._replace(new, old)

    async def update_status(self, obj: ObjT, *, fence: api_pb2.Fence | None = None) -> ObjT:
        await self._begin("update_status", obj, fence)
        old = self._find(type(obj), obj.metadata.name, obj.metadata.namespace)
        self._check_version(obj, old)
        new = _copy(old)
        after: Any = new
        wanted: Any = obj
        after.status.CopyFrom(wanted.status)
        return self._replace(new, old)

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
        raise NotImplementedError("FakeApi has no JSON codec: controllers write with update")

    async def apply(
        self, manifest: dict[str, object], *, default_namespace: str = "default", dry_run: bool = False
    ) -> api_pb2.ApplyResponse:
        raise NotImplementedError("FakeApi has no JSON codec")

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
        probe = kind()
        probe.metadata.name, probe.metadata.namespace = name, namespace
        await self._begin("delete", probe, fence)
        old = self._find(kind, name, namespace)
        if uid and old.metadata.uid != uid:
            raise _conflict(f"uid is {old.metadata.uid}, not {uid}")
        if resource_version and old.metadata.resourceVersion != resource_version:
            raise _conflict("the object has been modified")
        new = _copy(old)
        for policy, finalizer in (("Foreground", "foregroundDeletion"), ("Orphan", "orphan")):
            if propagation_policy == policy and finalizer not in new.metadata.finalizers:
                new.metadata.finalizers.append(finalizer)
        if not self._must_linger(new, grace_period_s):
            self._erase(old)
            return _copy(old)
        if not new.metadata.HasField("deletionTimestamp"):
            new.metadata.deletionTimestamp.seconds = self.clock.wall_ms() // 1000
            if isinstance(new, Pod):
                new.metadata.deletionGracePeriodSeconds = 30 if grace_period_s is None else grace_period_s
            if isinstance(new, Namespace):
                new.status.phase = "Terminating"
        elif new == old:
            return _copy(old)
        self._store(new, WatchType.MODIFIED, old)
        return _copy(new)

    async def bind(
        self, bindings: Sequence[api_pb2.Binding], *, fence: api_pb2.Fence | None = None
    ) -> Sequence[api_pb2.BindResult]:
        await asyncio.sleep(0)
        self._meet("bind")
        self._check_fence(fence)
        return [self._bind_one(b) for b in bindings]

    async def evict(self, name: str, *, namespace: str, grace_period_s: int | None = None) -> Pod:
        return await self.delete(Pod, name, namespace=namespace, grace_period_s=grace_period_s)

    def _bind_one(self, binding: api_pb2.Binding) -> api_pb2.BindResult:
        self.writes.append(("bind", "Pod", f"{binding.namespace}/{binding.name}"))
        old = self._objects[Pod].get((binding.namespace, binding.name))
        if old is None or (binding.uid and old.metadata.uid != binding.uid):
            return api_pb2.BindResult(reason="NotFound", message="no such pod")
        if old.metadata.HasField("deletionTimestamp"):
            return api_pb2.BindResult(reason="Deleted", message="being deleted")
        if old.spec.nodeName:
            return api_pb2.BindResult(reason="AlreadyBound", message=f"bound to {old.spec.nodeName}")
        if binding.resource_version and old.metadata.resourceVersion != binding.resource_version:
            return api_pb2.BindResult(reason="Conflict", message="the pod has been modified")
        new = _copy(old)
        new.spec.nodeName = binding.node_name
        kept = [c for c in new.status.conditions if c.type != "PodScheduled"]
        del new.status.conditions[:]
        new.status.conditions.extend(kept)
        new.status.conditions.add(type="PodScheduled", status="True")
        self._store(new, WatchType.MODIFIED, old)
        return api_pb2.BindResult(bound=True)

    # -- watch -----------------------------------------------------------------------------------------------------

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
        yield self._events(kind, (namespace, label_selector, field_selector), resource_version)

    async def _events(
        self, kind: type[ObjT], selection: tuple[str, str, str], resource_version: str
    ) -> AsyncIterator[WatchEvent[ObjT]]:
        epoch = self._watch_epoch
        seen = int(resource_version or 0)
        if not resource_version:
            for obj in self.all(kind):
                if _selected(obj, *selection):
                    yield WatchEvent(WatchType.ADDED, obj, obj.metadata.resourceVersion)
            seen = self.revision
            yield WatchEvent(WatchType.BOOKMARK, None, str(seen))
        while True:
            if seen < self._compacted:
                raise ExpiredError(Code.OUT_OF_RANGE, "required revision has been compacted", reason="Expired")
            for revision, of_kind, kind_of_change, obj, old in list(self._history):
                if revision <= seen or of_kind is not kind:
                    continue
                event = _filtered(kind_of_change, obj, old, selection)
                if event is not None:
                    yield WatchEvent(event, _copy(obj), str(revision))
            if self.revision > seen:
                seen = self.revision
                yield WatchEvent(WatchType.BOOKMARK, None, str(seen))
            if epoch != self._watch_epoch:
                raise UnavailableError(Code.UNAVAILABLE, "watch broken by the test")
            if seen == self.revision:
                self._changed.clear()
                await self._changed.wait()

    # -- inside ----------------------------------------------------------------------------------------------------

    async def _begin(self, verb: str, obj: Any, fence: api_pb2.Fence | None) -> None:
        await asyncio.sleep(0)
        self._meet(verb)
        self._check_fence(fence)
        namespace, name = self._key(obj)
        name = name or f"{obj.metadata.generateName}*"
        self.writes.append((verb, _kind(obj), f"{namespace}/{name}" if namespace else name))

    def _check_fence(self, fence: api_pb2.Fence | None) -> None:
        if fence is not None and self.fence_revision is not None and fence.mod_revision != self.fence_revision:
            raise FencedError(Code.FAILED_PRECONDITION, "another replica leads now", reason="Fenced")

    @staticmethod
    def _key(obj: Any) -> _Key:
        return obj.metadata.namespace, obj.metadata.name

    def _find(self, kind: type[ObjT], name: str, namespace: str) -> ObjT:
        found: ObjT | None = self._objects[kind].get((namespace, name))
        if found is None:
            raise NotFoundError(Code.NOT_FOUND, f'{kind.__name__} "{name}" not found', reason="NotFound")
        return found

    @staticmethod
    def _check_version(obj: Any, old: Any) -> None:
        if obj.metadata.resourceVersion and obj.metadata.resourceVersion != old.metadata.resourceVersion:
            raise _conflict("the object has been modified")
        if obj.metadata.uid and obj.metadata.uid != old.metadata.uid:
            raise _conflict("the object has been replaced")

    def _admit(self, new: Any) -> None:
        self._uids += 1
        new.metadata.uid = new.metadata.uid or f"uid-{self._uids}"
        new.metadata.generation = new.metadata.generation or 1
        if not new.metadata.HasField("creationTimestamp"):
            new.metadata.creationTimestamp.seconds = self.clock.wall_ms() // 1000
        if isinstance(new, Pod) and not new.status.phase:
            new.status.phase = "Pending"
        if isinstance(new, Namespace):
            new.status.phase = new.status.phase or "Active"
            if not new.spec.finalizers:
                new.spec.finalizers.append("kubernetes")

    @staticmethod
    def _must_linger(obj: Any, grace_period_s: int | None = None) -> bool:
        if obj.metadata.finalizers:
            return True
        if isinstance(obj, Namespace):
            return bool(obj.spec.finalizers)
        finished = isinstance(obj, Pod) and obj.status.phase in ("Succeeded", "Failed")
        return isinstance(obj, Pod) and bool(obj.spec.nodeName) and grace_period_s != 0 and not finished

    def _replace(self, new: ObjT, old: ObjT) -> ObjT:
        is_pod = type(new) is Pod  # a deleted pod goes when its node says so
        if new.metadata.HasField("deletionTimestamp") and not is_pod and not self._must_linger(new):
            self._erase(old)
            return _copy(new)
        new.metadata.resourceVersion = old.metadata.resourceVersion
        if new == old:
            return _copy(old)
        self._store(new, WatchType.MODIFIED, old)
        return _copy(new)

    def _store(self, new: Any, change: WatchType, old: Any) -> None:
        self.revision += 1
        new.metadata.resourceVersion = str(self.revision)
        self._objects[type(new)][self._key(new)] = new
        self._record(type(new), change, new, old)

    def _erase(self, old: Any) -> None:
        del self._objects[type(old)][self._key(old)]
        self.revision += 1
        last = _copy(old)
        last.metadata.resourceVersion = str(self.revision)
        self._record(type(old), WatchType.DELETED, last, old)

    def _record(self, kind: type[Any], change: WatchType, new: Any, old: Any) -> None:
        self._history.append((self.revision, kind, change, _copy(new), old))
        self._changed.set()


def _copy(obj: ObjT) -> ObjT:
    new = type(obj)()
    new.CopyFrom(obj)
    return new


def _kind(obj: Any) -> str:
    return info_of(type(obj)).kind


def _conflict(message: str) -> ConflictError:
    return ConflictError(Code.ABORTED, message, reason="Conflict")


def _selected(obj: Any, namespace: str, label_selector: str, field_selector: str) -> bool:
    if namespace and obj.metadata.namespace != namespace:
        return False
    for term in filter(None, label_selector.split(",")):
        key, op, value = _term(term)
        if op == "exists" and key not in obj.metadata.labels:
            return False
        if op != "exists" and (obj.metadata.labels.get(key) == value) != (op == "="):
            return False
    for term in filter(None, field_selector.split(",")):
        path, op, value = _term(term)
        found: Any = obj
        for part in path.split("."):
            found = getattr(found, part)
        if (str(found) == value) != (op == "="):
            return False
    return True


def _term(term: str) -> tuple[str, str, str]:
    for op in ("!=", "==", "="):
        if op in term:
            key, _, value = term.partition(op)
            return key.strip(), "!=" if op == "!=" else "=", value.strip()
    return term.strip(), "exists", ""


def _filtered(change: WatchType, obj: Any, old: Any, selection: tuple[str, str, str]) -> WatchType | None:
    """How a change looks to a watch with a selector: starting to match is ADDED, ceasing to match DELETED."""
    now = _selected(obj, *selection)
    if change is WatchType.ADDED or (change is WatchType.DELETED and old is not None):
        return change if (now if change is WatchType.ADDED else _selected(old, *selection)) else None
    before = old is not None and _selected(old, *selection)
    if now and before:
        return WatchType.MODIFIED
    if now:
        return WatchType.ADDED
    return WatchType.DELETED if before else None
