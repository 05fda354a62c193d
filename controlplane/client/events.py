"""EventRecorder: tells users what happened, as Kubernetes Events. Never blocks, never raises, never grows.

Owns what waits to be written and which Event object a repetition belongs to. The same thing said again about the same
object is a higher count, not another object. Events are help for people: when too many wait, or the API refuses, they
are dropped and counted, never retried for long.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from controlplane.base.clock import Clock
from controlplane.base.rand import Rand
from controlplane.client import metrics
from controlplane.client.interface import ApiClient, ApiError, NotFoundError
from controlplane.client.kinds import info_of
from controlplane.pb.k8s.core_v1_pb2 import Event

__all__ = ["EVENTS_WAITING_MAX", "EventRecorder"]

log = logging.getLogger("quarterdeck.events")

#: Different events that may wait to be written.
EVENTS_WAITING_MAX: Final = 1_000
#: Event objects remembered for counting up; older ones start a new object.
_REMEMBERED_MAX: Final = 4_096
_PARALLEL: Final = 8
#: Repetitions within this time are one write.
_GATHER_S: Final = 0.2
_MESSAGE_CHARS_MAX: Final = 1_024
_NAME_CHARS_MAX: Final = 253


@dataclass(frozen=True, slots=True)
class _Subject:
    """What an event says, about what: the identity under which repetitions are counted."""

    kind: str
    api_version: str
    namespace: str
    name: str
    uid: str
    type: str
    reason: str
    message: str


@dataclass(slots=True)
class _Waiting:
    count: int
    first_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class _Recorded:
    namespace: str
    name: str
    count: int


class EventRecorder:
    """Records events of one component; keep :meth:`run` running to have them written.

    Args:
        component: who speaks, such as ``deployment-controller``.
        host: where it runs: the replica's or node's name.
    """

    def __init__(self, client: ApiClient, component: str, *, host: str = "", clock: Clock, rand: Rand) -> None:
        self._client = client
        self._component = component
        self._host = host
        self._clock = clock
        self._rand = rand
        self._waiting: dict[_Subject, _Waiting] = {}
        self._recorded: OrderedDict[_Subject, _Recorded] = OrderedDict()
        self._some = asyncio.Event()

    def event(self, regarding: Any, event_type: str, reason: str, message: str) -> None:
        """Say something about an object. ``event_type``: Normal or Warning; ``reason``: one CamelCase word."""
        info = info_of(type(regarding))
        meta = regarding.metadata
        subject = _Subject(
            kind=info.kind,
            api_version=info.api_version,
            namespace=meta.namespace,
            name=meta.name,
            uid=meta.uid,
            type=event_type,
            reason=reason,
            message=message[:_MESSAGE_CHARS_MAX],
        )
        now_ms = self._clock.wall_ms()
        waiting = self._waiting.get(subject)
        if waiting is not None:
            waiting.count += 1
            waiting.last_ms = now_ms
        elif len(self._waiting) >= EVENTS_WAITING_MAX:
            metrics.EVENTS_DROPPED.inc()
        else:
            self._waiting[subject] = _Waiting(1, now_ms, now_ms)
            self._some.set()

    async def run(self) -> None:
        """Write what is recorded until cancelled."""
        while True:
            await self._some.wait()
            await self._clock.sleep(_GATHER_S)
            await self.flush()

    async def flush(self) -> None:
        """Write everything that waits now."""
        batch, self._waiting = self._waiting, {}
        self._some.clear()
        slots = asyncio.Semaphore(_PARALLEL)

        async def one(subject: _Subject, waiting: _Waiting) -> None:
            async with slots:
                await self._write(subject, waiting)

        async with asyncio.TaskGroup() as group:
            for subject, waiting in batch.items():
                group.create_task(one(subject, waiting))

    async def _write(self, subject: _Subject, waiting: _Waiting) -> None:
        try:
            recorded = self._recorded.pop(subject, None)
            if recorded is not None:
                recorded = await self._count_up(recorded, waiting)
            if recorded is None:
                recorded = await self._create(subject, waiting)
        except ApiError as error:
            metrics.EVENTS_DROPPED.inc()
            log.info("event=dropped reason=%s object=%s/%s error=%s", subject.reason, subject.kind, subject.name, error)
            return
        self._recorded[subject] = recorded
        while len(self._recorded) > _REMEMBERED_MAX:
            self._recorded.popitem(last=False)

    async def _count_up(self, recorded: _Recorded, waiting: _Waiting) -> _Recorded | None:
        count = recorded.count + waiting.count
        try:
            stored = await self._client.get(Event, recorded.name, namespace=recorded.namespace)
            stored.count = count
            stored.lastTimestamp.seconds = waiting.last_ms // 1000
            await self._client.update(stored)
        except NotFoundError:
            return None  # somebody deleted it: say it anew
        return _Recorded(recorded.namespace, recorded.name, count)

    async def _create(self, subject: _Subject, waiting: _Waiting) -> _Recorded:
        suffix = f".{self._rand.token(8).hex()}"
        event = Event()
        # Events of cluster-scoped objects live in the default namespace, as in Kubernetes.
        event.metadata.namespace = subject.namespace or "default"
        event.metadata.name = subject.name[: _NAME_CHARS_MAX - len(suffix)].rstrip(".-") + suffix
        involved = event.involvedObject
        involved.kind = subject.kind
        involved.apiVersion = subject.api_version
        involved.namespace = subject.namespace
        involved.name = subject.name
        involved.uid = subject.uid
        event.type = subject.type
        event.reason = subject.reason
        event.message = subject.message
        event.source.component = self._component
        event.source.host = self._host
        event.reportingComponent = self._component
        event.reportingInstance = self._host
        event.count = waiting.count
        event.firstTimestamp.seconds = waiting.first_ms // 1000
        event.lastTimestamp.seconds = waiting.last_ms // 1000
        await self._client.create(event)
        return _Recorded(event.metadata.namespace, event.metadata.name, waiting.count)
