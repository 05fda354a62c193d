"""SchedulingQueue: which pending pod is tried next, and which waits for what.

Owns the three queues a pod can be in: *active* (by priority, then first come), *backoff* (a try failed for a reason
that passes: a conflict, no quorum) and *unschedulable* (it fitted nowhere: waits for the cluster to change, or 30 s).
Knows nothing of nodes or the API. A pod is in one queue, or in flight, or not here.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from controlplane.base.clock import Clock
from controlplane.base.rand import Rand
from controlplane.scheduler import metrics
from controlplane.scheduler.plan import Candidate

__all__ = ["UNSCHEDULABLE_RETRY_S", "Queued", "SchedulingQueue"]

#: A pod that fitted nowhere is tried again after this long even if nothing seemed to change.
UNSCHEDULABLE_RETRY_S = 30.0
_BACKOFF_BASE_S = 0.05
_BACKOFF_MAX_S = 10.0

_ACTIVE, _BACKOFF, _UNSCHEDULABLE, _IN_FLIGHT = "active", "backoff", "unschedulable", "in flight"


@dataclass(slots=True)
class Queued:
    """A pending pod and its history."""

    candidate: Candidate
    arrived_s: float
    sequence: int
    attempts: int = 0
    where: str = _ACTIVE
    due_s: float = 0.0
    #: The cluster changed while it was being tried: what was found out may be out of date.
    stirred: bool = False

    @property
    def rank(self) -> tuple[int, int, int]:
        """Smaller goes first: priority, then age, then arrival."""
        pod = self.candidate.pod
        return -pod.spec.priority, pod.metadata.creationTimestamp.seconds, self.sequence


class SchedulingQueue:
    """See the module."""

    def __init__(self, clock: Clock, rand: Rand) -> None:
        self._clock = clock
        self._rand = rand
        self._pods: dict[str, Queued] = {}
        self._heap: list[tuple[tuple[int, int, int], str]] = []
        self._delayed: list[tuple[float, str]] = []
        self._sequence = 0
        self._count = {_ACTIVE: 0, _BACKOFF: 0, _UNSCHEDULABLE: 0, _IN_FLIGHT: 0}
        self._pending = {place: metrics.PENDING.labels(place) for place in (_ACTIVE, _BACKOFF, _UNSCHEDULABLE)}

    def __len__(self) -> int:
        """Pods that can be tried now."""
        return self._count[_ACTIVE]

    def __contains__(self, uid: str) -> bool:
        return uid in self._pods

    def add(self, candidate: Candidate, event: str = "PodAdd") -> None:
        """A pending pod appeared or changed. One that changed in what it asks for is tried anew."""
        uid = candidate.facts.uid
        known = self._pods.get(uid)
        if known is None:
            self._sequence += 1
            queued = Queued(candidate, self._clock.monotonic(), self._sequence, where="")
            self._pods[uid] = queued
            self._activate(uid, queued, event)
            return
        before, known.candidate = known.candidate, candidate
        changed = before.class_key != candidate.class_key or before.pod.spec.priority != candidate.pod.spec.priority
        if not changed:
            return
        if known.where == _IN_FLIGHT:
            known.stirred = True
        else:
            self._activate(uid, known, "PodUpdate")

    def candidate(self, uid: str) -> Candidate | None:
        """The pod as last seen."""
        queued = self._pods.get(uid)
        return None if queued is None else queued.candidate

    def remove(self, uid: str) -> None:
        """The pod is bound, or gone."""
        queued = self._pods.pop(uid, None)
        if queued is not None:
            self._enter(queued, "")

    def take(self, limit: int) -> list[Queued]:
        """The next pods to try, best first; each is in flight until it is put back or removed."""
        taken: list[Queued] = []
        while self._heap and len(taken) < limit:
            rank, uid = heapq.heappop(self._heap)
            queued = self._pods.get(uid)
            if queued is None or queued.where != _ACTIVE or queued.rank != rank:
                continue
            self._enter(queued, _IN_FLIGHT)
            queued.attempts += 1
            queued.stirred = False
            taken.append(queued)
        return taken

    def put_back_unschedulable(self, uid: str) -> None:
        """It fitted nowhere. If the cluster changed meanwhile it is tried again soon."""
        queued = self._pods.get(uid)
        if queued is None or queued.where != _IN_FLIGHT:
            return
        if queued.stirred:
            self.put_back_failed(uid)
        else:
            self._delay(uid, queued, _UNSCHEDULABLE, UNSCHEDULABLE_RETRY_S)

    def put_back_failed(self, uid: str) -> None:
        """Its try failed for a reason that passes: again after a back-off."""
        queued = self._pods.get(uid)
        if queued is None or queued.where != _IN_FLIGHT:
            return
        ceiling = min(_BACKOFF_MAX_S, _BACKOFF_BASE_S * (1 << min(queued.attempts, 20)))
        self._delay(uid, queued, _BACKOFF, ceiling * (0.5 + 0.5 * self._rand.random()))

    def put_back_now(self) -> None:
        """A term ended with pods in flight: all may be tried again at once."""
        for uid, queued in self._pods.items():
            if queued.where == _IN_FLIGHT:
                self._activate(uid, queued, "LeaderChange")

    def stir(self, event: str) -> None:
        """The cluster changed in a way that may make room: unschedulable pods are tried again."""
        for uid, queued in self._pods.items():
            if queued.where == _UNSCHEDULABLE:
                self._activate(uid, queued, event)
            elif queued.where == _IN_FLIGHT:
                queued.stirred = True

    def flush(self) -> float | None:
        """Activate what has waited long enough. Returns seconds until the next is due, or None."""
        now = self._clock.monotonic()
        while self._delayed:
            due, uid = self._delayed[0]
            queued = self._pods.get(uid)
            stale = queued is None or queued.due_s != due or queued.where not in (_BACKOFF, _UNSCHEDULABLE)
            if queued is None or stale:
                heapq.heappop(self._delayed)
                continue
            if due > now:
                return due - now
            heapq.heappop(self._delayed)
            self._activate(uid, queued, "BackoffComplete" if queued.where == _BACKOFF else "UnschedulableTimeout")
        return None

    # -- inside ------------------------------------------------------------------------------------------------------

    def _activate(self, uid: str, queued: Queued, event: str) -> None:
        self._enter(queued, _ACTIVE)
        heapq.heappush(self._heap, (queued.rank, uid))
        metrics.INCOMING.labels(_ACTIVE, event).inc()

    def _delay(self, uid: str, queued: Queued, where: str, delay_s: float) -> None:
        self._enter(queued, where)
        queued.due_s = self._clock.monotonic() + delay_s
        heapq.heappush(self._delayed, (queued.due_s, uid))
        metrics.INCOMING.labels(where, "ScheduleAttemptFailure").inc()

    def _enter(self, queued: Queued, where: str) -> None:
        for place, step in ((queued.where, -1), (where, 1)):
            if place in self._count:
                self._count[place] += step
                if place in self._pending:
                    self._pending[place].set(self._count[place])
        queued.where = where
