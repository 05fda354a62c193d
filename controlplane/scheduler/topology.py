"""Constraints between pods: topology spread, pod affinity and anti-affinity. Pure, whole columns at a time.

A domain is the set of nodes with one value of a topology label; nodes without the label are in none. Placing one pod
can change the verdict of many nodes, so what is decided here is decided anew for every pod.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane.client.labels import Labels, Predicate, compile_selector
from controlplane.pb.k8s.core_v1_pb2 import Pod, PodAffinityTerm, TopologySpreadConstraint
from controlplane.scheduler.table import AntiTerm, Bools, Group, Snapshot

__all__ = ["MISSING_LABEL", "Relations", "Verdict"]

Floats = npt.NDArray[np.float64]
Counts64 = npt.NDArray[np.int64]

SPREAD = "node(s) didn't match pod topology spread constraints"
MISSING_LABEL = "node(s) didn't match pod topology spread constraints (missing required label)"
AFFINITY = "node(s) didn't match pod affinity rules"
ANTI_AFFINITY = "node(s) didn't match pod anti-affinity rules"
EXISTING_ANTI_AFFINITY = "node(s) didn't satisfy existing pods anti-affinity rules"


@dataclass(frozen=True, slots=True)
class _Term:
    """A pod affinity term: pods of these namespaces that match, near this label."""

    namespaces: frozenset[str] | None  # None: all
    matches: Predicate
    topology_key: str

    @staticmethod
    def of(term: PodAffinityTerm, own_namespace: str) -> _Term:
        """A namespaceSelector that is set selects all namespaces: their labels are not looked at here."""
        namespaces: frozenset[str] | None = frozenset(term.namespaces) or frozenset({own_namespace})
        if term.HasField("namespaceSelector"):
            namespaces = None
        # An absent selector matches no pod; an empty one matches every pod.
        matches = compile_selector(term.labelSelector) if term.HasField("labelSelector") else _nothing
        return _Term(namespaces, matches, term.topologyKey)

    def covers(self, namespace: str, labels: Labels) -> bool:
        return (self.namespaces is None or namespace in self.namespaces) and self.matches(labels)


def _nothing(labels: Labels) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class _Spread:
    max_skew: int
    topology_key: str
    matches: Predicate
    min_domains: int
    hard: bool

    @staticmethod
    def of(constraint: TopologySpreadConstraint, labels: Labels) -> _Spread:
        base = compile_selector(constraint.labelSelector) if constraint.HasField("labelSelector") else _nothing
        keys = [k for k in constraint.matchLabelKeys if k in labels]

        def matches(other: Labels) -> bool:
            return base(other) and all(other.get(k) == labels[k] for k in keys)

        return _Spread(
            max_skew=constraint.maxSkew or 1,
            topology_key=constraint.topologyKey,
            matches=matches,
            min_domains=constraint.minDomains or 1,
            hard=constraint.whenUnsatisfiable != "ScheduleAnyway",
        )


@dataclass(slots=True)
class Verdict:
    """Nodes that fail, per reason in the order they are judged, and a score per node (0..100, higher is better)."""

    failing: list[tuple[str, Bools]]
    score: Floats | None


class Relations:
    """A pod's constraints towards other pods, compiled for one plan (in which terms are only ever added)."""

    def __init__(self, pod: Pod) -> None:
        self._namespace = pod.metadata.namespace
        self._labels = dict(pod.metadata.labels)
        affinity = pod.spec.affinity
        self._spread = [_Spread.of(c, self._labels) for c in pod.spec.topologySpreadConstraints]
        self._near = self._terms(affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution)
        self._apart = self._terms(affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution)
        self._preferred = [
            (sign * weighted.weight, _Term.of(weighted.podAffinityTerm, self._namespace))
            for sign, terms in (
                (1, affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution),
                (-1, affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution),
            )
            for weighted in terms
        ]
        self._own = bool(self._spread or self._near or self._apart or self._preferred)
        self._foreign: list[tuple[AntiTerm, _Term]] = []
        self._foreign_seen = -1

    def _terms(self, terms: Iterable[PodAffinityTerm]) -> list[_Term]:
        return [_Term.of(t, self._namespace) for t in terms]

    def matter(self, snapshot: Snapshot) -> bool:
        """Whether other pods constrain this one at all."""
        if self._foreign_seen != len(snapshot.anti_terms):
            self._foreign_seen = len(snapshot.anti_terms)
            self._foreign = []
            for anti in snapshot.anti_terms:
                term = _Term.of(PodAffinityTerm.FromString(anti.term), anti.namespace)
                if term.covers(self._namespace, self._labels):
                    self._foreign.append((anti, term))
        return self._own or bool(self._foreign)

    def judge(self, snapshot: Snapshot, eligible: Bools) -> Verdict:
        """Judge every node.

        Args:
            snapshot: nodes and pods.
            eligible: nodes that the pod's own node selector and affinity match: only they form spread domains.
        """
        failing: list[tuple[str, Bools]] = []
        score: Floats | None = None
        for spread in self._spread:
            penalty = self._judge_spread(snapshot, spread, eligible, failing)
            if penalty is not None:
                score = penalty if score is None else score + penalty
        failing.extend((AFFINITY, ~self._is_near(snapshot, term)) for term in self._near)
        failing.extend(
            (ANTI_AFFINITY, _per_domain(snapshot, self._count(snapshot, term), term.topology_key) > 0)
            for term in self._apart
        )
        for anti, term in self._foreign:
            column = snapshot.anti_terms.get(anti)
            if column is not None:
                taken = _per_domain(snapshot, column.astype(np.int64), term.topology_key) > 0
                failing.append((EXISTING_ANTI_AFFINITY, taken))
        if self._preferred:
            wish = np.zeros(len(snapshot.present), dtype=np.float64)
            for weight, term in self._preferred:
                wish += weight * _per_domain(snapshot, self._count(snapshot, term), term.topology_key)
            wish = _to_hundred(wish, snapshot.present)
            score = wish if score is None else score + wish
        return Verdict(failing, score)

    def _count(self, snapshot: Snapshot, term: _Term) -> Counts64:
        return _matching(snapshot, lambda g: term.covers(g.namespace, g.label_map))

    def _is_near(self, snapshot: Snapshot, term: _Term) -> Bools:
        counts = self._count(snapshot, term)
        column = snapshot.labels.get(term.topology_key)
        if column is None:
            return np.zeros(len(snapshot.present), dtype=np.bool_)
        if not counts.any() and term.covers(self._namespace, self._labels):
            return column.codes >= 0  # the first of a group that wants to be together may start anywhere
        return _per_domain(snapshot, counts, term.topology_key) > 0

    def _judge_spread(
        self, snapshot: Snapshot, spread: _Spread, eligible: Bools, failing: list[tuple[str, Bools]]
    ) -> Floats | None:
        column = snapshot.labels.get(spread.topology_key)
        codes = column.codes if column is not None else np.full(len(snapshot.present), -1, dtype=np.int32)
        if spread.hard:
            failing.append((MISSING_LABEL, codes < 0))
        counts = _matching(snapshot, lambda g: g.namespace == self._namespace and spread.matches(g.label_map))
        counts = np.where(eligible, counts, 0)
        domains = np.unique(codes[eligible & (codes >= 0)])
        if not len(domains):
            return None
        totals = np.bincount(codes[codes >= 0], weights=counts[codes >= 0], minlength=int(codes.max()) + 1)
        least = float(totals[domains].min()) if len(domains) >= spread.min_domains else 0.0
        own = 1 if spread.matches(self._labels) else 0
        here = np.where(codes >= 0, totals[codes], np.inf)
        if spread.hard:
            failing.append((SPREAD, here + own - least > spread.max_skew))
            return None
        most = float(totals[domains].max())
        if most == least:
            return None
        return np.where(codes >= 0, 100.0 * (most - np.minimum(here, most)) / (most - least), 0.0)


def _matching(snapshot: Snapshot, covers: Callable[[Group], bool]) -> Counts64:
    """Pods per node of the groups that ``covers`` accepts."""
    total = np.zeros(len(snapshot.present), dtype=np.int64)
    for group, column in snapshot.groups.items():
        if covers(group):
            total += column
    return total


def _per_domain(snapshot: Snapshot, counts: Counts64, topology_key: str) -> Floats:
    """Per node, the sum of ``counts`` over its domain; 0 for nodes in none."""
    column = snapshot.labels.get(topology_key)
    if column is None or column.codes.max(initial=-1) < 0:
        return np.zeros(len(counts), dtype=np.float64)
    inside = column.codes >= 0
    totals = np.bincount(column.codes[inside], weights=counts[inside])
    return np.where(inside, totals[column.codes], 0.0)


def _to_hundred(values: Floats, present: Bools) -> Floats:
    seen: Sequence[float] | Floats = values[present]
    if not len(seen):
        return values
    low, high = float(np.min(seen)), float(np.max(seen))
    return (values - low) * (100.0 / (high - low)) if high > low else np.zeros_like(values)
