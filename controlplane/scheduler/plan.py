"""Planning: which node each pod goes to. Pure: a snapshot and pods in, placements and reasons out.

Pods are placed one after the other, in the order given, each on the best node left by those before it. Pods that every
rule treats alike form a *class*; a class's fit and score are computed for all nodes at once, and after a placement only
for the rows that changed. Constraints between pods (spread, pod affinity) are judged anew for every pod.

Must not know the API, queues or time. Ties are broken by the ``Rand`` handed in, so equal inputs give equal plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from controlplane.base.rand import Rand
from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.scheduler import filters
from controlplane.scheduler.resources import CPU, MEMORY, PODS
from controlplane.scheduler.table import Bools, Group, PodFacts, Snapshot
from controlplane.scheduler.topology import Relations

__all__ = ["Candidate", "Failure", "Placement", "Plan", "Strategy", "message_of", "plan"]

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]

_WEIGHT_RESOURCES = 1.0
_WEIGHT_SPREAD = 2.0
_WEIGHT_AFFINITY = 2.0
_WEIGHT_TAINTS = 3.0
_WEIGHT_RELATIONS = 2.0

UNSCHEDULABLE = "node(s) were unschedulable"
NOT_SERVING = "node(s) were not ready"
NODE_NAME = "node(s) didn't match the requested node name"
NODE_AFFINITY = "node(s) didn't match Pod's node affinity/selector"
NODE_PORTS = "node(s) didn't have free ports for the requested pod ports"
TOO_MANY_PODS = "Too many pods"


class Strategy(Enum):
    """Which nodes are better: the emptiest, so that load spreads, or the fullest, so that nodes can be given up."""

    LEAST_ALLOCATED = "LeastAllocated"
    MOST_ALLOCATED = "MostAllocated"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pod to place, read once. ``class_key`` is equal for pods that every rule here treats alike."""

    pod: Pod
    facts: PodFacts
    class_key: tuple[object, ...]

    @staticmethod
    def of(pod: Pod) -> Candidate:
        """Read a pod."""
        facts = PodFacts.of(pod)
        spec = pod.spec
        class_key = (
            facts.group,
            tuple(sorted(facts.requests.items())),
            facts.scoring_cpu,
            facts.scoring_memory,
            facts.host_ports,
            spec.nodeName,
            tuple(sorted(spec.nodeSelector.items())),
            spec.affinity.SerializeToString(deterministic=True),
            tuple(t.SerializeToString(deterministic=True) for t in spec.tolerations),
            tuple(c.SerializeToString(deterministic=True) for c in spec.topologySpreadConstraints),
        )
        return Candidate(pod, facts, class_key)


@dataclass(frozen=True, slots=True)
class Placement:
    """A pod has a place."""

    candidate: Candidate
    node_name: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A pod has none: nodes per reason. A node can count under several resources."""

    candidate: Candidate
    node_count: int
    reasons: Mapping[str, int]

    @property
    def message(self) -> str:
        return message_of(self.node_count, self.reasons)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to bind and what to explain, each in the order the pods came."""

    placements: tuple[Placement, ...]
    failures: tuple[Failure, ...]


def message_of(node_count: int, reasons: Mapping[str, int]) -> str:
    """Kubernetes' wording: ``0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.``"""
    if node_count == 0:
        return "no nodes available to schedule pods"
    parts = sorted(f"{count} {reason}" for reason, count in reasons.items() if count)
    return f"0/{node_count} nodes are available: {', '.join(parts)}."


def plan(
    snapshot: Snapshot,
    candidates: Iterable[Candidate],
    rand: Rand,
    strategy: Strategy = Strategy.LEAST_ALLOCATED,
) -> Plan:
    """Place the pods in order. Uses the snapshot up: take a new one for the next plan."""
    classes: dict[tuple[object, ...], _PodClass] = {}
    changed: list[int] = []
    placements: list[Placement] = []
    failures: list[Failure] = []
    for candidate in candidates:
        pod_class = classes.get(candidate.class_key)
        if pod_class is None:
            pod_class = classes[candidate.class_key] = _PodClass(snapshot, candidate, strategy)
        row = pod_class.best_row(changed, rand)
        if row is None:
            failures.append(Failure(candidate, snapshot.node_count, pod_class.reasons()))
            continue
        snapshot.place(candidate.facts, row)
        changed.append(row)
        placements.append(Placement(candidate, snapshot.names[row]))
    return Plan(tuple(placements), tuple(failures))


class _PodClass:
    """Fit and score of all nodes for pods that are alike."""

    def __init__(self, snapshot: Snapshot, candidate: Candidate, strategy: Strategy) -> None:
        self._snapshot = snapshot
        self._facts = candidate.facts
        self._strategy = strategy
        spec = candidate.pod.spec
        hard_taints, soft_taints = filters.untolerated(snapshot, spec.tolerations)
        self._eligible = filters.affinity_mask(snapshot, spec)
        self._static_failing: list[tuple[str, Bools]] = [
            (UNSCHEDULABLE, ~snapshot.schedulable),
            (NODE_NAME, ~filters.required_mask(snapshot, spec.nodeName)),
            *(
                (f"node(s) had untolerated taint {{{key}: {value}}}", nodes)
                for (key, value, _), nodes in hard_taints.items()
            ),
            (NOT_SERVING, ~snapshot.serving),
            (NODE_AFFINITY, ~self._eligible),
        ]
        self._static_fit = snapshot.present.copy()
        for _, nodes in self._static_failing:
            self._static_fit &= ~nodes
        self._static_score = _WEIGHT_AFFINITY * filters.preferred_affinity(snapshot, spec)
        top = soft_taints.max(initial=0.0)
        if top > 0:
            self._static_score += _WEIGHT_TAINTS * (100.0 - soft_taints * (100.0 / top))
        self._requests = [(name, amount) for name, amount in candidate.facts.requests.items() if amount > 0]
        self._relations = Relations(candidate.pod)
        self._siblings: list[Group] = []
        if candidate.facts.group.controller_uid and strategy is Strategy.LEAST_ALLOCATED:
            own = candidate.facts.group
            self._siblings = [g for g in snapshot.groups if g.controller_uid == own.controller_uid and g != own]
            self._siblings.append(own)
        self._per_cpu = _per_unit(snapshot.allocatable[CPU])
        self._per_memory = _per_unit(snapshot.allocatable[MEMORY])
        self._score: Floats = np.empty(0)
        self._tied: Rows = np.empty(0, dtype=np.intp)
        self._tied_left = 0
        self._tied_valid_at = -1
        self._seen = -1  # how many changes the score reflects; -1: not computed
        self._reasons: tuple[int, Mapping[str, int]] | None = None

    def best_row(self, changed: Sequence[int], rand: Rand) -> int | None:
        """The best node for the next pod of the class, or None if it fits nowhere. The caller places the pod there.

        ``changed`` lists the rows of all placements of the plan so far.
        """
        related = self._relations.matter(self._snapshot)
        if self._tied_left and len(changed) == self._tied_valid_at and not related:
            return self._draw(rand)
        if self._seen < 0 or len(changed) - self._seen > len(self._score) // 4:
            self._score = self._scores(np.arange(len(self._snapshot.present)))
        elif len(changed) > self._seen:
            rows = np.array(list(dict.fromkeys(changed[self._seen :])), dtype=np.intp)
            self._score[rows] = self._scores(rows)
        self._seen = len(changed)
        score = self._with_relations(self._score) if related else self._score
        top = score[score.argmax()]
        if top == -np.inf:
            return None
        self._tied = (score == top).nonzero()[0]
        self._tied_left = len(self._tied)
        self._tied_valid_at = len(changed)
        return self._draw(rand)

    def _draw(self, rand: Rand) -> int:
        """Take one of the equally good rows, at random.

        The rest stays equally good, and best, for the next pod of the class as long as only its own pods are placed:
        each makes its own row worse or leaves it as it was, and no other better. When full nodes are wanted a row can
        get better by being used, so there every pod looks anew.
        """
        k = rand.randint(0, self._tied_left - 1) if self._tied_left > 1 else 0
        row = int(self._tied[k])
        self._tied_left -= 1
        self._tied[k] = self._tied[self._tied_left]
        self._tied_valid_at += 1
        if self._strategy is Strategy.MOST_ALLOCATED:
            self._tied_left = 0
        return row

    def _scores(self, rows: Rows) -> Floats:
        """Score of these rows, minus infinity where the pod does not fit. Knows nothing of relations."""
        snapshot = self._snapshot
        fit = self._static_fit[rows]
        fit &= snapshot.used[PODS][rows] < snapshot.allocatable[PODS][rows]
        for name, amount in self._requests:
            if name not in snapshot.allocatable:
                return np.full(len(rows), -np.inf)
            fit &= snapshot.allocatable[name][rows] - snapshot.used[name][rows] >= amount
        if self._facts.host_ports:
            taken = filters.port_conflicts(snapshot, self._facts.host_ports)
            if taken is not None:
                fit &= ~taken[rows]
        cpu = (snapshot.scoring_cpu[rows] + self._facts.scoring_cpu) * self._per_cpu[rows]
        memory = (snapshot.scoring_memory[rows] + self._facts.scoring_memory) * self._per_memory[rows]
        fullness = (np.minimum(cpu, 1.0) + np.minimum(memory, 1.0)) * 50.0
        if self._strategy is Strategy.LEAST_ALLOCATED:
            fullness = 100.0 - fullness
        score = self._static_score[rows] + _WEIGHT_RESOURCES * fullness + _WEIGHT_SPREAD * self._spread(rows)
        return np.where(fit, score, -np.inf)

    def _spread(self, rows: Rows) -> Floats:
        """100 on a node without a pod of the same controller, 50 with one, 33 with two, ... (when load is to spread)"""
        together: Floats = np.ones(len(rows), dtype=np.float64)
        for group in self._siblings:
            column = self._snapshot.groups.get(group)
            if column is not None:
                together += column[rows]
        return np.divide(100.0, together, out=together)

    def _with_relations(self, score: Floats) -> Floats:
        verdict = self._relations.judge(self._snapshot, self._eligible)
        related = score if verdict.score is None else score + _WEIGHT_RELATIONS * verdict.score
        for _, nodes in verdict.failing:
            related = np.where(nodes, -np.inf, related)
        return related

    def reasons(self) -> Mapping[str, int]:
        """Why the pod fits nowhere: each node counts under the first rule that refuses it."""
        if self._reasons is not None and self._reasons[0] == self._seen:
            return self._reasons[1]
        snapshot = self._snapshot
        left = snapshot.present.copy()
        counts: dict[str, int] = {}

        def strike(reason: str, nodes: Bools) -> None:
            nonlocal left
            hit = left & nodes
            counts[reason] = counts.get(reason, 0) + int(hit.sum())
            left = left & ~nodes

        for reason, nodes in self._static_failing:
            strike(reason, nodes)
        taken = filters.port_conflicts(snapshot, self._facts.host_ports)
        if taken is not None:
            strike(NODE_PORTS, taken)
        short = np.zeros_like(left)
        for reason, nodes in self._short():
            counts[reason] = int((left & nodes).sum())
            short |= nodes
        left = left & ~short
        if self._relations.matter(snapshot):
            for reason, nodes in self._relations.judge(snapshot, self._eligible).failing:
                strike(reason, nodes)
        self._reasons = (self._seen, {reason: count for reason, count in counts.items() if count})
        return self._reasons[1]

    def _short(self) -> Iterable[tuple[str, Bools]]:
        """Nodes that have too little, per resource."""
        snapshot = self._snapshot
        yield TOO_MANY_PODS, snapshot.used[PODS] >= snapshot.allocatable[PODS]
        for name, amount in self._requests:
            if name not in snapshot.allocatable:
                yield f"Insufficient {name}", np.ones_like(snapshot.present)
            else:
                yield f"Insufficient {name}", snapshot.allocatable[name] - snapshot.used[name] < amount


def _per_unit(total: npt.NDArray[np.int64]) -> Floats:
    """1/total, so large where there is nothing that any use of it is too much."""
    per_unit: Floats = np.full(len(total), 1e200)
    np.divide(1.0, total, out=per_unit, where=total > 0)
    return per_unit
