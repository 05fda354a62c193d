"""What a Deployment needs done: pure decisions from the Deployment and its ReplicaSets to intents.

Owns: which ReplicaSet is the new one, revisions and their history, when to roll, scale, wait or clean up.
Must not know: the API, clocks (ages are handed in), or pods other than through ReplicaSet statuses. Counting is in
``rollout_decide``, the status in ``deployment_status_decide``.

A rollback needs no code here: when a user puts an old template back, the ReplicaSet that has it becomes the new one
again and gets the next revision.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controlplane.controllers.ownership import controller_reference
from controlplane.controllers.rollout_decide import (
    Bounds,
    SetSize,
    bounds_of,
    scale_in_proportion,
    step_new,
    step_old,
)
from controlplane.pb.k8s.apps_v1_pb2 import Deployment, ReplicaSet
from controlplane.pb.k8s.core_v1_pb2 import PodTemplateSpec

__all__ = [
    "DESIRED_REPLICAS",
    "MAX_REPLICAS",
    "REVISION",
    "REVISION_HISTORY",
    "TEMPLATE_HASH_LABEL",
    "CreateReplicaSet",
    "DeleteReplicaSet",
    "Intent",
    "Rollout",
    "UpdateReplicaSet",
    "decide",
    "find_new",
    "new_replica_set",
    "revision_of",
    "template_hash",
]

REVISION = "deployment.kubernetes.io/revision"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED_REPLICAS = "deployment.kubernetes.io/desired-replicas"
MAX_REPLICAS = "deployment.kubernetes.io/max-replicas"
TEMPLATE_HASH_LABEL = "pod-template-hash"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

#: Annotations of a Deployment that its ReplicaSets do not inherit.
_OWN_ANNOTATIONS = frozenset({LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED_REPLICAS, MAX_REPLICAS})

HISTORY_LIMIT_DEFAULT = 10


@dataclass(frozen=True, slots=True)
class CreateReplicaSet:
    """Make the ReplicaSet of the present template."""

    replica_set: ReplicaSet


@dataclass(frozen=True, slots=True)
class UpdateReplicaSet:
    """Give an existing set this size, readiness delay and these annotations (others stay)."""

    replica_set: ReplicaSet
    replicas: int
    min_ready_s: int
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DeleteReplicaSet:
    """An old revision beyond the history limit."""

    replica_set: ReplicaSet


Intent = CreateReplicaSet | UpdateReplicaSet | DeleteReplicaSet


@dataclass(frozen=True, slots=True)
class Rollout:
    """What to do, and what the Deployment is now: its new set (None until made), the old ones, the new revision."""

    new: ReplicaSet | None
    old: tuple[ReplicaSet, ...]
    revision: int
    intents: tuple[Intent, ...] = field(default=())


def template_hash(template: PodTemplateSpec, collision_count: int) -> str:
    """Ten characters that name a template. ``collision_count`` gives another name to the same template after the
    first turned out to be taken."""
    plain = _without_hash(template).SerializeToString(deterministic=True)
    digest = hashlib.sha256(plain + b"/%d" % collision_count).digest()
    return base64.b32encode(digest).decode().lower()[:10]


def _without_hash(template: PodTemplateSpec) -> PodTemplateSpec:
    plain = PodTemplateSpec()
    plain.CopyFrom(template)
    plain.metadata.labels.pop(TEMPLATE_HASH_LABEL, None)
    if not plain.metadata.ByteSize():
        plain.ClearField("metadata")
    return plain


def revision_of(rs: ReplicaSet) -> int:
    """Its revision, 0 if it has none."""
    text = rs.metadata.annotations.get(REVISION, "")
    return int(text) if text.isdigit() else 0


def _age_order(rs: ReplicaSet) -> tuple[int, str]:
    return rs.metadata.creationTimestamp.seconds, rs.metadata.name


def find_new(deployment: Deployment, sets: Sequence[ReplicaSet]) -> ReplicaSet | None:
    """The set whose template is the Deployment's; the oldest if there are several."""
    wanted = _without_hash(deployment.spec.template)
    return next((rs for rs in sorted(sets, key=_age_order) if _without_hash(rs.spec.template) == wanted), None)


def decide(deployment: Deployment, sets: Sequence[ReplicaSet], *, old_pods_exist: bool = False) -> Rollout:
    """One step of the Deployment.

    Args:
        deployment: as stored; not being deleted.
        sets: the ReplicaSets it owns.
        old_pods_exist: pods of old sets are still there, terminating ones included (Recreate waits for them).
    """
    bounds = bounds_of(deployment.spec)
    new = find_new(deployment, sets)
    old = tuple(sorted((rs for rs in sets if rs is not new), key=_age_order))
    highest_old = max((revision_of(rs) for rs in old), default=0)
    revision = max(highest_old + 1, revision_of(new) if new is not None else 0)
    if new is None and deployment.spec.paused:
        revision = max(highest_old, 1)
    plan = _Plan(deployment, bounds, revision)
    if _is_scaling(bounds, new, old):
        plan.scale(new, old)
    elif deployment.spec.paused:
        if not any(rs.spec.replicas for rs in sets):
            plan.scale(new, old)
    elif deployment.spec.strategy.type == "Recreate":
        plan.recreate(new, old, old_pods_exist)
    else:
        plan.roll(new, old)
    if _is_complete(bounds, new, old):
        plan.clean_up(old)
    return Rollout(new, old, revision, tuple(plan.intents))


class _Plan:
    """Collects the intents of one decision."""

    def __init__(self, deployment: Deployment, bounds: Bounds, revision: int) -> None:
        self.deployment = deployment
        self.bounds = bounds
        self.revision = revision
        self.intents: list[Intent] = []

    def roll(self, new: ReplicaSet | None, old: Sequence[ReplicaSet]) -> None:
        """A rolling update: grow the new set into the surge, then shrink the old by what is spare."""
        old_sizes = [_size(rs) for rs in old]
        new_size = SetSize(0, 0) if new is None else _size(new)
        target = step_new(self.bounds, new_size, old_sizes)
        if new is None:
            self._create(target)
        else:
            self._resize_new(new, target)
        grown = SetSize(target, new_size.available)
        for rs, wanted in zip(old, step_old(self.bounds, grown, old_sizes), strict=True):
            self._resize(rs, wanted)

    def recreate(self, new: ReplicaSet | None, old: Sequence[ReplicaSet], old_pods_exist: bool) -> None:
        """Everything old stops, and only then the new set starts."""
        for rs in old:
            self._resize(rs, 0)
        target = self.bounds.desired
        if any(rs.spec.replicas for rs in old) or old_pods_exist:
            target = new.spec.replicas if new is not None else 0
        if new is None:
            self._create(target)
        else:
            self._resize_new(new, target)

    def scale(self, new: ReplicaSet | None, old: Sequence[ReplicaSet]) -> None:
        """The number wanted changed, or the Deployment is paused: sizes follow, the mix of revisions stays."""
        sets = [*old] if new is None else [*old, new]
        active = [rs for rs in sets if rs.spec.replicas > 0]
        if not active and sets:
            active = [new if new is not None else max(sets, key=revision_of)]
        if len(active) == 1:
            self._resize_any(active[0], self.bounds.desired, new)
            return
        rolling = self.deployment.spec.strategy.type != "Recreate"
        if new is not None and _is_saturated(new, self.bounds):
            for rs in old:
                self._resize(rs, 0)
            self._resize_new(new, self.bounds.desired)
            return
        if not rolling:
            return
        sizes = [rs.spec.replicas for rs in active]
        total = self.bounds.ceiling if self.bounds.desired > 0 else 0
        for rs, wanted in zip(active, scale_in_proportion(sizes, total), strict=True):
            self._resize_any(rs, wanted, new)

    def clean_up(self, old: Sequence[ReplicaSet]) -> None:
        """Forget the oldest revisions beyond the limit, once they have no pods."""
        spec = self.deployment.spec
        limit = spec.revisionHistoryLimit if spec.HasField("revisionHistoryLimit") else HISTORY_LIMIT_DEFAULT
        empty = [rs for rs in old if _is_empty(rs)]
        surplus = len(old) - limit
        for rs in sorted(empty, key=lambda rs: (revision_of(rs), _age_order(rs)))[: max(0, surplus)]:
            self.intents.append(DeleteReplicaSet(rs))

    def _create(self, replicas: int) -> None:
        self.intents.append(CreateReplicaSet(new_replica_set(self.deployment, replicas, self.revision, self._sizes())))

    def _sizes(self) -> dict[str, str]:
        return {DESIRED_REPLICAS: str(self.bounds.desired), MAX_REPLICAS: str(self.bounds.ceiling)}

    def _resize_any(self, rs: ReplicaSet, replicas: int, new: ReplicaSet | None) -> None:
        if rs is new:
            self._resize_new(rs, replicas)
        else:
            self._resize(rs, replicas)

    def _resize_new(self, rs: ReplicaSet, replicas: int) -> None:
        inherited = _inherited(self.deployment)
        annotations = {**inherited, **self._sizes(), REVISION: str(self.revision)}
        before = revision_of(rs)
        if before and before != self.revision:
            past = [r for r in rs.metadata.annotations.get(REVISION_HISTORY, "").split(",") if r]
            annotations[REVISION_HISTORY] = ",".join([*past, str(before)])
        self._update(rs, replicas, annotations, self.deployment.spec.minReadySeconds)

    def _resize(self, rs: ReplicaSet, replicas: int) -> None:
        if replicas > 0 or rs.spec.replicas > 0:
            self._update(rs, replicas, self._sizes(), rs.spec.minReadySeconds)

    def _update(self, rs: ReplicaSet, replicas: int, annotations: Mapping[str, str], min_ready_s: int) -> None:
        present = rs.metadata.annotations
        told = all(present.get(k) == v for k, v in annotations.items())
        if rs.spec.replicas != replicas or rs.spec.minReadySeconds != min_ready_s or not told:
            self.intents.append(UpdateReplicaSet(rs, replicas, min_ready_s, annotations))


def _inherited(deployment: Deployment) -> dict[str, str]:
    return {k: v for k, v in deployment.metadata.annotations.items() if k not in _OWN_ANNOTATIONS}


def _size(rs: ReplicaSet) -> SetSize:
    return SetSize(rs.spec.replicas, rs.status.availableReplicas)


def _is_empty(rs: ReplicaSet) -> bool:
    seen = rs.status.observedGeneration >= rs.metadata.generation
    idle = not rs.spec.replicas and not rs.status.replicas
    return idle and seen and not rs.metadata.HasField("deletionTimestamp")


def _is_saturated(rs: ReplicaSet, bounds: Bounds) -> bool:
    told = rs.metadata.annotations.get(DESIRED_REPLICAS) == str(bounds.desired)
    return told and rs.spec.replicas == bounds.desired and rs.status.availableReplicas == bounds.desired


def _is_scaling(bounds: Bounds, new: ReplicaSet | None, old: Sequence[ReplicaSet]) -> bool:
    """Whether the number wanted changed since a set that has pods was last sized."""
    sets = [*old] if new is None else [*old, new]
    told = [rs.metadata.annotations.get(DESIRED_REPLICAS) for rs in sets if rs.spec.replicas > 0]
    return any(t is not None and t != str(bounds.desired) for t in told)


def _is_complete(bounds: Bounds, new: ReplicaSet | None, old: Sequence[ReplicaSet]) -> bool:
    return (
        new is not None
        and new.status.replicas == bounds.desired
        and new.status.availableReplicas == bounds.desired
        and not any(rs.status.replicas for rs in old)
    )


def new_replica_set(deployment: Deployment, replicas: int, revision: int, annotations: Mapping[str, str]) -> ReplicaSet:
    """The ReplicaSet of the present template, named after the template's hash."""
    name = template_hash(deployment.spec.template, deployment.status.collisionCount)
    rs = ReplicaSet()
    rs.metadata.name = f"{deployment.metadata.name}-{name}"
    rs.metadata.namespace = deployment.metadata.namespace
    rs.metadata.labels.update(deployment.spec.template.metadata.labels)
    rs.metadata.labels[TEMPLATE_HASH_LABEL] = name
    rs.metadata.annotations.update({**_inherited(deployment), **annotations, REVISION: str(revision)})
    rs.metadata.ownerReferences.append(controller_reference(deployment))
    rs.spec.replicas = replicas
    rs.spec.minReadySeconds = deployment.spec.minReadySeconds
    rs.spec.selector.CopyFrom(deployment.spec.selector)
    rs.spec.selector.matchLabels[TEMPLATE_HASH_LABEL] = name
    rs.spec.template.CopyFrom(deployment.spec.template)
    rs.spec.template.metadata.labels[TEMPLATE_HASH_LABEL] = name
    return rs
