"""Sweepers: what is only in the way goes, a little at a time. Effects only; what goes is in cleanup_decide."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from controlplane.client.interface import ApiError, ConflictError, NotFoundError, UnavailableError
from controlplane.controllers.base import Controller, Environment
from controlplane.controllers.cleanup_decide import expired_events, finished_surplus
from controlplane.pb.k8s.core_v1_pb2 import Event, Pod

__all__ = ["EventSweeper", "PodSweeper"]

log = logging.getLogger("quarterdeck.cleanup")

_POD_SWEEP_S = 20.0
_EVENT_SWEEP_S = 30.0
#: Deletions of one sweep: clearing up must not crowd out the work of others.
_PODS_PER_SWEEP = 500
_EVENTS_PER_SWEEP = 200


class PodSweeper(Controller):
    """Removes finished pods beyond the limit."""

    name = "podgc"

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self._pods = env.caches.of(Pod)

    def keys(self) -> Iterable[str]:
        return ["pods"]

    async def reconcile(self, key: str) -> float | None:
        await self._remove(finished_surplus(self._pods.list())[:_PODS_PER_SWEEP])
        return _POD_SWEEP_S

    async def _remove(self, pods: Sequence[Pod]) -> None:
        await asyncio.gather(*(self._remove_one(p) for p in pods))

    async def _remove_one(self, pod: Pod) -> None:
        meta = pod.metadata
        try:
            await self.env.client.delete(Pod, meta.name, namespace=meta.namespace, uid=meta.uid, grace_period_s=0)
        except (NotFoundError, ConflictError):
            log.debug("pod gone already key=%s/%s", meta.namespace, meta.name)


class EventSweeper(Controller):
    """Removes Events nobody has seen happen for an hour. By wall clock: nothing depends on when exactly."""

    name = "eventttl"

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self._events = env.caches.of(Event)

    def keys(self) -> Iterable[str]:
        return ["events"]

    async def reconcile(self, key: str) -> float | None:
        old = expired_events(self._events.list(), self.env.clock.wall_ms() // 1000)
        await asyncio.gather(*(self._remove(e) for e in old[:_EVENTS_PER_SWEEP]))
        return 1.0 if len(old) > _EVENTS_PER_SWEEP else _EVENT_SWEEP_S

    async def _remove(self, event: Event) -> None:
        meta = event.metadata
        try:
            await self.env.client.delete(Event, meta.name, namespace=meta.namespace, uid=meta.uid)
        except NotFoundError:
            return
        except ApiError as error:
            if isinstance(error, ConflictError | UnavailableError):
                log.debug("event not removed this time name=%s reason=%s", meta.name, error)
                return
            raise
