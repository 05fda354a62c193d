"""Scheduler: gives every pending pod a node. The loop and its effects; the choice is ``plan``'s.

Owns the node table and the queue, which informers keep warm on every replica; pods are taken off the queue only while
the replica leads. A plan is optimistic: its pods are *assumed* placed at once, so the next plan counts them, and bound
in a batch with the versions that were read. What the store refuses (a pod changed, was deleted, or bound by another) is
un-assumed and tried again. What has an unknown outcome stays assumed and is tried again too: it is bound only once,
because a bound pod cannot be bound again.

Must not know raft, or how a term is won.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Sequence

from controlplane.base import failpoints
from controlplane.base.aio import wait_event
from controlplane.base.clock import Clock
from controlplane.base.rand import Rand
from controlplane.client.caches import Caches, EventSink
from controlplane.client.fenced import FencedClient, NotLeadingError
from controlplane.client.interface import ApiClient, ApiError, ConflictError, FencedError, NotFoundError
from controlplane.client.objects import key_of, node_serves, pod_is_finished
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.scheduler import metrics
from controlplane.scheduler.plan import Candidate, Failure, Placement, Strategy, plan
from controlplane.scheduler.queue import Queued, SchedulingQueue
from controlplane.scheduler.table import NodeTable

__all__ = ["DEFAULT_SCHEDULER", "Scheduler"]

log = logging.getLogger("quarterdeck.scheduler")

DEFAULT_SCHEDULER = "default-scheduler"

#: Pods in one plan and one bind: a plan must not hold up the loop, a bind must fit one log entry.
BATCH_MAX = 100
#: Binds on their way at a time. Bigger batches beat deeper pipelines.
_BINDS_IN_FLIGHT_MAX = 4
#: Look at the queue at least this often.
_IDLE_S = 30.0


class Scheduler:
    """See the module.

    Args:
        client: the API, unfenced.
        caches: shared informers of pods and nodes; the caller runs them.
        events: where to say why a pod does not fit.
        strategy: spread load, or pack it.
        name: the ``schedulerName`` of the pods it is for.
    """

    def __init__(
        self,
        client: ApiClient,
        caches: Caches,
        *,
        events: EventSink,
        clock: Clock,
        rand: Rand,
        strategy: Strategy = Strategy.LEAST_ALLOCATED,
        name: str = DEFAULT_SCHEDULER,
    ) -> None:
        self._client = FencedClient(client, self._fenced_off)
        self._caches = caches
        self._events = events
        self._clock = clock
        self._rand = rand
        self._strategy = strategy
        self._name = name
        self._table = NodeTable()
        self._queue = SchedulingQueue(clock, rand)
        self._wake = asyncio.Event()
        self._gated: set[str] = set()
        results = ("scheduled", "unschedulable", "error")
        self._attempts = {result: metrics.ATTEMPTS.labels(result, name) for result in results}
        self._durations = {result: metrics.ATTEMPT_DURATION.labels(result, name) for result in results}
        self._term: asyncio.Task[None] | None = None
        self._crash: BaseException | None = None
        self._crashed = asyncio.Event()
        caches.of(Node).on_change(self._node_changed)
        caches.of(Pod).on_change(self._pod_changed)

    # -- terms -------------------------------------------------------------------------------------------------------

    @property
    def leading(self) -> bool:
        """Whether pods are being bound by this replica."""
        return self._client.leading

    async def run(self) -> None:
        """Wait until cancelled, or raise what the scheduler crashed with (a bug: a leader must not go on without)."""
        await self._crashed.wait()
        if self._crash is not None:
            raise self._crash

    async def lead(self, fence: api_pb2.Fence) -> None:
        """Bind pods under this fence from now on. Returns at once."""
        await self.stop_leading()
        log.info("scheduler starts fence_revision=%d", fence.mod_revision)
        self._client.grant(fence)
        self._queue.put_back_now()
        self._term = asyncio.get_running_loop().create_task(self._schedule(fence.mod_revision), name="scheduler")
        self._term.add_done_callback(self._note_end)

    async def stop_leading(self) -> None:
        """Stop writing now, and return when nothing is in flight."""
        self._client.revoke()
        term, self._term = self._term, None
        if term is not None:
            term.cancel()
            await asyncio.wait([term])

    def _fenced_off(self) -> None:
        log.warning("scheduler fenced off: another replica leads")
        if self._term is not None:
            self._term.cancel()

    def _note_end(self, term: asyncio.Task[None]) -> None:
        if not term.cancelled() and term.exception() is not None:
            self._crash = term.exception()
            self._crashed.set()

    # -- what it hears -----------------------------------------------------------------------------------------------

    def _node_changed(self, old: Node | None, new: Node | None) -> None:
        if new is None:
            if old is not None:
                self._table.remove_node(old.metadata.name)
            return
        if old is not None and not _node_differs(old, new):
            return
        self._table.set_node(new)
        self._stir("NodeAdd" if old is None else "NodeUpdate")

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        if new is None:
            if old is not None:
                self._forget(old, "AssignedPodDelete")
            return
        uid = new.metadata.uid
        if pod_is_finished(new):
            self._forget(new, "AssignedPodDelete")
        elif new.spec.nodeName:
            self._queue.remove(uid)
            self._gated.discard(uid)
            counted = self._table.home_of(uid) == new.spec.nodeName
            if not (counted and old is not None and old.metadata.labels == new.metadata.labels):
                self._table.set_pod(new)  # else only its status changed, or the binding of an assumed pod is confirmed
        elif new.metadata.HasField("deletionTimestamp"):
            self._forget(new, "")
        elif (new.spec.schedulerName or DEFAULT_SCHEDULER) == self._name:
            self._pending(old, new)

    def _pending(self, old: Pod | None, new: Pod) -> None:
        uid = new.metadata.uid
        if new.spec.schedulingGates:
            self._gated.add(uid)
        else:
            self._gated.discard(uid)
            known = self._queue.candidate(uid)
            if known is not None and old is not None and old.spec == new.spec:
                self._queue.add(dataclasses.replace(known, pod=new))
            else:
                self._queue.add(Candidate.of(new))
            self._wake.set()
        metrics.PENDING.labels("gated").set(len(self._gated))

    def _forget(self, pod: Pod, event: str) -> None:
        uid = pod.metadata.uid
        self._queue.remove(uid)
        self._gated.discard(uid)
        if self._table.home_of(uid) is not None:
            self._table.remove_pod(uid)
            if event:
                self._stir(event)

    def _stir(self, event: str) -> None:
        self._queue.stir(event)
        self._wake.set()

    # -- what it does ------------------------------------------------------------------------------------------------

    async def _schedule(self, since_revision: int) -> None:
        await self._caches.wait_for(since_revision)
        binds: set[asyncio.Task[None]] = set()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    next_due_s = self._queue.flush()
                    batch = self._queue.take(BATCH_MAX)
                    if not batch:
                        self._wake.clear()
                        await wait_event(self._wake, self._clock, _IDLE_S if next_due_s is None else next_due_s)
                        continue
                    while len(binds) >= _BINDS_IN_FLIGHT_MAX:
                        await asyncio.wait(binds, return_when=asyncio.FIRST_COMPLETED)
                        binds = {b for b in binds if not b.done()}
                    binds.add(group.create_task(self._place(batch)))
                    await asyncio.sleep(0)  # the plan runs, then everything else gets its turn
        finally:
            self._queue.put_back_now()

    async def _place(self, batch: Sequence[Queued]) -> None:
        """Plan a batch, bind what has a place, explain what has none."""
        started = self._clock.monotonic()
        decided = plan(self._table.snapshot(), [q.candidate for q in batch], self._rand, self._strategy)
        metrics.ALGORITHM.observe(self._clock.monotonic() - started)
        for placement in decided.placements:
            self._table.assume(placement.candidate.facts, placement.node_name)
        for failure in decided.failures:
            self._set_aside(failure.candidate.facts.uid)
        by_uid = {q.candidate.facts.uid: q for q in batch}
        try:
            await self._bind(decided.placements, by_uid, started)
            for failure in decided.failures:
                self._observe("unschedulable", started)
                await self._explain(failure)
        except (FencedError, NotLeadingError) as error:
            log.info("scheduling stopped reason=%s", error)  # the term's end is on its way
        finally:
            self._wake.set()

    def _set_aside(self, uid: str) -> None:
        """It fits nowhere, unless what is in its way is its own place from a bind of unknown outcome."""
        if self._table.home_of(uid) is not None:
            self._table.remove_pod(uid)
            self._queue.put_back_failed(uid)
        else:
            self._queue.put_back_unschedulable(uid)

    async def _bind(self, placements: Sequence[Placement], queued: dict[str, Queued], started: float) -> None:
        if not placements:
            return
        bindings = [_binding(p) for p in placements]
        failpoints.hit("bind.before")
        bound: set[str] = set()
        unknown = False
        try:
            results = await self._client.bind(bindings)
            for placement, result in zip(placements, results, strict=True):
                uid = placement.candidate.facts.uid
                if result.bound:
                    bound.add(uid)
                    self._bound(placement, queued[uid], started)
                else:
                    log.info("not bound pod=%s reason=%s", key_of(placement.candidate.pod), result.reason)
        except ApiError as error:
            if isinstance(error, FencedError):
                raise
            unknown = error.unknown_outcome
            log.info("bind failed pods=%d code=%s reason=%s", len(placements), error.code.name, error)
        finally:
            for placement in placements:
                uid = placement.candidate.facts.uid
                if uid not in bound and uid in self._queue:
                    # Not bound as far as we know. If it was after all, its event takes it off the queue.
                    if not unknown:
                        self._table.remove_pod(uid)
                    self._queue.put_back_failed(uid)
                    self._observe("error", started)

    def _bound(self, placement: Placement, queued: Queued, started: float) -> None:
        pod = placement.candidate.pod
        self._queue.remove(placement.candidate.facts.uid)
        self._observe("scheduled", started)
        metrics.SLI_DURATION.labels(_attempts(queued.attempts)).observe(self._clock.monotonic() - queued.arrived_s)
        self._events.event(pod, "Normal", "Scheduled", f"Successfully assigned {key_of(pod)} to {placement.node_name}")

    def _observe(self, result: str, started: float) -> None:
        self._attempts[result].inc()
        self._durations[result].observe(self._clock.monotonic() - started)

    async def _explain(self, failure: Failure) -> None:
        """Say why a pod does not fit: an Event, and its PodScheduled condition if that says something else."""
        pod = failure.candidate.pod
        self._events.event(pod, "Warning", "FailedScheduling", failure.message)
        present = next((c for c in pod.status.conditions if c.type == "PodScheduled"), None)
        if present is not None and present.status == "False" and present.message == failure.message:
            return
        changed = Pod()
        changed.CopyFrom(pod)
        condition = next((c for c in changed.status.conditions if c.type == "PodScheduled"), None)
        if condition is None:
            condition = changed.status.conditions.add(type="PodScheduled")
        if condition.status != "False":
            condition.lastTransitionTime.seconds = self._clock.wall_ms() // 1000
        condition.status = "False"
        condition.reason = "Unschedulable"
        condition.message = failure.message
        try:
            await self._client.update_status(changed)
        except (ConflictError, NotFoundError) as error:
            log.debug("condition not written pod=%s reason=%s", key_of(pod), error)
        except ApiError as error:
            if isinstance(error, FencedError):
                raise
            log.info("condition not written pod=%s code=%s reason=%s", key_of(pod), error.code.name, error)


def _attempts(count: int) -> str:
    """Few label values: each attempt up to 15, then "16+"."""
    return str(count) if count < 16 else "16+"


def _binding(placement: Placement) -> api_pb2.Binding:
    meta = placement.candidate.pod.metadata
    return api_pb2.Binding(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        node_name=placement.node_name,
        resource_version=meta.resourceVersion,
    )


def _node_differs(old: Node, new: Node) -> bool:
    """Whether anything changed that decides where pods go: not heartbeats, not images."""
    return (
        old.spec != new.spec
        or node_serves(old) != node_serves(new)
        or old.metadata.labels != new.metadata.labels
        or old.status.allocatable != new.status.allocatable
        or old.status.capacity != new.status.capacity
    )
