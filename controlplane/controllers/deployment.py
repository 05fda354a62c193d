"""Deployment controller: rolls ReplicaSets forward. Effects only; decisions are in deployment_decide and its sisters.

The only thing remembered between reconciles is when each rollout last made progress, on this replica's own clock. A new
leader starts counting anew, so a progress deadline is never reported early.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from controlplane.client.interface import AlreadyExistsError, ApiError, FencedError, NotFoundError
from controlplane.client.labels import compile_selector
from controlplane.client.objects import key_of, pod_is_finished, split_key
from controlplane.controllers.base import Controller, Environment
from controlplane.controllers.deployment_decide import (
    REVISION,
    CreateReplicaSet,
    DeleteReplicaSet,
    Rollout,
    UpdateReplicaSet,
    decide,
    find_new,
)
from controlplane.controllers.deployment_status_decide import condition_of, deadline_s, decide_status
from controlplane.controllers.indexes import BY_CONTROLLER, BY_NAMESPACE, ORPHANS
from controlplane.controllers.ownership import controller_of, controller_reference
from controlplane.pb.k8s.apps_v1_pb2 import Deployment, DeploymentStatus, ReplicaSet
from controlplane.pb.k8s.core_v1_pb2 import Pod

__all__ = ["DeploymentController"]

log = logging.getLogger("quarterdeck.deployment")


class DeploymentController(Controller):
    """See the module."""

    name = "deployment"
    workers = 8

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self._deployments = env.caches.of(Deployment)
        self._sets = env.caches.of(ReplicaSet)
        self._pods = env.caches.of(Pod)
        self._progress_at: dict[str, float] = {}
        self._deployments.on_change(self._deployment_changed)
        self._sets.on_change(self._set_changed)
        self._pods.on_change(self._pod_changed)

    def keys(self) -> Iterable[str]:
        return [key_of(d) for d in self._deployments.list()]

    def on_lead(self) -> None:
        self._progress_at.clear()

    # -- what wakes it -----------------------------------------------------------------------------------------------

    def _deployment_changed(self, old: Deployment | None, new: Deployment | None) -> None:
        if new is not None:
            self.enqueue(key_of(new))
        elif old is not None:
            self._progress_at.pop(old.metadata.uid, None)

    def _set_changed(self, old: ReplicaSet | None, new: ReplicaSet | None) -> None:
        for rs in (old, new):
            if rs is None:
                continue
            owner = controller_of(rs.metadata)
            if owner is not None and owner.kind == "Deployment":
                self.enqueue(f"{rs.metadata.namespace}/{owner.name}")
            elif owner is None:
                for deployment in self._deployments.by_index(BY_NAMESPACE, rs.metadata.namespace):
                    if compile_selector(deployment.spec.selector)(rs.metadata.labels):
                        self.enqueue(key_of(deployment))

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        """Only Recreate looks at pods: it waits until the last old one is gone."""
        if new is not None or old is None:
            return
        owner = controller_of(old.metadata)
        rs = self._sets.get(owner.name, old.metadata.namespace) if owner is not None else None
        parent = controller_of(rs.metadata) if rs is not None else None
        if parent is None:
            return
        deployment = self._deployments.get(parent.name, old.metadata.namespace)
        if deployment is not None and deployment.spec.strategy.type == "Recreate":
            self.enqueue(key_of(deployment))

    # -- what it does ------------------------------------------------------------------------------------------------

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        deployment = self._deployments.get(name, namespace)
        if deployment is None:
            return None
        sets = self._sets.by_index(BY_CONTROLLER, deployment.metadata.uid)
        if deployment.metadata.HasField("deletionTimestamp"):
            return None
        if await self._claim(deployment, sets):
            return None  # the changed sets come back as events
        rollout = decide(deployment, sets, old_pods_exist=self._old_pods_exist(deployment, sets))
        created = failure = ""
        for intent in rollout.intents:
            if isinstance(intent, CreateReplicaSet):
                created, failure = await self._create(deployment, intent.replica_set)
                if not created and not failure:
                    return None  # its name is taken: decided again under another
            else:
                await self._carry_out(deployment, intent)
        deployment = await self._mark_revision(deployment, rollout)
        return await self._report(deployment, rollout, created, failure)

    def _old_pods_exist(self, deployment: Deployment, sets: Iterable[ReplicaSet]) -> bool:
        if deployment.spec.strategy.type != "Recreate":
            return False
        new = find_new(deployment, list(sets))
        return any(
            not pod_is_finished(pod)
            for rs in sets
            if rs is not new
            for pod in self._pods.by_index(BY_CONTROLLER, rs.metadata.uid)
        )

    async def _claim(self, deployment: Deployment, sets: Iterable[ReplicaSet]) -> bool:
        """Adopt orphaned sets that the selector matches, release owned ones it does not. True if anything changed."""
        matches = compile_selector(deployment.spec.selector)
        release = [rs for rs in sets if not matches(rs.metadata.labels)]
        adopt = [
            rs
            for rs in self._sets.by_index(ORPHANS, deployment.metadata.namespace)
            if matches(rs.metadata.labels) and not rs.metadata.HasField("deletionTimestamp")
        ]
        if adopt:
            fresh = await self.env.client.get(
                Deployment, deployment.metadata.name, namespace=deployment.metadata.namespace
            )
            if fresh.metadata.uid != deployment.metadata.uid or fresh.metadata.HasField("deletionTimestamp"):
                adopt = []
        for rs in adopt:
            changed = ReplicaSet()
            changed.CopyFrom(rs)
            changed.metadata.ownerReferences.append(controller_reference(deployment))
            await self.env.client.update(changed)
        for rs in release:
            changed = ReplicaSet()
            changed.CopyFrom(rs)
            kept = [ref for ref in rs.metadata.ownerReferences if ref.uid != deployment.metadata.uid]
            del changed.metadata.ownerReferences[:]
            changed.metadata.ownerReferences.extend(kept)
            await self.env.client.update(changed)
        return bool(adopt or release)

    async def _create(self, deployment: Deployment, rs: ReplicaSet) -> tuple[str, str]:
        """(name, "") when the set is there, ("", why) when it could not be made, ("", "") when its name was taken."""
        name = rs.metadata.name
        try:
            await self.env.client.create(rs)
        except AlreadyExistsError:
            present = await self.env.client.get(ReplicaSet, name, namespace=rs.metadata.namespace)
            owner = controller_of(present.metadata)
            ours = owner is not None and owner.uid == deployment.metadata.uid
            if ours and find_new(deployment, [present]) is not None:
                return name, ""  # made before; the cache will show it
            await self._count_collision(deployment)
            return "", ""
        except FencedError:
            raise
        except ApiError as error:
            if error.unknown_outcome:
                raise
            message = f'Failed to create new replica set "{name}": {error}'
            self.env.events.event(deployment, "Warning", "ReplicaSetCreateError", message)
            return "", message
        self._tell_scaling(deployment, name, 0, rs.spec.replicas)
        return name, ""

    async def _count_collision(self, deployment: Deployment) -> None:
        changed = Deployment()
        changed.CopyFrom(deployment)
        changed.status.collisionCount += 1
        await self.env.client.update_status(changed)

    async def _carry_out(self, deployment: Deployment, intent: UpdateReplicaSet | DeleteReplicaSet) -> None:
        if isinstance(intent, UpdateReplicaSet):
            changed = ReplicaSet()
            changed.CopyFrom(intent.replica_set)
            before = changed.spec.replicas
            changed.spec.replicas = intent.replicas
            changed.spec.minReadySeconds = intent.min_ready_s
            changed.metadata.annotations.update(intent.annotations)
            await self.env.client.update(changed)
            if intent.replicas != before:
                self._tell_scaling(deployment, changed.metadata.name, before, intent.replicas)
        else:
            meta = intent.replica_set.metadata
            try:
                await self.env.client.delete(
                    ReplicaSet,
                    meta.name,
                    namespace=meta.namespace,
                    uid=meta.uid,
                    resource_version=meta.resourceVersion,
                )
            except NotFoundError:
                log.debug("old replica set gone already key=%s", key_of(intent.replica_set))

    def _tell_scaling(self, deployment: Deployment, name: str, before: int, after: int) -> None:
        if before == after:
            return
        direction = "up" if after > before else "down"
        self.env.events.event(
            deployment,
            "Normal",
            "ScalingReplicaSet",
            f"Scaled {direction} replica set {name} from {before} to {after}",
        )

    async def _mark_revision(self, deployment: Deployment, rollout: Rollout) -> Deployment:
        if rollout.new is None and not any(isinstance(i, CreateReplicaSet) for i in rollout.intents):
            return deployment
        revision = str(rollout.revision)
        if deployment.metadata.annotations.get(REVISION) == revision:
            return deployment
        changed = Deployment()
        changed.CopyFrom(deployment)
        changed.metadata.annotations[REVISION] = revision
        return await self.env.client.update(changed)

    async def _report(self, deployment: Deployment, rollout: Rollout, created: str, failure: str) -> float | None:
        """Write the status if it changed; returns when the progress deadline should be looked at."""
        now = self.env.clock.monotonic()
        uid = deployment.metadata.uid
        progress_at = self._progress_at.setdefault(uid, now)
        status = decide_status(
            deployment,
            rollout.new,
            rollout.old,
            now_s=self.env.clock.wall_ms() // 1000,
            progress_age_s=now - progress_at,
            created=created,
            failure=failure,
        )
        if _progressed(deployment.status, status):
            self._progress_at[uid] = progress_at = now
        if status != deployment.status:
            changed = Deployment()
            changed.CopyFrom(deployment)
            changed.status.CopyFrom(status)
            await self.env.client.update_status(changed)
        condition = condition_of(status, "Progressing")
        limit_s = deadline_s(deployment)
        if limit_s is None or condition is None or condition.status != "True":
            return 1.0 if failure else None
        if condition.reason == "NewReplicaSetAvailable":
            return None
        return max(0.1, progress_at + limit_s - now)


def _progressed(before: DeploymentStatus, after: DeploymentStatus) -> bool:
    old, new = condition_of(before, "Progressing"), condition_of(after, "Progressing")
    if new is None or old is None:
        return True
    moved = new.lastUpdateTime != old.lastUpdateTime or new.reason != old.reason
    return moved and new.reason != "ProgressDeadlineExceeded"
