"""The status of a Deployment: counts and the Available and Progressing conditions. Pure.

Must not know clocks: the present second and the age of the last progress are handed in. Reasons and messages are
Kubernetes' own, which ``kubectl rollout status`` and scripts match on.
"""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.controllers.rollout_decide import Bounds, bounds_of
from controlplane.pb.k8s.apps_v1_pb2 import Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet

__all__ = ["condition_of", "deadline_s", "decide_status", "is_complete"]

PROGRESS_DEADLINE_DEFAULT_S = 600
#: Kubernetes' "no deadline".
_NO_DEADLINE = 2**31 - 1


def deadline_s(deployment: Deployment) -> int | None:
    """Seconds without progress after which a rollout counts as failed; None: never."""
    spec = deployment.spec
    value = spec.progressDeadlineSeconds if spec.HasField("progressDeadlineSeconds") else PROGRESS_DEADLINE_DEFAULT_S
    return None if value == _NO_DEADLINE else value


def condition_of(status: DeploymentStatus, kind: str) -> DeploymentCondition | None:
    """The condition of that type, if there."""
    return next((c for c in status.conditions if c.type == kind), None)


def is_complete(deployment: Deployment, status: DeploymentStatus) -> bool:
    """Every wanted pod is of the present template and available, and no other is left."""
    desired = bounds_of(deployment.spec).desired
    return status.updatedReplicas == status.replicas == status.availableReplicas == desired


def decide_status(
    deployment: Deployment,
    new: ReplicaSet | None,
    old: Sequence[ReplicaSet],
    *,
    now_s: int,
    progress_age_s: float,
    created: str = "",
    failure: str = "",
) -> DeploymentStatus:
    """The status to write.

    Args:
        deployment: with its present status.
        new: its new ReplicaSet, if made.
        old: its other ReplicaSets.
        now_s: seconds since 1970, for timestamps only.
        progress_age_s: seconds since the rollout last made progress, on the caller's own clock.
        created: name of the new ReplicaSet if it was made just now.
        failure: why it could not be made, or empty.
    """
    bounds = bounds_of(deployment.spec)
    before = deployment.status
    sets = [*old] if new is None else [*old, new]
    status = DeploymentStatus(
        observedGeneration=deployment.metadata.generation,
        replicas=sum(rs.status.replicas for rs in sets),
        updatedReplicas=new.status.replicas if new is not None else 0,
        readyReplicas=sum(rs.status.readyReplicas for rs in sets),
        availableReplicas=sum(rs.status.availableReplicas for rs in sets),
        terminatingReplicas=sum(rs.status.terminatingReplicas for rs in sets),
    )
    wanted = sum(rs.spec.replicas for rs in sets)
    status.unavailableReplicas = max(0, wanted - status.availableReplicas)
    if before.HasField("collisionCount"):
        status.collisionCount = before.collisionCount
    status.conditions.extend(c for c in before.conditions if c.type not in ("Available", "Progressing"))
    _set(status, before, _available(bounds, status), now_s)
    progressing = _progressing(deployment, status, new, progress_age_s, created, failure)
    if progressing is not None:
        _set(status, before, progressing, now_s, moved=_moved(before, status) or bool(created))
    return status


def _available(bounds: Bounds, status: DeploymentStatus) -> DeploymentCondition:
    if status.availableReplicas >= bounds.floor:
        return DeploymentCondition(
            type="Available",
            status="True",
            reason="MinimumReplicasAvailable",
            message="Deployment has minimum availability.",
        )
    return DeploymentCondition(
        type="Available",
        status="False",
        reason="MinimumReplicasUnavailable",
        message="Deployment does not have minimum availability.",
    )


def _moved(before: DeploymentStatus, after: DeploymentStatus) -> bool:
    """Whether the rollout got anywhere between two statuses."""
    return (
        after.updatedReplicas > before.updatedReplicas
        or after.replicas - after.updatedReplicas < before.replicas - before.updatedReplicas
        or after.readyReplicas > before.readyReplicas
        or after.availableReplicas > before.availableReplicas
    )


def _progressing(
    deployment: Deployment,
    status: DeploymentStatus,
    new: ReplicaSet | None,
    progress_age_s: float,
    created: str,
    failure: str,
) -> DeploymentCondition | None:
    limit_s = deadline_s(deployment)
    if limit_s is None:
        return None
    before = condition_of(deployment.status, "Progressing")

    def verdict(value: str, reason: str, message: str) -> DeploymentCondition:
        return DeploymentCondition(type="Progressing", status=value, reason=reason, message=message)

    name = new.metadata.name if new is not None else created
    subject = f'ReplicaSet "{name}"' if name else f'Deployment "{deployment.metadata.name}"'
    if failure:
        return verdict("False", "ReplicaSetCreateError", failure)
    if deployment.spec.paused:
        return verdict("Unknown", "DeploymentPaused", "Deployment is paused")
    if before is not None and before.reason == "DeploymentPaused":
        return verdict("Unknown", "DeploymentResumed", "Deployment is resumed")
    if is_complete(deployment, status):
        return verdict("True", "NewReplicaSetAvailable", f"{subject} has successfully progressed.")
    settled = before is not None and before.reason == "NewReplicaSetAvailable"
    if settled and status.updatedReplicas == status.replicas and before is not None and name in before.message:
        return verdict(before.status, before.reason, before.message)  # pods come and go; the rollout is over
    if created:
        return verdict("True", "NewReplicaSetCreated", f'Created new replica set "{created}"')
    if _moved(deployment.status, status) or before is None:
        return verdict("True", "ReplicaSetUpdated", f"{subject} is progressing.")
    if before.reason == "ProgressDeadlineExceeded":
        return verdict(before.status, before.reason, before.message)
    if progress_age_s >= limit_s:
        return verdict("False", "ProgressDeadlineExceeded", f"{subject} has timed out progressing.")
    if before.status != "True" or settled:
        return verdict("True", "ReplicaSetUpdated", f"{subject} is progressing.")
    return verdict(before.status, before.reason, before.message)


def _set(
    status: DeploymentStatus,
    before: DeploymentStatus,
    condition: DeploymentCondition,
    now_s: int,
    *,
    moved: bool = False,
) -> None:
    """Add the condition, keeping the times of an unchanged one."""
    old = condition_of(before, condition.type)
    same = old is not None and old.status == condition.status
    unchanged = same and old is not None and old.reason == condition.reason and old.message == condition.message
    condition.lastTransitionTime.seconds = old.lastTransitionTime.seconds if same and old is not None else now_s
    condition.lastUpdateTime.seconds = (
        old.lastUpdateTime.seconds if unchanged and not moved and old is not None else now_s
    )
    status.conditions.append(condition)
