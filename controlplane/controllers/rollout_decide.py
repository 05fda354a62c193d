"""Arithmetic of a rollout: how far each ReplicaSet of a Deployment may grow or shrink now. Pure, numbers only.

Owns the two promises of a rolling update, for any interleaving of its steps with pods that become ready or fail:

- never more than ``desired + max_surge`` pods wanted in all sets together,
- no *available* pod given up while fewer than ``desired - max_unavailable`` would remain.

Must not know of templates, revisions or the API.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.pb.k8s.apps_v1_pb2 import DeploymentSpec
from controlplane.pb.k8s.intstr_pb2 import IntOrString

__all__ = ["Bounds", "SetSize", "bounds_of", "resolve_count", "scale_in_proportion", "step_new", "step_old"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a rollout may do: counts of pods."""

    desired: int
    max_surge: int
    max_unavailable: int

    @property
    def ceiling(self) -> int:
        """Most pods wanted at a time."""
        return self.desired + self.max_surge

    @property
    def floor(self) -> int:
        """Fewest available pods."""
        return max(0, self.desired - self.max_unavailable)


@dataclass(frozen=True, slots=True)
class SetSize:
    """One ReplicaSet: pods wanted, and pods available as last reported."""

    wanted: int
    available: int

    @property
    def safe_available(self) -> int:
        """Available pods to count on. A report from before the set was shrunk shows pods that are about to go."""
        return min(self.wanted, self.available)


def resolve_count(value: IntOrString, total: int, *, round_up: bool) -> int:
    """A count or a percentage of ``total``. Unreadable text counts as 0 (validation refuses it)."""
    if value.type == 0 and not value.strVal:
        return max(0, value.intVal)
    text = value.strVal.strip()
    if not text.endswith("%"):
        return 0
    try:
        percent = int(text[:-1])
    except ValueError:
        return 0
    exact = percent * total / 100
    return max(0, math.ceil(exact) if round_up else math.floor(exact))


def bounds_of(spec: DeploymentSpec) -> Bounds:
    """maxSurge rounds up, maxUnavailable down; if both come to 0 one pod may be unavailable, or nothing could move.

    Recreate means: no surge, everything may be unavailable.
    """
    desired = spec.replicas if spec.HasField("replicas") else 1
    if spec.strategy.type == "Recreate":
        return Bounds(desired, 0, desired)
    rolling = spec.strategy.rollingUpdate
    quarter = IntOrString(type=1, strVal="25%")
    surge = resolve_count(rolling.maxSurge if rolling.HasField("maxSurge") else quarter, desired, round_up=True)
    unavailable = resolve_count(
        rolling.maxUnavailable if rolling.HasField("maxUnavailable") else quarter, desired, round_up=False
    )
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return Bounds(desired, surge, min(unavailable, desired))


def step_new(bounds: Bounds, new: SetSize, old: Sequence[SetSize]) -> int:
    """Pods the new set should want now."""
    if new.wanted >= bounds.desired:
        return bounds.desired
    room = bounds.ceiling - new.wanted - sum(o.wanted for o in old)
    return min(bounds.desired, new.wanted + max(0, room))


def step_old(bounds: Bounds, new: SetSize, old: Sequence[SetSize]) -> list[int]:
    """Pods each old set (oldest first) should want now.

    Pods that are not available go first, in any old set; then available ones, as long as ``bounds.floor`` remain.
    Pods the new set still waits for count against both.
    """
    wanted = [o.wanted for o in old]
    total = new.wanted + sum(wanted)
    new_missing = max(0, new.wanted - new.safe_available)
    budget = total - bounds.floor - new_missing
    for i, size in enumerate(old):
        cut = min(max(0, budget), size.wanted - size.safe_available)
        wanted[i] -= cut
        budget -= cut
    spare = new.safe_available + sum(o.safe_available for o in old) - bounds.floor
    spare = min(spare, budget)
    for i, size in enumerate(old):
        cut = min(max(0, spare), min(wanted[i], size.safe_available))
        wanted[i] -= cut
        spare -= cut
    return wanted


def scale_in_proportion(sizes: Sequence[int], total: int) -> list[int]:
    """``sizes`` scaled so that they sum to ``total``, each in proportion, what rounding leaves over to the largest.

    Used when a Deployment is scaled in the middle of a rollout: the risk stays spread over old and new as it was.
    Sets of size 0 stay 0; if all are 0 nothing is scaled.
    """
    before = sum(sizes)
    if before == 0:
        return list(sizes)
    scaled = [size * total // before for size in sizes]
    left = total - sum(scaled)
    by_size = sorted((i for i in range(len(sizes)) if sizes[i]), key=lambda i: (-sizes[i], i))
    for i in range(left):
        scaled[by_size[i % len(by_size)]] += 1
    return scaled
