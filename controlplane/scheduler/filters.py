"""Masks and scores that only nodes decide: selectors, node affinity, taints. Pure, whole columns at a time.

A label requirement is judged once per distinct value of its key and spread over the rows by code, so its cost is that
of the values, not of the nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from controlplane.client.labels import Requirement, compile_requirement
from controlplane.pb.k8s.core_v1_pb2 import NodeSelectorTerm, PodSpec, Toleration
from controlplane.scheduler.table import Bools, HostPort, Snapshot

__all__ = ["affinity_mask", "port_conflicts", "preferred_affinity", "required_mask", "tolerates", "untolerated"]

Floats = npt.NDArray[np.float64]

#: Effects that keep a pod off a node; the third, PreferNoSchedule, only costs score.
HARD_EFFECTS = frozenset({"NoSchedule", "NoExecute"})


def _requirement_mask(snapshot: Snapshot, requirement: Requirement) -> Bools:
    predicate = compile_requirement(requirement)
    absent = predicate({})
    column = snapshot.labels.get(requirement.key)
    if column is None:
        return np.full(len(snapshot.present), absent)
    verdicts = np.empty(len(column.values) + 1, dtype=np.bool_)
    for value, code in column.values.items():
        verdicts[code] = predicate({requirement.key: value})
    verdicts[-1] = absent  # code -1 indexes the last
    return verdicts[column.codes]


def _field_mask(snapshot: Snapshot, requirement: Requirement) -> Bools:
    """``matchFields`` knows one field: metadata.name."""
    predicate = compile_requirement(requirement)
    mask = np.zeros(len(snapshot.present), dtype=np.bool_)
    if requirement.key == "metadata.name":
        for name, row in snapshot.rows.items():
            mask[row] = predicate({"metadata.name": name})
    return mask


def _term_mask(snapshot: Snapshot, term: NodeSelectorTerm) -> Bools:
    """All requirements of a term; an empty term matches nothing."""
    if not term.matchExpressions and not term.matchFields:
        return np.zeros(len(snapshot.present), dtype=np.bool_)
    mask = np.ones(len(snapshot.present), dtype=np.bool_)
    for requirement in term.matchExpressions:
        mask &= _requirement_mask(snapshot, requirement)
    for requirement in term.matchFields:
        mask &= _field_mask(snapshot, requirement)
    return mask


def affinity_mask(snapshot: Snapshot, spec: PodSpec) -> Bools:
    """Nodes that the node selector and one of the required affinity terms match."""
    mask = snapshot.present.copy()
    for key, value in spec.nodeSelector.items():
        column = snapshot.labels.get(key)
        code = column.values.get(value) if column is not None else None
        if column is None or code is None:
            return np.zeros_like(mask)
        mask &= column.codes == code
    if spec.affinity.nodeAffinity.HasField("requiredDuringSchedulingIgnoredDuringExecution"):
        terms = spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms
        either = np.zeros_like(mask)
        for term in terms:
            either |= _term_mask(snapshot, term)
        mask &= either
    return mask


def required_mask(snapshot: Snapshot, node_name: str) -> Bools:
    """The one node a pod asks for by name (it is then merely confirmed), or all."""
    if not node_name:
        return snapshot.present.copy()
    mask = np.zeros_like(snapshot.present)
    row = snapshot.rows.get(node_name)
    if row is not None:
        mask[row] = True
    return mask


def preferred_affinity(snapshot: Snapshot, spec: PodSpec) -> Floats:
    """Weights of the preferred terms each node matches, scaled to 0..100."""
    score = np.zeros(len(snapshot.present), dtype=np.float64)
    for preferred in spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution:
        term = preferred.preference
        matches = _term_mask(snapshot, term) if term.matchExpressions or term.matchFields else snapshot.present
        score += preferred.weight * matches
    top = score.max(initial=0.0)
    return score * (100.0 / top) if top > 0 else score


def tolerates(tolerations: Iterable[Toleration], taint: tuple[str, str, str]) -> bool:
    """Whether one of the tolerations lets a pod live with the taint (key, value, effect)."""
    key, value, effect = taint
    for toleration in tolerations:
        if toleration.effect and toleration.effect != effect:
            continue
        if toleration.operator == "Exists":
            if not toleration.key or toleration.key == key:
                return True
        elif toleration.key == key and toleration.value == value:
            return True
    return False


def untolerated(
    snapshot: Snapshot, tolerations: Sequence[Toleration]
) -> tuple[Mapping[tuple[str, str, str], Bools], Floats]:
    """(hard taints the pod does not tolerate with the nodes that have them, soft ones counted per node)."""
    hard: dict[tuple[str, str, str], Bools] = {}
    soft = np.zeros(len(snapshot.present), dtype=np.float64)
    for taint in sorted(snapshot.taints):
        if tolerates(tolerations, taint):
            continue
        if taint[2] in HARD_EFFECTS:
            hard[taint] = snapshot.taints[taint]
        else:
            soft += snapshot.taints[taint]
    return hard, soft


def port_conflicts(snapshot: Snapshot, ports: Iterable[HostPort]) -> Bools | None:
    """Nodes where one of the host ports is taken; None if the pod wants none. The empty IP collides with every IP."""
    taken: Bools | None = None
    for ip, protocol, number in ports:
        if taken is None:
            taken = np.zeros(len(snapshot.present), dtype=np.bool_)
        for (other_ip, other_protocol, other_number), column in snapshot.host_ports.items():
            if (protocol, number) == (other_protocol, other_number) and (not ip or not other_ip or ip == other_ip):
                taken |= column > 0
    return taken
