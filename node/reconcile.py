"""What to do about pods: from what is assigned and what is here to a list of actions. Pure: no clock, no effects.

The rules that matter most: nothing is ever stopped because the control plane is silent (without a full list since
this agent started, a pod that is here but not assigned is only kept); a pod that ended for good is not run again, even
if this node has forgotten it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from controlplane.pb.k8s.core_v1_pb2 import Pod

__all__ = ["Action", "Desired", "Forget", "Observed", "Start", "Stop", "Update", "grace_s_of", "reconcile"]


@dataclass(frozen=True, slots=True)
class Observed:
    """A pod that is here.

    Attributes:
        pod: as last assigned.
        stopping: it was told to stop.
        grace_s: within how many seconds, if it was.
        stopped: nothing of it is left.
    """

    pod: Pod
    stopping: bool = False
    grace_s: float = 0.0
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Run a pod that is not here."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class Update:
    """The object of a pod that is here changed."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class Stop:
    """End a pod. ``removed``: its object is gone already, so nobody waits for a report."""

    uid: str
    grace_s: float
    removed: bool


@dataclass(frozen=True, slots=True)
class Forget:
    """Nothing of the pod is left and nobody asks for it: drop its directory, address and status."""

    uid: str


Action = Start | Update | Stop | Forget


@dataclass(slots=True)
class Desired:
    """The pods bound to this node, as the control plane says.

    Attributes:
        complete: a full list has come since this agent started.
    """

    pods: dict[str, Pod] = field(default_factory=dict)
    complete: bool = False

    def apply(self, upserts: Iterable[Pod], removed_uids: Iterable[str], *, full: bool) -> None:
        """Take one Assignments message."""
        if full:
            self.pods = {}
            self.complete = True
        for pod in upserts:
            self.pods[pod.metadata.uid] = pod
        for uid in removed_uids:
            self.pods.pop(uid, None)


#: What a pod gets to end when its object is already gone: it may be running elsewhere by now.
REMOVED_GRACE_S = 1.0


def grace_s_of(pod: Pod) -> float:
    """Seconds the pod may take to end."""
    if pod.metadata.HasField("deletionGracePeriodSeconds"):
        return float(pod.metadata.deletionGracePeriodSeconds)
    if pod.spec.HasField("terminationGracePeriodSeconds"):
        return float(pod.spec.terminationGracePeriodSeconds)
    return 30.0


def reconcile(desired: Desired, observed: Mapping[str, Observed]) -> list[Action]:
    """The actions that bring what is here to what is assigned, in a stable order."""
    actions: list[Action] = []
    for uid, here in sorted(observed.items()):
        wanted = desired.pods.get(uid)
        if wanted is None:
            if desired.complete:
                actions.extend(_unwanted(uid, here))
            continue
        if wanted != here.pod:
            actions.append(Update(wanted))
        if wanted.metadata.HasField("deletionTimestamp"):
            grace_s = grace_s_of(wanted)
            if not here.stopping or (grace_s < here.grace_s and not here.stopped):
                actions.append(Stop(uid, grace_s, removed=False))
    for uid, pod in sorted(desired.pods.items()):
        if uid in observed:
            continue
        finished = pod.status.phase in ("Succeeded", "Failed")
        if not finished or pod.metadata.HasField("deletionTimestamp"):
            actions.append(Start(pod))
    return actions


def _unwanted(uid: str, here: Observed) -> list[Action]:
    if here.stopped:
        return [Forget(uid)]
    if not here.stopping or here.grace_s > REMOVED_GRACE_S:
        return [Stop(uid, REMOVED_GRACE_S, removed=True)]
    return []
