"""What a ReplicaSet needs done: pure decisions from observed pods to intents.

Owns: who belongs to the set (claiming), how many pods to make, which to delete and in what order, and the status.
Must not know: the API, queues, clocks. How long a pod has been ready is handed in, measured by the caller's own clock.

Follows Kubernetes' ReplicaSet controller in what users can observe; one rule is ours: pods on nodes that do not serve
(Suspect or NotReady) are the first to go among pods of equal phase, because deleting them costs least.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from controlplane.client.labels import compile_selector
from controlplane.client.objects import pod_is_finished, pod_is_ready
from controlplane.controllers.ownership import controller_of, controller_reference
from controlplane.pb.k8s.apps_v1_pb2 import ReplicaSet, ReplicaSetStatus
from controlplane.pb.k8s.core_v1_pb2 import Pod, PodTemplateSpec

__all__ = [
    "BURST_REPLICAS",
    "Claim",
    "ReplicaSetStatusPlan",
    "Scale",
    "claim_pods",
    "decide_scale",
    "decide_status",
    "deletion_order",
    "new_pod",
    "slow_start_batches",
]

#: Most pods one reconcile creates or deletes.
BURST_REPLICAS = 500

#: A pod with a lower cost is deleted first (an integer; absent or unreadable is 0).
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"

_PHASE_RANK = {"Pending": 0, "Unknown": 1}


@dataclass(frozen=True, slots=True)
class Claim:
    """Which pods the set owns now, should take, and should let go."""

    owned: tuple[Pod, ...]
    adopt: tuple[Pod, ...]
    release: tuple[Pod, ...]


def claim_pods(rs: ReplicaSet, pods: Sequence[Pod]) -> Claim:
    """Sort the pods of the set's namespace by whose they are.

    Orphans that match the selector are adopted unless either side is being deleted; owned pods that match no longer
    are released (they live on, unmanaged). Finished pods are nobody's replicas and are left alone.
    """
    matches = compile_selector(rs.spec.selector)
    deleting = rs.metadata.HasField("deletionTimestamp")
    owned: list[Pod] = []
    adopt: list[Pod] = []
    release: list[Pod] = []
    for pod in pods:
        owner = controller_of(pod.metadata)
        fits = matches(pod.metadata.labels)
        if owner is not None and owner.uid == rs.metadata.uid:
            if fits:
                owned.append(pod)
            elif not deleting:
                release.append(pod)
        elif owner is None and fits and not deleting and is_active(pod):
            adopt.append(pod)
    return Claim(tuple(owned), tuple(adopt), tuple(release))


def is_active(pod: Pod) -> bool:
    """Counts as a replica: neither finished nor on its way out."""
    return not pod_is_finished(pod) and not pod.metadata.HasField("deletionTimestamp")


@dataclass(frozen=True, slots=True)
class Scale:
    """How many pods to create, or which to delete; never both."""

    create: int = 0
    delete: tuple[Pod, ...] = ()


def decide_scale(
    rs: ReplicaSet,
    pods: Sequence[Pod],
    node_serves: Callable[[str], bool],
    ready_for_s: Callable[[Pod], float] = lambda pod: 0.0,
) -> Scale:
    """Bring the number of active pods to ``spec.replicas``, at most BURST_REPLICAS at once.

    Args:
        rs: the set, not being deleted.
        pods: the pods it owns.
        node_serves: whether traffic may go to pods of the named node.
        ready_for_s: seconds a pod has been ready.
    """
    active = [p for p in pods if is_active(p)]
    missing = rs.spec.replicas - len(active)
    if missing >= 0:
        return Scale(create=min(missing, BURST_REPLICAS))
    surplus = min(-missing, BURST_REPLICAS)
    return Scale(delete=tuple(deletion_order(active, node_serves, ready_for_s)[:surplus]))


def deletion_order(
    pods: Sequence[Pod],
    node_serves: Callable[[str], bool],
    ready_for_s: Callable[[Pod], float] = lambda pod: 0.0,
) -> list[Pod]:
    """Cheapest to lose first: unassigned, pending, on a node that does not serve, not ready, lower deletion cost,
    crowded on one node, ready for a shorter time, more restarts, newer, and by name so that the order is total."""
    ready = [p for p in pods if pod_is_ready(p)]
    per_node = Counter(p.spec.nodeName for p in ready if p.spec.nodeName)

    def rank(pod: Pod) -> tuple[object, ...]:
        restarts = sum(s.restartCount for s in pod.status.containerStatuses)
        return (
            bool(pod.spec.nodeName),
            _PHASE_RANK.get(pod.status.phase, 2),
            not pod.spec.nodeName or node_serves(pod.spec.nodeName),
            pod_is_ready(pod),
            _deletion_cost(pod.metadata.annotations),
            -per_node[pod.spec.nodeName],
            ready_for_s(pod),
            -restarts,
            -pod.metadata.creationTimestamp.seconds,
            pod.metadata.name,
        )

    return sorted(pods, key=rank)


def _deletion_cost(annotations: Mapping[str, str]) -> int:
    try:
        return int(annotations.get(DELETION_COST, "0"))
    except ValueError:
        return 0


def slow_start_batches(count: int) -> list[int]:
    """``count`` in batches of 1, 2, 4, ...: a quota or a broken template is met once, not ``count`` times."""
    batches: list[int] = []
    size = 1
    while count > 0:
        batches.append(min(size, count))
        count -= batches[-1]
        size *= 2
    return batches


@dataclass(frozen=True, slots=True)
class ReplicaSetStatusPlan:
    """The status to write, and in how many seconds a pod becomes available by age alone (None: none will)."""

    status: ReplicaSetStatus
    recheck_s: float | None


def decide_status(
    rs: ReplicaSet, pods: Sequence[Pod], ready_for_s: Callable[[Pod], float], failure: str = "", now_s: int = 0
) -> ReplicaSetStatusPlan:
    """Counts as Kubernetes makes them.

    Args:
        rs: the set, with its present status.
        pods: the pods it owns, terminating ones included.
        ready_for_s: seconds a ready pod has been ready.
        failure: why pods could not be created or deleted just now, or empty.
        now_s: seconds since 1970, for the transition time of a condition that changes.
    """
    matches_template = dict(rs.spec.template.metadata.labels)
    status = ReplicaSetStatus(observedGeneration=rs.metadata.generation)
    recheck_s: float | None = None
    for pod in pods:
        if pod_is_finished(pod):
            continue
        if pod.metadata.HasField("deletionTimestamp"):
            status.terminatingReplicas += 1
            continue
        status.replicas += 1
        if all(pod.metadata.labels.get(k) == v for k, v in matches_template.items()):
            status.fullyLabeledReplicas += 1
        if not pod_is_ready(pod):
            continue
        status.readyReplicas += 1
        wait_s = rs.spec.minReadySeconds - ready_for_s(pod)
        if rs.spec.minReadySeconds == 0 or wait_s <= 0:
            status.availableReplicas += 1
        elif recheck_s is None or wait_s < recheck_s:
            recheck_s = wait_s
    status.conditions.extend(c for c in rs.status.conditions if c.type != "ReplicaFailure")
    if failure:
        status.conditions.add(type="ReplicaFailure", status="True", reason="FailedCreate", message=failure)
        before = next((c for c in rs.status.conditions if c.type == "ReplicaFailure"), None)
        status.conditions[-1].lastTransitionTime.seconds = before.lastTransitionTime.seconds if before else now_s
    return ReplicaSetStatusPlan(status, recheck_s)


def new_pod(rs: ReplicaSet, name: str) -> Pod:
    """A pod of the set's template under that name."""
    template: PodTemplateSpec = rs.spec.template
    pod = Pod()
    pod.metadata.name = name
    pod.metadata.generateName = f"{rs.metadata.name}-"
    pod.metadata.namespace = rs.metadata.namespace
    pod.metadata.labels.update(template.metadata.labels)
    pod.metadata.annotations.update(template.metadata.annotations)
    pod.metadata.finalizers.extend(template.metadata.finalizers)
    pod.metadata.ownerReferences.append(controller_reference(rs))
    pod.spec.CopyFrom(template.spec)
    return pod
