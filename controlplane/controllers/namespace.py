"""Namespace controller: empties a namespace that is being deleted, then lets it go.

What is in a namespace is read from the API, not from caches: a namespace is let go only when a linearizable list of
every kind came back empty after it began to terminate (and the API refuses new objects from then on).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from controlplane.client.interface import ConflictError, NotFoundError
from controlplane.client.kinds import KINDS, KindInfo
from controlplane.controllers.base import Controller, Environment
from controlplane.pb.k8s.core_v1_pb2 import Namespace

__all__ = ["KUBERNETES_FINALIZER", "NamespaceController"]

log = logging.getLogger("quarterdeck.namespace")

#: The finalizer in ``spec.finalizers`` that keeps a namespace until it is empty.
KUBERNETES_FINALIZER = "kubernetes"

#: Objects that are on their way out (pods being stopped) are looked for again after this many seconds.
_RECHECK_S = 0.5
_PAGE = 500


class NamespaceController(Controller):
    """See the module."""

    name = "namespace"
    workers = 2

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self._namespaces = env.caches.of(Namespace)
        self._namespaces.on_change(self._changed)

    def keys(self) -> Iterable[str]:
        return [n.metadata.name for n in self._namespaces.list() if _terminating(n)]

    def _changed(self, old: Namespace | None, new: Namespace | None) -> None:
        if new is not None and _terminating(new):
            self.enqueue(new.metadata.name)

    async def reconcile(self, key: str) -> float | None:
        try:
            namespace = await self.env.client.get(Namespace, key)
        except NotFoundError:
            return None
        if not _terminating(namespace):
            return None
        left = 0
        for row in KINDS:
            if row.namespaced:
                left += await self._empty(row, key)
        if left:
            return _RECHECK_S
        await self._let_go(namespace)
        return None

    async def _empty(self, row: KindInfo, namespace: str) -> int:
        """Delete every object of a kind; returns how many are still there."""
        left = 0
        token = ""
        while True:
            page = await self.env.client.list(row.message, namespace=namespace, limit=_PAGE, token=token)
            for obj in page.items:
                left += await self._delete(row, obj)
            token = page.continue_token
            if not token:
                return left

    async def _delete(self, row: KindInfo, obj: Any) -> int:
        meta = obj.metadata
        if meta.HasField("deletionTimestamp"):
            return 1
        try:
            await self.env.client.delete(row.message, meta.name, namespace=meta.namespace, uid=meta.uid)
        except (NotFoundError, ConflictError):
            log.debug("gone or replaced meanwhile kind=%s key=%s/%s", row.kind, meta.namespace, meta.name)
        return 1

    async def _let_go(self, namespace: Namespace) -> None:
        """Drop our finalizer; with the last one gone the API removes the namespace."""
        if KUBERNETES_FINALIZER not in namespace.spec.finalizers:
            return
        namespace.spec.finalizers.remove(KUBERNETES_FINALIZER)
        try:
            await self.env.client.update(namespace)
        except NotFoundError:
            log.debug("namespace gone already name=%s", namespace.metadata.name)
        log.info("namespace emptied name=%s", namespace.metadata.name)


def _terminating(namespace: Namespace) -> bool:
    return namespace.metadata.HasField("deletionTimestamp")
