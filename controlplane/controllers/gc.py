"""Garbage collector: objects go with their owners. Effects only; the rules are in gc_decide.

It knows every kind. Keys are ``resource|namespace/name``. A cache that lags only makes it look twice: before anything
is deleted for want of an owner, that owner is asked for at the API.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from controlplane.client.caches import Cache
from controlplane.client.interface import NotFoundError
from controlplane.client.kinds import KINDS, KindInfo, info_for_resource
from controlplane.client.objects import key_of, split_key
from controlplane.controllers.base import Controller, Environment
from controlplane.controllers.gc_decide import (
    FOREGROUND,
    ORPHAN,
    Delete,
    DropFinalizer,
    DropOwners,
    OwnerState,
    decide_dependent,
    decide_owner,
)
from controlplane.controllers.indexes import BY_OWNER
from controlplane.pb.k8s.meta_v1_pb2 import ObjectMeta, OwnerReference

__all__ = ["GarbageCollector"]

log = logging.getLogger("quarterdeck.gc")

_BY_KIND = {(row.api_version, row.kind): row for row in KINDS}


def _key(row: KindInfo, obj: Any) -> str:
    return f"{row.resource}|{key_of(obj)}"


class GarbageCollector(Controller):
    """See the module."""

    name = "garbagecollector"
    workers = 16

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self._caches: dict[str, Cache[Any]] = {row.resource: env.caches.of(row.message) for row in KINDS}
        for row in KINDS:
            self._caches[row.resource].on_change(self._handler(row))

    def keys(self) -> Iterable[str]:
        for row in KINDS:
            for obj in self._caches[row.resource].list():
                if self._needs_work(obj.metadata):
                    yield _key(row, obj)

    # -- what wakes it -----------------------------------------------------------------------------------------------

    def _handler(self, row: KindInfo) -> Callable[[Any, Any], None]:
        def changed(old: Any, new: Any) -> None:
            if new is not None:
                if self._needs_work(new.metadata):
                    self.enqueue(_key(row, new))
                if old is None or not _same_owners(old.metadata, new.metadata):
                    self._wake_waiting_owners(new.metadata if old is None else old.metadata)
            elif old is not None:
                for dependent_row, dependent in self._dependents(old.metadata.uid):
                    self.enqueue(_key(dependent_row, dependent))
                self._wake_waiting_owners(old.metadata)

        return changed

    def _needs_work(self, meta: ObjectMeta) -> bool:
        """Deleting with a finalizer of ours, or with an owner that is not simply there."""
        if meta.HasField("deletionTimestamp"):
            return FOREGROUND in meta.finalizers or ORPHAN in meta.finalizers
        return any(self._cached_state(meta, ref) is not OwnerState.PRESENT for ref in meta.ownerReferences)

    def _wake_waiting_owners(self, meta: ObjectMeta) -> None:
        for ref in meta.ownerReferences:
            row, owner = self._owner(meta, ref)
            if row is not None and owner is not None and owner.metadata.HasField("deletionTimestamp"):
                self.enqueue(_key(row, owner))

    def _dependents(self, uid: str) -> Iterable[tuple[KindInfo, Any]]:
        for row in KINDS:
            for obj in self._caches[row.resource].by_index(BY_OWNER, uid):
                yield row, obj

    def _owner(self, meta: ObjectMeta, ref: OwnerReference) -> tuple[KindInfo | None, Any]:
        """(kind of the owner, None if unknown here; the cached owner with that very uid, if any)."""
        row = _BY_KIND.get((ref.apiVersion, ref.kind))
        if row is None:
            return None, None
        owner = self._caches[row.resource].get(ref.name, meta.namespace if row.namespaced else "")
        return row, owner if owner is not None and owner.metadata.uid == ref.uid else None

    def _cached_state(self, meta: ObjectMeta, ref: OwnerReference) -> OwnerState:
        row, owner = self._owner(meta, ref)
        if row is None:
            return OwnerState.PRESENT
        return OwnerState.GONE if owner is None else _state(owner)

    # -- what it does ------------------------------------------------------------------------------------------------

    async def reconcile(self, key: str) -> float | None:
        resource, _, object_key = key.partition("|")
        row = info_for_resource(resource)
        namespace, name = split_key(object_key)
        obj = self._caches[resource].get(name, namespace)
        if obj is None:
            return None
        meta: ObjectMeta = obj.metadata
        if meta.HasField("deletionTimestamp"):
            await self._settle_owner(row, obj)
            return None
        owners = [(ref, await self._state_of(meta, ref)) for ref in meta.ownerReferences]
        verdict = decide_dependent(meta, owners, has_dependents=any(True for _ in self._dependents(meta.uid)))
        if isinstance(verdict, Delete):
            await self._delete(row, meta, verdict.propagation_policy)
        elif isinstance(verdict, DropOwners):
            await self._drop_owners(row, obj, verdict.uids)
        return None

    async def _state_of(self, meta: ObjectMeta, ref: OwnerReference) -> OwnerState:
        """As cached, but absence is believed only from the API itself."""
        state = self._cached_state(meta, ref)
        row = _BY_KIND.get((ref.apiVersion, ref.kind))
        if state is not OwnerState.GONE or row is None:
            return state
        try:
            owner = await self.env.client.get(row.message, ref.name, namespace=meta.namespace if row.namespaced else "")
        except NotFoundError:
            return OwnerState.GONE
        return _state(owner) if owner.metadata.uid == ref.uid else OwnerState.GONE

    async def _settle_owner(self, row: KindInfo, owner: Any) -> None:
        meta = owner.metadata
        dependents = list(self._dependents(meta.uid))
        if ORPHAN in meta.finalizers:
            for dependent_row, dependent in dependents:
                await self._drop_owners(dependent_row, dependent, frozenset({meta.uid}))
            dependents = []
        elif FOREGROUND in meta.finalizers:
            for dependent_row, dependent in dependents:
                self.enqueue(_key(dependent_row, dependent))
        verdict = decide_owner(meta, [d.metadata for _, d in dependents])
        if isinstance(verdict, DropFinalizer):
            changed = row.message()
            changed.CopyFrom(owner)
            changed.metadata.finalizers.remove(verdict.finalizer)
            await self._update(row, changed)

    async def _delete(self, row: KindInfo, meta: ObjectMeta, propagation_policy: str) -> None:
        log.info("collecting kind=%s namespace=%s name=%s", row.kind, meta.namespace, meta.name)
        try:
            await self.env.client.delete(
                row.message,
                meta.name,
                namespace=meta.namespace,
                uid=meta.uid,
                resource_version=meta.resourceVersion,
                propagation_policy=propagation_policy,
            )
        except NotFoundError:
            log.debug("gone already kind=%s name=%s", row.kind, meta.name)

    async def _drop_owners(self, row: KindInfo, obj: Any, uids: frozenset[str]) -> None:
        changed = row.message()
        changed.CopyFrom(obj)
        kept = [ref for ref in obj.metadata.ownerReferences if ref.uid not in uids]
        del changed.metadata.ownerReferences[:]
        changed.metadata.ownerReferences.extend(kept)
        await self._update(row, changed)

    async def _update(self, row: KindInfo, obj: Any) -> None:
        try:
            await self.env.client.update(obj)
        except NotFoundError:
            log.debug("gone already kind=%s name=%s", row.kind, obj.metadata.name)


def _state(owner: Any) -> OwnerState:
    meta: ObjectMeta = owner.metadata
    waiting = meta.HasField("deletionTimestamp") and FOREGROUND in meta.finalizers
    return OwnerState.WAITING if waiting else OwnerState.PRESENT


def _same_owners(a: ObjectMeta, b: ObjectMeta) -> bool:
    return {r.uid for r in a.ownerReferences} == {r.uid for r in b.ownerReferences}
