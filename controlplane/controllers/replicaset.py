"""ReplicaSet controller: keeps the number of pods a ReplicaSet wants. Effects only; decisions are in replicaset_decide.

Pods are named here, before they are created, so that an expectation can be set before the write leaves and met by an
event that arrives before the reply. An outcome nobody learned (the write may still happen) keeps its expectation until
the pod shows up or the expectation times out, so at no time are there more pods than wanted for long, nor two attempts
at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from controlplane.client.interface import (
    ApiError,
    ConflictError,
    FencedError,
    NotFoundError,
)
from controlplane.client.labels import compile_selector
from controlplane.client.objects import key_of, node_serves, pod_is_ready, split_key
from controlplane.controllers.base import Controller, Environment
from controlplane.controllers.expectations import Expectations
from controlplane.controllers.indexes import BY_CONTROLLER, BY_NAMESPACE, ORPHANS
from controlplane.controllers.ownership import controller_of, controller_reference
from controlplane.controllers.replicaset_decide import (
    claim_pods,
    decide_scale,
    decide_status,
    new_pod,
    slow_start_batches,
)
from controlplane.pb.k8s.apps_v1_pb2 import ReplicaSet, ReplicaSetStatus
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod

__all__ = ["ReplicaSetController", "random_suffix"]

log = logging.getLogger("quarterdeck.replicaset")

#: No vowels and nothing that looks alike, as Kubernetes' generated names.
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
#: A name is a DNS label: 63 characters, of which the suffix takes 6.
_BASE_NAME_MAX = 57


def random_suffix(token: bytes) -> str:
    """A few characters for a name, one per byte."""
    return "".join(_ALPHABET[b % len(_ALPHABET)] for b in token)


class ReplicaSetController(Controller):
    """See the module."""

    name = "replicaset"
    workers = 16

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self._sets = env.caches.of(ReplicaSet)
        self._pods = env.caches.of(Pod)
        self._nodes = env.caches.of(Node)
        self._expectations = Expectations(env.clock)
        self._ready_since: dict[str, float] = {}
        self._sets.on_change(self._set_changed)
        self._pods.on_change(self._pod_changed)

    def keys(self) -> Iterable[str]:
        return [key_of(rs) for rs in self._sets.list()]

    def on_lead(self) -> None:
        self._expectations.clear()

    # -- what wakes it -----------------------------------------------------------------------------------------------

    def _set_changed(self, old: ReplicaSet | None, new: ReplicaSet | None) -> None:
        if new is None and old is not None:
            self._expectations.forget(key_of(old))
        if new is not None:
            self.enqueue(key_of(new))

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        self._time_readiness(old, new)
        for pod in (old, new):
            if pod is None:
                continue
            owner = controller_of(pod.metadata)
            if owner is None:
                self._wake_adopters(pod)
            elif owner.kind == "ReplicaSet":
                key = f"{pod.metadata.namespace}/{owner.name}"
                self._settle(key, pod.metadata.name, new)
                self.enqueue(key)

    def _settle(self, key: str, name: str, now: Pod | None) -> None:
        self._expectations.creation_settled(key, name)
        if now is None or now.metadata.HasField("deletionTimestamp"):
            self._expectations.deletion_settled(key, name)

    def _wake_adopters(self, pod: Pod) -> None:
        for rs in self._sets.by_index(BY_NAMESPACE, pod.metadata.namespace):
            if compile_selector(rs.spec.selector)(pod.metadata.labels):
                self.enqueue(key_of(rs))

    def _time_readiness(self, old: Pod | None, new: Pod | None) -> None:
        """Readiness is timed on this replica's own clock, on every replica, so that neither skewed clocks nor a change
        of leader make a pod available too early."""
        if new is not None and pod_is_ready(new):
            self._ready_since.setdefault(new.metadata.uid, self.env.clock.monotonic())
            return
        gone = new if new is not None else old
        if gone is not None:
            self._ready_since.pop(gone.metadata.uid, None)

    def _ready_for_s(self, pod: Pod) -> float:
        since = self._ready_since.get(pod.metadata.uid)
        return 0.0 if since is None else self.env.clock.monotonic() - since

    def _node_serves(self, name: str) -> bool:
        node = self._nodes.get(name)
        return node is not None and node_serves(node)

    # -- what it does ------------------------------------------------------------------------------------------------

    async def reconcile(self, key: str) -> float | None:
        namespace, name = split_key(key)
        rs = self._sets.get(name, namespace)
        if rs is None:
            self._expectations.forget(key)
            return None
        claim = claim_pods(
            rs, [*self._pods.by_index(BY_CONTROLLER, rs.metadata.uid), *self._pods.by_index(ORPHANS, namespace)]
        )
        owned = (*claim.owned, *await self._adopt(rs, claim.adopt))
        for pod in claim.release:
            await self._release(rs, pod)
        wait_s = self._expectations.wait_s(key)
        failure: ApiError | None = None
        acted = False
        if wait_s is None and not rs.metadata.HasField("deletionTimestamp"):
            scale = decide_scale(rs, owned, self._node_serves, self._ready_for_s)
            acted = bool(scale.create or scale.delete)
            if scale.create:
                failure = await self._create(key, rs, scale.create)
            elif scale.delete:
                await self._delete(key, rs, scale.delete)
        why = "" if failure is None else str(failure)
        plan = decide_status(rs, owned, self._ready_for_s, why, self.env.clock.wall_ms() // 1000)
        # Right after acting the cache is known to be behind: the pods' own events bring the status up to date.
        stale = acted and failure is None and rs.status.observedGeneration == rs.metadata.generation
        if not stale and plan.status != rs.status:
            await self._write_status(rs, plan.status)
        if failure is not None:
            raise failure  # tried again with back-off
        waits = [s for s in (plan.recheck_s, self._expectations.wait_s(key)) if s is not None]
        return min(waits) if waits else None

    async def _write_status(self, rs: ReplicaSet, status: ReplicaSetStatus) -> None:
        changed = ReplicaSet()
        changed.CopyFrom(rs)
        changed.status.CopyFrom(status)
        try:
            await self.env.client.update_status(changed)
        except NotFoundError:
            log.debug("replica set gone before its status was written key=%s", key_of(rs))

    async def _adopt(self, rs: ReplicaSet, pods: Sequence[Pod]) -> Sequence[Pod]:
        """Make the set the controller of these pods; returns those that it is now."""
        if not pods:
            return ()
        fresh = await self.env.client.get(ReplicaSet, rs.metadata.name, namespace=rs.metadata.namespace)
        if fresh.metadata.uid != rs.metadata.uid or fresh.metadata.HasField("deletionTimestamp"):
            return ()  # a cached owner must not adopt on behalf of one that is gone
        for pod in pods:
            changed = Pod()
            changed.CopyFrom(pod)
            changed.metadata.ownerReferences.append(controller_reference(rs))
            await self._update_pod(changed)
        return pods

    async def _release(self, rs: ReplicaSet, pod: Pod) -> None:
        changed = Pod()
        changed.CopyFrom(pod)
        kept = [ref for ref in pod.metadata.ownerReferences if ref.uid != rs.metadata.uid]
        del changed.metadata.ownerReferences[:]
        changed.metadata.ownerReferences.extend(kept)
        await self._update_pod(changed)

    async def _update_pod(self, pod: Pod) -> None:
        try:
            await self.env.client.update(pod)
        except NotFoundError:
            log.debug("pod gone before it changed hands key=%s", key_of(pod))

    async def _create(self, key: str, rs: ReplicaSet, count: int) -> ApiError | None:
        """Create pods in growing batches; stops at the first batch that fails. Returns why, if so."""
        for size in slow_start_batches(count):
            names = [self._new_name(rs) for _ in range(size)]
            for name in names:
                self._expectations.expect_creation(key, name)
            failures = [f for f in await asyncio.gather(*(self._create_one(key, rs, n) for n in names)) if f]
            if failures:
                self.env.events.event(rs, "Warning", "FailedCreate", f"Error creating: {failures[0]}")
                return failures[0]
        return None

    def _new_name(self, rs: ReplicaSet) -> str:
        return f"{rs.metadata.name[:_BASE_NAME_MAX]}-{random_suffix(self.env.rand.token(5))}"

    async def _create_one(self, key: str, rs: ReplicaSet, name: str) -> ApiError | None:
        try:
            await self.env.client.create(new_pod(rs, name))
        except FencedError:
            raise
        except ApiError as error:
            if not error.unknown_outcome:
                self._expectations.creation_settled(key, name)
            return error
        self.env.events.event(rs, "Normal", "SuccessfulCreate", f"Created pod: {name}")
        return None

    async def _delete(self, key: str, rs: ReplicaSet, pods: Sequence[Pod]) -> None:
        for pod in pods:
            self._expectations.expect_deletion(key, pod.metadata.name)
        outcomes = await asyncio.gather(*(self._delete_one(key, rs, p) for p in pods), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _delete_one(self, key: str, rs: ReplicaSet, pod: Pod) -> None:
        name = pod.metadata.name
        try:
            await self.env.client.delete(Pod, name, namespace=pod.metadata.namespace, uid=pod.metadata.uid)
        except (NotFoundError, ConflictError):
            self._expectations.deletion_settled(key, name)  # gone already, or another pod by that name
        except ApiError as error:
            if not error.unknown_outcome:
                self._expectations.deletion_settled(key, name)
            raise
        else:
            self.env.events.event(rs, "Normal", "SuccessfulDelete", f"Deleted pod: {name}")
