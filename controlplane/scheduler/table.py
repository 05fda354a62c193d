"""The node table: every node as a row of numpy columns, with what runs on it.

Owns the scheduler's picture of the cluster: capacities, usage (assumed pods included), labels and taints encoded as
numbers, and pods counted per node in *groups* (same namespace, labels and controller). It must not know the API, the
queue, or how a node is chosen.

Invariants:

- A pod counts once, under its uid, however often it is assumed, confirmed or updated.
- A row's columns and the row's node agree; a row without a node has ``present`` False and no labels.
- A :class:`Snapshot` shares the columns that only nodes change and owns those that placing a pod changes; it is used up
  synchronously, before the loop can change a node.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from controlplane.client.objects import node_serves, pod_is_finished
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod, PodAffinityTerm, Taint
from controlplane.scheduler.resources import CPU, MEMORY, PODS, allocatable, pod_requests, scoring_requests

__all__ = [
    "AntiTerm",
    "Bools",
    "Counts",
    "Group",
    "HostPort",
    "Ints",
    "LabelColumn",
    "NodeTable",
    "PodFacts",
    "Snapshot",
]

Ints = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

#: (host IP, protocol, port); the empty IP is every address of the host.
HostPort = tuple[str, str, int]

_ROWS_MIN = 64

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Group:
    """Pods that every selector treats alike."""

    namespace: str
    labels: frozenset[tuple[str, str]]
    controller_uid: str

    @property
    def label_map(self) -> dict[str, str]:
        return dict(self.labels)


@dataclass(frozen=True, slots=True)
class AntiTerm:
    """A required anti-affinity term of pods that are placed: it keeps matching pods out of their domains."""

    namespace: str
    term: bytes  # serialized PodAffinityTerm


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What placing a pod changes: computed once per pod."""

    uid: str
    requests: Mapping[str, int]
    scoring_cpu: int
    scoring_memory: int
    group: Group
    host_ports: tuple[HostPort, ...]
    anti_terms: tuple[AntiTerm, ...]

    @staticmethod
    def of(pod: Pod) -> PodFacts:
        """Read a pod."""
        requests = pod_requests(pod)
        cpu, memory = scoring_requests(pod, requests)
        meta = pod.metadata
        controller = next((ref.uid for ref in meta.ownerReferences if ref.controller), "")
        terms = pod.spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution
        return PodFacts(
            uid=meta.uid,
            requests=requests,
            scoring_cpu=cpu,
            scoring_memory=memory,
            group=Group(meta.namespace, frozenset(meta.labels.items()), controller),
            host_ports=tuple(_host_ports(pod)),
            anti_terms=tuple(AntiTerm(meta.namespace, _term_bytes(t)) for t in terms),
        )


def _term_bytes(term: PodAffinityTerm) -> bytes:
    return term.SerializeToString(deterministic=True)


def _host_ports(pod: Pod) -> Iterable[HostPort]:
    for container in pod.spec.containers:
        for port in container.ports:
            number = port.hostPort or (port.containerPort if pod.spec.hostNetwork else 0)
            if number:
                ip = "" if port.hostIP in ("", "0.0.0.0", "::") else port.hostIP
                yield ip, port.protocol or "TCP", number


class LabelColumn:
    """One label key over all rows: each distinct value is a code, -1 means the label is absent."""

    __slots__ = ("codes", "values")

    def __init__(self, rows: int) -> None:
        self.codes: Counts = np.full(rows, -1, dtype=np.int32)
        self.values: dict[str, int] = {}

    def set(self, row: int, value: str | None) -> None:
        """Give a row a value, or none."""
        self.codes[row] = -1 if value is None else self.values.setdefault(value, len(self.values))
        if len(self.values) > 2 * len(self.codes):
            self._forget_unused()

    def _forget_unused(self) -> None:
        """Number the values anew: as nodes come and go, values that no row has any more would pile up."""
        used = np.unique(self.codes[self.codes >= 0])
        recode = np.full(len(self.values) + 1, -1, dtype=np.int32)  # the last: code -1 stays -1
        recode[used] = np.arange(len(used), dtype=np.int32)
        self.codes = recode[self.codes]
        self.values = {value: int(recode[code]) for value, code in self.values.items() if recode[code] >= 0}

    def grow(self, rows: int) -> None:
        self.codes = np.concatenate([self.codes, np.full(rows - len(self.codes), -1, dtype=np.int32)])


@dataclass(slots=True)
class Snapshot:
    """The table at one moment, for one plan to use up."""

    names: list[str]
    rows: Mapping[str, int]
    present: Bools
    schedulable: Bools
    serving: Bools
    labels: Mapping[str, LabelColumn]
    taints: Mapping[tuple[str, str, str], Bools]
    allocatable: Mapping[str, Ints]
    used: dict[str, Ints]
    scoring_cpu: Ints
    scoring_memory: Ints
    groups: dict[Group, Counts]
    host_ports: dict[HostPort, Counts]
    anti_terms: dict[AntiTerm, Counts]
    _owned: set[int] = field(default_factory=set)

    @property
    def node_count(self) -> int:
        return int(self.present.sum())

    def place(self, pod: PodFacts, row: int) -> None:
        """Count a pod on a row of this snapshot."""
        for name, amount in pod.requests.items():
            if name in self.used:
                self.used[name][row] += amount
        self.used[PODS][row] += 1
        self.scoring_cpu[row] += pod.scoring_cpu
        self.scoring_memory[row] += pod.scoring_memory
        self._own(self.groups, pod.group)[row] += 1
        for port in pod.host_ports:
            self._own(self.host_ports, port)[row] += 1
        for term in pod.anti_terms:
            self._own(self.anti_terms, term)[row] += 1

    def _own(self, columns: dict[K, Counts], key: K) -> Counts:
        """The column under ``key``, copied on the first write."""
        column = columns.get(key)
        if column is None:
            column = np.zeros(len(self.present), dtype=np.int32)
        elif id(column) in self._owned:
            return column
        else:
            column = column.copy()
        columns[key] = column
        self._owned.add(id(column))
        return column


class NodeTable:
    """All nodes and what is placed on them, kept current by whoever hears of changes."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._free: list[int] = list(range(_ROWS_MIN - 1, -1, -1))
        self._capacity = _ROWS_MIN
        self._names: list[str] = [""] * _ROWS_MIN
        self._present: Bools = np.zeros(_ROWS_MIN, dtype=np.bool_)
        self._schedulable: Bools = np.zeros(_ROWS_MIN, dtype=np.bool_)
        self._serving: Bools = np.zeros(_ROWS_MIN, dtype=np.bool_)
        self._labels: dict[str, LabelColumn] = {}
        self._taints: dict[tuple[str, str, str], Bools] = {}
        self._node_taints: dict[int, tuple[tuple[str, str, str], ...]] = {}
        self._allocatable: dict[str, Ints] = {}
        self._used: dict[str, Ints] = {}
        self._scoring_cpu: Ints = np.zeros(_ROWS_MIN, dtype=np.int64)
        self._scoring_memory: Ints = np.zeros(_ROWS_MIN, dtype=np.int64)
        self._groups: dict[Group, Counts] = {}
        self._host_ports: dict[HostPort, Counts] = {}
        self._anti_terms: dict[AntiTerm, Counts] = {}
        self._home: dict[str, str] = {}  # pod uid -> node name
        self._pods: dict[str, dict[str, PodFacts]] = {}  # node name (known or not) -> pod uid -> facts
        for name in (CPU, MEMORY, PODS):
            self._resource(name)

    def __len__(self) -> int:
        return len(self._rows)

    # -- nodes -----------------------------------------------------------------------------------------------------

    def set_node(self, node: Node) -> None:
        """Add a node or bring its row up to date."""
        name = node.metadata.name
        row = self._rows.get(name)
        if row is None:
            row = self._new_row(name)
        self._schedulable[row] = not node.spec.unschedulable
        self._serving[row] = node_serves(node)
        amounts = allocatable(node)
        for resource in amounts:
            self._resource(resource)
        for resource, column in self._allocatable.items():
            column[row] = amounts.get(resource, 0)
        labels = node.metadata.labels
        for key in labels:
            if key not in self._labels:
                self._labels[key] = LabelColumn(self._capacity)
        for key, label_column in self._labels.items():
            label_column.set(row, labels.get(key) if key in labels else None)
        self._set_taints(row, node.spec.taints)

    def remove_node(self, name: str) -> None:
        """Forget a node. Pods placed on it are remembered, and count again if it comes back."""
        row = self._rows.pop(name, None)
        if row is None:
            return
        for facts in self._pods.get(name, {}).values():
            self._count(facts, row, -1)
        self._names[row] = ""
        self._present[row] = self._schedulable[row] = self._serving[row] = False
        for column in self._allocatable.values():
            column[row] = 0
        for label_column in self._labels.values():
            label_column.set(row, None)
        self._set_taints(row, ())
        self._free.append(row)

    def _new_row(self, name: str) -> int:
        if not self._free:
            self._grow()
        row = self._free.pop()
        self._rows[name] = row
        self._names[row] = name
        self._present[row] = True
        for facts in self._pods.get(name, {}).values():
            self._count(facts, row, 1)
        return row

    def _set_taints(self, row: int, taints: Iterable[Taint]) -> None:
        for key in self._node_taints.pop(row, ()):
            self._taints[key][row] = False
            if not self._taints[key].any():
                del self._taints[key]
        keys = tuple((t.key, t.value, t.effect) for t in taints)
        for key in keys:
            if key not in self._taints:
                self._taints[key] = np.zeros(self._capacity, dtype=np.bool_)
            self._taints[key][row] = True
        if keys:
            self._node_taints[row] = keys

    # -- pods ------------------------------------------------------------------------------------------------------

    def set_pod(self, pod: Pod) -> None:
        """Count a bound pod on its node; a finished one no longer counts."""
        if pod_is_finished(pod) or not pod.spec.nodeName:
            self.remove_pod(pod.metadata.uid)
            return
        self.assume(PodFacts.of(pod), pod.spec.nodeName)

    def assume(self, facts: PodFacts, node_name: str) -> None:
        """Count a pod on a node as if it were bound already."""
        home = self._home.get(facts.uid)
        if home is not None:
            if home == node_name and self._pods[home][facts.uid] == facts:
                return
            self.remove_pod(facts.uid)
        self._home[facts.uid] = node_name
        self._pods.setdefault(node_name, {})[facts.uid] = facts
        row = self._rows.get(node_name)
        if row is not None:
            self._count(facts, row, 1)

    def remove_pod(self, uid: str) -> None:
        """The pod is gone, finished, or was not bound after all."""
        home = self._home.pop(uid, None)
        if home is None:
            return
        facts = self._pods[home].pop(uid)
        if not self._pods[home]:
            del self._pods[home]
        row = self._rows.get(home)
        if row is not None:
            self._count(facts, row, -1)

    def home_of(self, uid: str) -> str | None:
        """The node a pod counts on, by assumption or in fact."""
        return self._home.get(uid)

    def _count(self, pod: PodFacts, row: int, sign: int) -> None:
        for name, amount in pod.requests.items():
            self._resource(name)[row] += sign * amount
        self._used[PODS][row] += sign
        self._scoring_cpu[row] += sign * pod.scoring_cpu
        self._scoring_memory[row] += sign * pod.scoring_memory
        self._tally(self._groups, pod.group, row, sign)
        for port in pod.host_ports:
            self._tally(self._host_ports, port, row, sign)
        for term in pod.anti_terms:
            self._tally(self._anti_terms, term, row, sign)

    def _tally(self, columns: dict[K, Counts], key: K, row: int, sign: int) -> None:
        column = columns.get(key)
        if column is None:
            column = columns[key] = np.zeros(self._capacity, dtype=np.int32)
        column[row] += sign
        if sign < 0 and not column.any():
            del columns[key]

    # -- columns ---------------------------------------------------------------------------------------------------

    def _resource(self, name: str) -> Ints:
        if name not in self._allocatable:
            self._allocatable[name] = np.zeros(self._capacity, dtype=np.int64)
            self._used[name] = np.zeros(self._capacity, dtype=np.int64)
        return self._used[name]

    def _grow(self) -> None:
        before, self._capacity = self._capacity, self._capacity * 2
        self._free.extend(range(self._capacity - 1, before - 1, -1))
        self._names.extend([""] * before)
        self._present = np.concatenate([self._present, np.zeros(before, dtype=np.bool_)])
        self._schedulable = np.concatenate([self._schedulable, np.zeros(before, dtype=np.bool_)])
        self._serving = np.concatenate([self._serving, np.zeros(before, dtype=np.bool_)])
        self._scoring_cpu = np.concatenate([self._scoring_cpu, np.zeros(before, dtype=np.int64)])
        self._scoring_memory = np.concatenate([self._scoring_memory, np.zeros(before, dtype=np.int64)])
        for numbers in (self._allocatable, self._used):
            for name, column in numbers.items():
                numbers[name] = np.concatenate([column, np.zeros(before, dtype=np.int64)])
        for taint, flags in self._taints.items():
            self._taints[taint] = np.concatenate([flags, np.zeros(before, dtype=np.bool_)])
        for label_column in self._labels.values():
            label_column.grow(self._capacity)
        self._grow_counts(self._groups, before)
        self._grow_counts(self._host_ports, before)
        self._grow_counts(self._anti_terms, before)

    @staticmethod
    def _grow_counts(columns: dict[K, Counts], rows: int) -> None:
        for key, column in columns.items():
            columns[key] = np.concatenate([column, np.zeros(rows, dtype=np.int32)])

    def snapshot(self) -> Snapshot:
        """The table now. Cheap: columns of counts are shared until written."""
        return Snapshot(
            names=self._names,
            rows=self._rows,
            present=self._present,
            schedulable=self._schedulable,
            serving=self._serving,
            labels=self._labels,
            taints=self._taints,
            allocatable=self._allocatable,
            used={name: column.copy() for name, column in self._used.items()},
            scoring_cpu=self._scoring_cpu.copy(),
            scoring_memory=self._scoring_memory.copy(),
            groups=dict(self._groups),
            host_ports=dict(self._host_ports),
            anti_terms=dict(self._anti_terms),
        )
