"""All pods of the node: assignments in, workers moved accordingly, statuses out.

Owns the workers, the pods' addresses and their manifests on disk. Every change of what is assigned or observed leads
to the same thing: :func:`~node.reconcile.reconcile` says what to do, and it is done here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.pb.quarterdeck.v1.node_pb2 import Assignments, PodStatusReport
from node import metrics
from node.layout import Layout, UnsafeNameError, read_json, write_atomic, write_json
from node.pod_scope import WorkerDeps
from node.pod_worker import PodWorker
from node.podips import NoAddressError, PodIPs
from node.reconcile import Desired, Forget, Start, Stop, Update, grace_s_of, reconcile
from node.runtime.base import ContainerRuntimeError, ContainerState

__all__ = ["NodePods"]

log = logging.getLogger("quarterdeck.pods")

_RETRY_S: Final = 1.0
_NODE_SHUTDOWN: Final = "NodeShutdown"


class NodePods:
    """The pods of this node.

    Args:
        deps: what workers need.
        report: where statuses go.
        drop: called when a pod is gone and no more is to be said of it.
    """

    def __init__(
        self,
        layout: Layout,
        deps: WorkerDeps,
        ips: PodIPs,
        *,
        report: Callable[[PodStatusReport], None],
        drop: Callable[[str], None],
    ) -> None:
        self._layout = layout
        self._deps = deps
        self._ips = ips
        self._report = report
        self._drop = drop
        self.desired = Desired()
        self.workers: dict[str, PodWorker] = {}
        self._forgetting: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._shutting_down = False

    async def adopt(self) -> None:
        """Take over the pods an earlier agent left. Before the first session; the runtime has started."""
        for uid in self._layout.pod_uids():
            facts = read_json(self._layout.pod_facts(uid))
            pod = Pod()
            try:
                pod.ParseFromString(self._layout.pod_manifest(uid).read_bytes())
            except (FileNotFoundError, DecodeError):
                pod.Clear()
            if facts is None or pod.metadata.uid != uid:
                log.warning("pod directory without a readable pod, removed uid=%s", uid)
                await self._remove_all(uid)
                continue
            ip = str(facts.get("ip", ""))
            self._ips.hold(uid, ip)
            self._begin(pod, ip, int(facts.get("accepted_at_ms", 0)))
        if self.workers:
            log.info("adopted pods=%d", len(self.workers))

    def running_uids(self) -> list[str]:
        """Pods with a running container."""
        return sorted(uid for uid, worker in self.workers.items() if worker.running)

    def assigned(self, assignments: Assignments) -> None:
        """Take what a replica says."""
        self.desired.apply(assignments.upserts, assignments.removed_uids, full=assignments.full)
        self.reconcile()

    def find(self, namespace: str, name: str) -> PodWorker | None:
        """The pod of that name; of several (an old one stopping beside its successor) the one that is staying."""
        found = [
            w for w in self.workers.values() if (w.pod.metadata.namespace, w.pod.metadata.name) == (namespace, name)
        ]
        return min(found, key=lambda w: w.observed.stopping, default=None)

    def reconcile(self) -> None:
        """Do what there is to do now."""
        if self._shutting_down:
            return
        if self.desired.complete:
            for uid in self.desired.pods.keys() & self.workers.keys():
                self.workers[uid].confirm()
        # A second pass, because a pod can arrive already told to stop.
        for _ in range(2):
            for action in reconcile(self.desired, {uid: w.observed for uid, w in self.workers.items()}):
                match action:
                    case Start(pod):
                        self._start(pod)
                    case Update(pod):
                        self._update(pod)
                    case Stop(uid, grace_s, removed):
                        log.info("stop pod=%s grace_s=%g removed=%s", uid, grace_s, removed)
                        self.workers[uid].stop(grace_s)
                    case Forget(uid):
                        self._forget(uid)

    async def run(self) -> None:
        """Try again what could not be done, until cancelled."""
        while True:
            await self._wake.wait()
            await self._deps.clock.sleep(_RETRY_S)
            self._wake.clear()
            self.reconcile()

    async def shut_down(self, grace_s_max: float) -> None:
        """Stop every pod because the node stops, and leave nothing of it; each is reported Failed, or gone if
        a controller replaces it."""
        self._shutting_down = True
        for worker in self.workers.values():
            worker.stop(
                min(grace_s_of(worker.pod), grace_s_max),
                failed_reason=_NODE_SHUTDOWN,
                failed_message="the node agent was stopped, and its pods with it",
            )
        for uid, worker in list(self.workers.items()):
            await worker.wait_stopped()
            # Or the next agent would take them for pods to run again.
            await self._remove_all(uid)

    def hurry(self) -> None:
        """Kill what is still stopping."""
        for worker in self.workers.values():
            worker.stop(0)

    async def abandon(self) -> None:
        """Leave the pods running, for the next agent to adopt."""
        self._shutting_down = True
        for worker in self.workers.values():
            await worker.abandon()

    async def housekeep(self) -> None:
        """Look at all containers: end what belongs to no pod, count the rest."""
        states = dict.fromkeys(ContainerState, 0)
        for info in self._deps.runtime.list_containers():
            states[info.state] += 1
            if info.pod_uid not in self.workers and info.pod_uid not in self._forgetting:
                log.warning("container of no pod stopped pod=%s container=%s", info.pod_uid, info.name)
                await self._remove_all(info.pod_uid)
        for state, count in states.items():
            metrics.RUNNING_CONTAINERS.labels(state.value).set(count)
        metrics.RUNNING_PODS.set(len(self.running_uids()))

    # -- inside --------------------------------------------------------------------------------------------------

    def _start(self, pod: Pod) -> None:
        uid = pod.metadata.uid
        if uid in self._forgetting:
            return  # its directory is being removed; done again when that is over
        now_ms = self._deps.clock.wall_ms()
        try:
            self._layout.pod_manifest(uid).parent.mkdir(parents=True, exist_ok=True)
            ip = self._deps.host_ip if pod.spec.hostNetwork else self._ips.allocate(uid)
            self._save(pod)
            write_json(self._layout.pod_facts(uid), {"ip": ip, "accepted_at_ms": now_ms})
        except UnsafeNameError as error:
            log.error("pod refused pod=%s/%s why=%s", pod.metadata.namespace, pod.metadata.name, error)
            return
        except (NoAddressError, OSError) as error:
            message = f"Failed to create pod sandbox: {error}"
            log.warning("pod waits pod=%s/%s why=%s", pod.metadata.namespace, pod.metadata.name, error)
            self._deps.events.event(pod, "Warning", "FailedCreatePodSandBox", message)
            self._wake.set()
            return
        self._begin(pod, ip, now_ms)
        self.workers[uid].confirm()

    def _begin(self, pod: Pod, ip: str, accepted_at_ms: int) -> None:
        worker = PodWorker(pod, ip=ip, accepted_at_ms=accepted_at_ms, deps=self._deps, on_change=self._on_change)
        self.workers[pod.metadata.uid] = worker
        worker.begin()
        self._on_change(pod.metadata.uid)

    def _update(self, pod: Pod) -> None:
        worker = self.workers[pod.metadata.uid]
        worker.update(pod)
        try:
            self._save(pod)
        except OSError as error:
            log.warning("manifest not written pod=%s why=%s", pod.metadata.uid, error)

    def _save(self, pod: Pod) -> None:
        write_atomic(self._layout.pod_manifest(pod.metadata.uid), pod.SerializeToString())

    def _on_change(self, uid: str) -> None:
        worker = self.workers.get(uid)
        if worker is None:
            return
        meta = worker.pod.metadata
        observed = worker.observed
        status = worker.status()
        # A pod that the node's own shutdown ended keeps its object, for people to see why, unless a controller puts
        # another in its place: then it would only be litter.
        unwanted = meta.HasField("deletionTimestamp") or (
            status.reason == _NODE_SHUTDOWN and any(owner.controller for owner in meta.ownerReferences)
        )
        self._report(
            PodStatusReport(
                namespace=meta.namespace,
                name=meta.name,
                uid=uid,
                status=status,
                terminated=observed.stopped and unwanted,
            )
        )
        if observed.stopped:
            asyncio.get_running_loop().call_soon(self.reconcile)

    def _forget(self, uid: str) -> None:
        """The worker has ended and no object asks for the pod."""
        del self.workers[uid]
        self._drop(uid)
        task = asyncio.get_running_loop().create_task(self._remove_all(uid))
        self._forgetting[uid] = task

        def done(_: asyncio.Task[None]) -> None:
            self._forgetting.pop(uid, None)
            self.reconcile()

        task.add_done_callback(done)

    async def _remove_all(self, uid: str) -> None:
        runtime = self._deps.runtime
        try:
            for info in runtime.list_containers():
                if info.pod_uid == uid and info.state is not ContainerState.EXITED:
                    await runtime.stop_container(info.id, 0)
            await runtime.remove_pod_sandbox(uid)
        except ContainerRuntimeError as error:
            log.warning("pod not removed uid=%s why=%s", uid, error)
        self._ips.release(uid)
