"""One pod on this node: its worker brings it up, keeps it up as its restart policy says, and takes it down.

Owns the order of the pod's life and its phase; decides nothing about other pods, and leaves each container to its own
worker (``container_worker``, ``container_end``). The worker is told four things: begin (:meth:`begin`), the pod is this
node's by a replica's word (:meth:`confirm`), its object changed (:meth:`update`), and stop (:meth:`stop`). It tells one
thing, through ``on_change``: look at :meth:`status` again.

Order of a life: sandbox, init containers one after the other, all containers at once, each restarted alone; then stop:
preStop hooks, SIGTERM, grace, SIGKILL, for all containers at once. Containers found running when the worker begins are
adopted: nothing is started twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from controlplane.pb.k8s.core_v1_pb2 import Container, Pod, PodStatus
from node import metrics
from node.container_end import end_container
from node.container_worker import ContainerWorker
from node.pod_scope import PodScope, WorkerDeps
from node.pod_status import PodView, build_status
from node.reconcile import Observed
from node.runtime.base import ContainerInfo, ContainerState, SandboxConfig

__all__ = ["PodWorker"]

log = logging.getLogger("quarterdeck.pods")


class PodWorker:
    """See the module.

    Args:
        pod: as assigned.
        ip: the pod's address.
        accepted_at_ms: when this node first saw it, wall clock.
        on_change: called when :meth:`status` or :meth:`observed` may have changed.
    """

    def __init__(
        self, pod: Pod, *, ip: str, accepted_at_ms: int, deps: WorkerDeps, on_change: Callable[[str], None]
    ) -> None:
        self.uid = pod.metadata.uid
        self._accepted_at_ms = accepted_at_ms
        self._deps = deps
        self._on_change = on_change
        self._scope = PodScope(pod, ip, deps, self._changed)
        self._init = {c.name: ContainerWorker(c, self._scope) for c in pod.spec.initContainers}
        self._main = {c.name: ContainerWorker(c, self._scope) for c in pod.spec.containers}
        self._stop = asyncio.Event()
        self._grace_s = 0.0
        self._hurry: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        self._failed: tuple[str, str] = ("", "")
        self._status: PodStatus | None = None
        self._task: asyncio.Task[None] | None = None
        self._reported_running = False

    # -- what it is told ------------------------------------------------------------------------------------------

    def confirm(self) -> None:
        """A replica says the pod is still this node's: containers may be started. Until then they are only adopted:
        after a death of the machine the pod may be running elsewhere, and this node be the last to know."""
        self._scope.confirmed.set()

    def begin(self) -> None:
        """Start to work. Containers the runtime already has are taken over."""
        self._adopt()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def update(self, pod: Pod) -> None:
        """The object changed. Containers of a pod never change; labels, deletion time and conditions do."""
        self._scope.pod = pod
        self._changed()

    def stop(self, grace_s: float, *, failed_reason: str = "", failed_message: str = "") -> None:
        """End the pod within ``grace_s`` seconds, or sooner if told so again.

        Args:
            failed_reason: the node ends it, not its owner: its phase becomes Failed with this reason.
        """
        if self._stop.is_set():
            if grace_s < self._grace_s and not self._stopped.is_set():
                self._grace_s = grace_s
                # Beside the stop under way, which ends with its containers.
                self._hurry = asyncio.get_running_loop().create_task(self._stop_all(grace_s))
            return
        self._grace_s = grace_s
        if self.phase not in ("Succeeded", "Failed"):
            self._failed = (failed_reason, failed_message)
        self._stop.set()
        self._changed()

    async def wait_stopped(self) -> None:
        """Return when nothing of the pod is left."""
        await self._stopped.wait()

    async def abandon(self) -> None:
        """Stop to work and leave the containers running, for another agent to adopt."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # -- what it tells --------------------------------------------------------------------------------------------

    @property
    def pod(self) -> Pod:
        """Its object as of now."""
        return self._scope.pod

    @property
    def ip(self) -> str:
        """Its address."""
        return self._scope.ip

    @property
    def observed(self) -> Observed:
        return Observed(self.pod, self._stop.is_set(), self._grace_s, self._stopped.is_set())

    @property
    def phase(self) -> str:
        return self._status.phase if self._status is not None else ""

    @property
    def running(self) -> bool:
        """A container of it runs."""
        return any(worker.view.running for worker in self._workers())

    def status(self) -> PodStatus:
        """The pod's status now."""
        view = PodView(
            init={name: worker.view for name, worker in self._init.items()},
            main={name: worker.view for name, worker in self._main.items()},
            ip=self.ip,
            host_ip=self._deps.host_ip,
            accepted_at_ms=self._accepted_at_ms,
            stopping=self._stop.is_set(),
            failed_reason=self._failed[0],
            failed_message=self._failed[1],
        )
        self._status = build_status(self.pod, view, self._status, self._deps.clock.wall_ms())
        return self._status

    def container_id(self, name: str, *, previous: bool = False) -> str | None:
        """The id of the newest run of a container, or of the run before it."""
        worker = self._main.get(name) or self._init.get(name)
        if worker is None:
            return None
        info = worker.view.last if previous else worker.view.current
        return info.id if info is not None else None

    def _changed(self) -> None:
        if not self._reported_running and self.status().phase == "Running":
            self._reported_running = True
            now_ms = self._deps.clock.wall_ms()
            metrics.POD_START_SECONDS.observe(max(0, now_ms - self._accepted_at_ms) / 1000)
            created_ms = self.pod.metadata.creationTimestamp.seconds * 1000
            if created_ms and not self._init:
                metrics.POD_START_SLI_SECONDS.observe(max(0, now_ms - created_ms) / 1000)
        self._on_change(self.uid)

    # -- life -----------------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        runs: dict[str, list[ContainerInfo]] = {}
        for info in self._deps.runtime.list_containers():
            if info.pod_uid == self.uid:
                runs.setdefault(info.name, []).append(info)
        for name, infos in runs.items():
            worker = self._main.get(name) or self._init.get(name)
            if worker is not None and worker.adopt(infos):
                self._reported_running = True

    async def _run(self) -> None:
        life = asyncio.get_running_loop().create_task(self._live_and_say_why())
        try:
            # A life that ended (every container is over) still waits to be told to stop: its status stays.
            await self._stop.wait()
        finally:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
        began_s = self._deps.clock.monotonic()
        await self._take_down()
        metrics.POD_WORKER_SECONDS.labels("terminate").observe(self._deps.clock.monotonic() - began_s)
        self._stopped.set()
        self._changed()

    async def _live_and_say_why(self) -> None:
        try:
            await self._live()
        except Exception:
            # A fault of ours, in one pod: the node's other pods are not to suffer from it.
            log.exception("pod worker failed pod=%s/%s", self.pod.metadata.namespace, self.pod.metadata.name)
            raise

    async def _live(self) -> None:
        await self._scope.until_done(self._make_sandbox, [worker.view for worker in self._workers()])
        if not await self._initialise():
            return
        async with asyncio.TaskGroup() as group:
            for worker in self._main.values():
                group.create_task(worker.keep_running())
        self._changed()

    async def _make_sandbox(self) -> None:
        meta = self.pod.metadata
        await self._scope.call(
            "run_podsandbox",
            self._deps.runtime.run_pod_sandbox(
                SandboxConfig(
                    uid=self.uid,
                    namespace=meta.namespace,
                    name=meta.name,
                    hostname=self.pod.spec.hostname or meta.name,
                    ip=self.ip,
                )
            ),
        )

    def _workers(self) -> list[ContainerWorker]:
        return [*self._init.values(), *self._main.values()]

    async def _initialise(self) -> bool:
        """Run the init containers, one after the other; False if one failed for good."""
        others = [worker.view for worker in self._main.values()]
        if not self._init or any(view.current is not None for view in others):
            return True  # nothing to do, or adopted past initialisation
        for view in others:
            view.waiting_reason = "PodInitializing"
        for worker in self._init.values():
            if not await worker.run_to_success():
                return False
        for view in others:
            view.waiting_reason = ""
        return True

    # -- the end --------------------------------------------------------------------------------------------------

    def _alive(self) -> list[ContainerInfo]:
        return [
            info
            for info in self._deps.runtime.list_containers()
            if info.pod_uid == self.uid and info.state is not ContainerState.EXITED
        ]

    async def _take_down(self) -> None:
        containers = {c.name: c for c in (*self.pod.spec.initContainers, *self.pod.spec.containers)}
        async with asyncio.TaskGroup() as group:
            for info in self._alive():
                container = containers.get(info.name, Container(name=info.name))
                group.create_task(end_container(self._scope, container, info, self._grace_s))
        if self._hurry is not None:
            await self._hurry
        for view in (worker.view for worker in self._workers()):
            view.waiting_reason = view.waiting_message = ""
            view.ready = view.started = False
            if view.current is not None:
                view.current = self._deps.runtime.status(view.current.id)

    async def _stop_all(self, grace_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            for info in self._alive():
                group.create_task(self._deps.runtime.stop_container(info.id, grace_s))
