"""Node lifecycle: makes Node objects say what the evidence says, and empties dead nodes.

Owns the loop and its effects; the decisions are ``nodelifecycle_decide``'s, the evidence the session table's. Runs on
the leader, whose table it is, and writes through the fenced client: a leader that was deposed without knowing condemns
nobody. Unlike other controllers it works on a beat, because silence makes no event.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from typing import Final

from controlplane.api.session_table import SessionTable
from controlplane.client.interface import ApiError, FencedError, NotFoundError
from controlplane.client.objects import node_is_ready
from controlplane.controllers import nodelifecycle_metrics as metrics
from controlplane.controllers.base import Controller, Environment
from controlplane.controllers.nodelifecycle_decide import (
    Decision,
    EvictPods,
    Health,
    LifecycleConfig,
    MarkNode,
    decide,
    marked,
    pods_to_evict,
)
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod

__all__ = ["NodeLifecycle"]

log = logging.getLogger("quarterdeck.nodelifecycle")

#: The one key: all nodes are judged together, for the brake.
_ALL: Final = "nodes"
_POD_INDEX: Final = "nodelifecycle/node"
_BEAT_S_MIN: Final = 0.1
_BEAT_S_MAX: Final = 0.5
_BEAT_S_PER_NODE: Final = 0.0001
#: A beat this much too late means that this process did not run, and so did not listen.
_LATE_S: Final = 0.5
#: Writes in flight; they meet in one log entry.
_PARALLEL: Final = 64
#: Pods of deleted Node objects are looked for this often, and must be found twice.
_ORPHAN_SCAN_S: Final = 5.0
_ZONE_LABEL: Final = "topology.kubernetes.io/zone"

_EVENTS: Final = {
    Health.ALIVE: ("Normal", "NodeReady"),
    Health.SUSPECT: ("Warning", "NodeSuspect"),
    Health.DEAD: ("Warning", "NodeNotReady"),
}


class NodeLifecycle(Controller):
    """See the module."""

    name = "nodelifecycle"

    def __init__(self, env: Environment, table: SessionTable, config: LifecycleConfig | None = None) -> None:
        super().__init__(env)
        self._table = table
        self._config = config or LifecycleConfig()
        self._nodes = env.caches.of(Node)
        self._pods = env.caches.of(Pod)
        self._pods.add_index(_POD_INDEX, lambda pod: [pod.spec.nodeName] if pod.spec.nodeName else [])
        self._nodes.on_change(self._node_changed)
        self._forget_term()

    def keys(self) -> Iterable[str]:
        return [_ALL]

    def on_lead(self) -> None:
        self._forget_term()

    def _forget_term(self) -> None:
        self._next_beat_s: float | None = None
        self._braked = False
        self._evicting: set[str] = set()
        self._tokens = float(self._config.evictions_burst)
        self._tokens_at_s = self.env.clock.monotonic()
        self._next_orphan_scan_s = 0.0
        self._orphaned_nodes: set[str] = set()

    def _node_changed(self, old: Node | None, new: Node | None) -> None:
        if new is None and old is not None:
            self._table.forget(old.metadata.name)

    async def reconcile(self, key: str) -> float | None:
        now_s = self.env.clock.monotonic()
        nodes = self._nodes.list()
        beat_s = min(_BEAT_S_MAX, max(_BEAT_S_MIN, len(nodes) * _BEAT_S_PER_NODE))
        late = self._next_beat_s is not None and now_s > self._next_beat_s + _LATE_S
        self._next_beat_s = None
        if late:
            log.warning("event=stalled: counting the silence of every node from now")
            self._table.arm(now_s)
        for node in nodes:
            self._table.expect(node.metadata.name, now_s)
        decision = decide(nodes, self._table.contact, now_s, self._config)
        self._note(decision, nodes)
        await self._mark([i for i in decision.intents if isinstance(i, MarkNode)])
        await self._evict([i for i in decision.intents if isinstance(i, EvictPods)], now_s)
        await self._remove_orphans(now_s)
        self._next_beat_s = self.env.clock.monotonic() + beat_s
        return beat_s

    # -- effects ---------------------------------------------------------------------------------------------------

    async def _mark(self, intents: Sequence[MarkNode]) -> None:
        await _all(self._mark_one(intent) for intent in intents)

    async def _mark_one(self, intent: MarkNode) -> None:
        node = self._nodes.get(intent.node)
        if node is None:
            return
        wanted = marked(node, intent.health, reason=intent.reason, evict=intent.evict, wall_ms=self.env.clock.wall_ms())
        if wanted is None:
            return
        log.info("event=node_marked node=%s health=%s reason=%s", intent.node, intent.health.value, intent.reason)
        try:
            # The condition first: it is what takes endpoints out of load balancing.
            if wanted.status != node.status:
                stored = await self.env.client.update_status(wanted)
                wanted.metadata.resourceVersion = stored.metadata.resourceVersion
            if wanted.spec != node.spec:
                await self.env.client.update(wanted)
        except FencedError:
            raise
        except ApiError as error:
            # The next beat decides again, on what is stored by then.
            log.info("event=mark_failed node=%s reason=%s", intent.node, error)
            return
        kind, reason = _EVENTS[intent.health]
        self.env.events.event(node, kind, reason, f"Node {intent.node}: {intent.reason}")

    async def _evict(self, intents: Sequence[EvictPods], now_s: float) -> None:
        self._evicting &= {intent.node for intent in intents}
        earned = (now_s - self._tokens_at_s) * self._config.evictions_per_s
        self._tokens = min(float(self._config.evictions_burst), self._tokens + earned)
        self._tokens_at_s = now_s
        doomed: list[tuple[Pod, str]] = []
        for intent in intents:
            pods = pods_to_evict(self._pods.by_index(_POD_INDEX, intent.node), intent.dead_for_s)
            if not pods:
                continue
            if intent.node not in self._evicting:
                if self._tokens < 1.0:
                    continue
                self._tokens -= 1.0
                self._evicting.add(intent.node)
            doomed.extend((pod, intent.cause.name.lower()) for pod in pods)
        await _all(self._delete(pod, "its node died", reason) for pod, reason in doomed)

    async def _delete(self, pod: Pod, why: str, reason: str) -> None:
        meta = pod.metadata
        try:
            # Grace 0: there is nobody to stop it gracefully. The uid: a pod of the same name may run elsewhere.
            await self.env.client.delete(Pod, meta.name, namespace=meta.namespace, grace_period_s=0, uid=meta.uid)
        except NotFoundError:
            return
        except FencedError:
            raise
        except ApiError as error:
            log.info("event=evict_failed pod=%s/%s reason=%s", meta.namespace, meta.name, error)
            return
        node = self._nodes.get(pod.spec.nodeName)
        metrics.EVICTIONS.labels(_zone(node)).inc()
        metrics.EVICTIONS_BY_REASON.labels(reason).inc()
        log.info("event=pod_evicted pod=%s/%s node=%s reason=%s", meta.namespace, meta.name, pod.spec.nodeName, why)
        self.env.events.event(pod, "Warning", "TaintManagerEviction", f"Deleted pod {meta.name}: {why}")

    async def _remove_orphans(self, now_s: float) -> None:
        """Delete pods of Node objects that are gone for good."""
        if now_s < self._next_orphan_scan_s:
            return
        self._next_orphan_scan_s = now_s + _ORPHAN_SCAN_S
        orphans = [p for p in self._pods.list() if p.spec.nodeName and self._nodes.get(p.spec.nodeName) is None]
        twice = [p for p in orphans if p.spec.nodeName in self._orphaned_nodes]
        self._orphaned_nodes = {p.spec.nodeName for p in orphans}
        await _all(self._delete(pod, "its node no longer exists", metrics.NODE_DELETED) for pod in twice)

    # -- telling ---------------------------------------------------------------------------------------------------

    def _note(self, decision: Decision, nodes: Sequence[Node]) -> None:
        sizes: Counter[str] = Counter(_zone(node) for node in nodes)
        down: Counter[str] = Counter(_zone(node) for node in nodes if not node_is_ready(node))
        for zone, size in sizes.items():
            metrics.NODES.labels(zone).set(size)
            metrics.NODES_DOWN.labels(zone).set(down[zone])
            metrics.ZONE_HEALTH.labels(zone).set(100.0 * (size - down[zone]) / size)
        metrics.BRAKE.set(1.0 if decision.brake else 0.0)
        if decision.brake == self._braked:
            return
        self._braked = decision.brake
        counts = f"{decision.down} of {decision.considered} nodes"
        if decision.brake:
            log.warning("event=eviction_brake_on down=%d considered=%d", decision.down, decision.considered)
            message = f"{counts} look dead at once: perhaps the control plane is cut off. No pod is evicted."
            reason = "EvictionBrakeOn"
        else:
            log.info("event=eviction_brake_off down=%d considered=%d", decision.down, decision.considered)
            message, reason = f"{counts} look dead: evicting again.", "EvictionBrakeOff"
        if nodes:
            # Events need an object; the cluster has none of its own, so the first node speaks for all.
            self.env.events.event(min(nodes, key=lambda n: n.metadata.name), "Warning", reason, message)


def _zone(node: Node | None) -> str:
    return node.metadata.labels.get(_ZONE_LABEL, "") if node is not None else ""


async def _all(work: Iterable[Awaitable[None]]) -> None:
    """Run everything, a bounded number at a time; raise the first failure when all have ended."""
    slots = asyncio.Semaphore(_PARALLEL)

    async def one(item: Awaitable[None]) -> None:
        async with slots:
            await item

    results = await asyncio.gather(*(one(item) for item in work), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
