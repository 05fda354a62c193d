"""One pod on this node: its worker brings it up, keeps it up as its restart policy says, and takes it down.

Owns the pod's tasks and what is known of its containers; decides nothing about other pods. The worker is told four
things: begin (:meth:`begin`), the pod is this node's by a replica's word (:meth:`confirm`), its object changed
(:meth:`update`), and stop (:meth:`stop`). It tells one thing, through ``on_change``: look at :meth:`status` again.

Order of a life: sandbox, init containers one after the other, all containers at once, each restarted alone; then stop:
preStop hooks, SIGTERM, grace, SIGKILL, for all containers at once. Containers found running when the worker begins are
adopted: nothing is started twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from controlplane.base.aio import run_until_first
from controlplane.base.clock import Clock
from controlplane.pb.k8s.core_v1_pb2 import Container, Pod, PodStatus
from node import metrics
from node.container_config import ContainerConfigs
from node.environment import ContainerConfigError
from node.hooks import HttpGetter, run_hook
from node.pod_status import ContainerView, PodView, build_status
from node.probes import Outcome, ProbeKind, Prober, ProbeTarget, run_probe
from node.reconcile import Observed
from node.restart import RestartBackoff, restarts
from node.runtime.base import ContainerInfo, ContainerRuntimeError, ContainerState, Runtime, SandboxConfig

__all__ = ["Events", "PodWorker", "WorkerDeps"]

log = logging.getLogger("quarterdeck.pods")

#: A container whose configuration or image cannot be had is tried again after this.
_CONFIG_RETRY_S: Final = 5.0
#: Runs kept per container, for ``logs --previous``.
_RUNS_KEPT: Final = 2

T = TypeVar("T")


class Events(Protocol):
    """Where users are told what happened to their pod."""

    def event(self, regarding: Pod, event_type: str, reason: str, message: str) -> None: ...


class HookProber(Prober, HttpGetter, Protocol):
    """Probes containers and calls their hooks."""


@dataclass(frozen=True, slots=True)
class WorkerDeps:
    """What every worker of a node shares."""

    runtime: Runtime
    configs: ContainerConfigs
    prober: HookProber
    clock: Clock
    events: Events
    host_ip: str


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
        self.pod = pod
        self.uid = pod.metadata.uid
        self.ip = ip
        self._accepted_at_ms = accepted_at_ms
        self._deps = deps
        self._on_change = on_change
        self._init = {c.name: ContainerView() for c in pod.spec.initContainers}
        self._main = {c.name: ContainerView() for c in pod.spec.containers}
        self._stop = asyncio.Event()
        self._confirmed = asyncio.Event()
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
        self._confirmed.set()

    def begin(self) -> None:
        """Start to work. Containers the runtime already has are taken over."""
        self._adopt()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def update(self, pod: Pod) -> None:
        """The object changed. Containers of a pod never change; labels, deletion time and conditions do."""
        self.pod = pod
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
    def observed(self) -> Observed:
        return Observed(self.pod, self._stop.is_set(), self._grace_s, self._stopped.is_set())

    @property
    def phase(self) -> str:
        return self._status.phase if self._status is not None else ""

    @property
    def running(self) -> bool:
        """A container of it runs."""
        return any(view.running for view in (*self._init.values(), *self._main.values()))

    def status(self) -> PodStatus:
        """The pod's status now."""
        view = PodView(
            init=self._init,
            main=self._main,
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
        view = self._main.get(name) or self._init.get(name)
        if view is None:
            return None
        info = view.last if previous else view.current
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
            view = self._main.get(name) or self._init.get(name)
            if view is None:
                continue
            infos.sort(key=lambda info: info.attempt)
            view.current = infos[-1]
            view.last = infos[-2] if len(infos) > 1 else None
            view.restart_count = infos[-1].attempt
            # Until its probes have spoken again: what was ready stays ready, a new agent is no reason to lose traffic.
            before = next((s for s in self.pod.status.containerStatuses if s.name == name), None)
            if infos[-1].state is ContainerState.RUNNING and before is not None:
                view.ready, view.started = before.ready, before.started
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
        await self._until_done(self._make_sandbox, self._all_views())
        for container in self.pod.spec.initContainers:
            if not await self._run_init(container):
                return
        async with asyncio.TaskGroup() as group:
            for container in self.pod.spec.containers:
                group.create_task(self._keep_running(container, self._main[container.name]))
        self._changed()

    async def _make_sandbox(self) -> None:
        meta = self.pod.metadata
        await self._call(
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

    def _all_views(self) -> list[ContainerView]:
        return [*self._init.values(), *self._main.values()]

    async def _run_init(self, container: Container) -> bool:
        """Run one init container to success; False if it failed for good."""
        view = self._init[container.name]
        backoff = RestartBackoff()
        if any(v.current is not None for v in self._main.values()):
            return True  # adopted past initialisation
        for other in self._main.values():
            other.waiting_reason = "PodInitializing"
        while True:
            ended = await self._one_run(container, view)
            if ended.exit_code == 0:
                break
            if not restarts("OnFailure" if self.pod.spec.restartPolicy != "Never" else "Never", ended.exit_code):
                self._changed()
                return False
            await self._back_off(container, view, backoff, ended)
        for other in self._main.values():
            other.waiting_reason = ""
        return True

    async def _keep_running(self, container: Container, view: ContainerView) -> None:
        backoff = RestartBackoff()
        policy = self.pod.spec.restartPolicy or "Always"
        while True:
            ended = await self._one_run(container, view)
            if not restarts(policy, ended.exit_code):
                self._changed()
                return
            await self._back_off(container, view, backoff, ended)

    async def _back_off(
        self, container: Container, view: ContainerView, backoff: RestartBackoff, ended: ContainerInfo
    ) -> None:
        began_ms = ended.started_at_ms or ended.created_at_ms
        pause_s = backoff.after_run((ended.finished_at_ms - began_ms) / 1000)
        if pause_s > 0:
            view.waiting_reason = "CrashLoopBackOff"
            view.waiting_message = f"back-off {pause_s:g}s restarting failed container={container.name}"
            message = f"Back-off restarting failed container {container.name} in pod {self.pod.metadata.name}"
            self._deps.events.event(self.pod, "Warning", "BackOff", message)
            self._changed()
            await self._deps.clock.sleep(pause_s)
            view.waiting_reason = view.waiting_message = ""
        view.last, view.current = ended, ended

    async def _one_run(self, container: Container, view: ContainerView) -> ContainerInfo:
        """The newest run if it is not over (adopted), or a new one; returns how it ended."""
        if view.current is None or view.current is view.last:
            await self._start(container, view)
        elif view.current.state is ContainerState.CREATED:
            # An agent died between creating and starting it: it never ran.
            await self._call("stop_container", self._deps.runtime.stop_container(view.current.id, 0))
            view.current = self._deps.runtime.status(view.current.id)
            return view.current
        current = view.current
        assert current is not None
        if current.state is not ContainerState.RUNNING:
            return current
        self._changed()
        view.current = await self._supervise(container, view, current)
        view.ready = view.started = False
        self._changed()
        return view.current

    async def _start(self, container: Container, view: ContainerView) -> None:
        await self._confirmed.wait()
        started_s = self._deps.clock.monotonic()
        attempt = view.restart_count + 1 if view.current is not None else 0

        async def create() -> None:
            self._deps.runtime.check_image(container.image)
            config = await self._deps.configs.make(self.pod, container, self.ip, attempt)
            created = await self._call("create_container", self._deps.runtime.create_container(self.uid, config))
            info = await self._call("start_container", self._deps.runtime.start_container(created))
            view.current, view.restart_count = info, attempt
            view.ready = view.started = False

        await self._until_done(create, [view])
        current = view.current
        assert current is not None
        if current.reason == "StartError":
            self._deps.events.event(self.pod, "Warning", "Failed", f"Error: {current.message}")
        else:
            self._deps.events.event(self.pod, "Normal", "Started", f"Started container {container.name}")
        await self._drop_old_runs(container.name)
        metrics.POD_WORKER_SECONDS.labels("create").observe(self._deps.clock.monotonic() - started_s)

    async def _drop_old_runs(self, name: str) -> None:
        runtime = self._deps.runtime
        runs = [info for info in runtime.list_containers() if info.pod_uid == self.uid and info.name == name]
        runs.sort(key=lambda info: info.attempt)
        for info in runs[:-_RUNS_KEPT]:
            try:
                await self._call("remove_container", runtime.remove_container(info.id))
            except ContainerRuntimeError as error:
                log.warning("old run not removed pod=%s container=%s why=%s", self.uid, name, error)

    async def _until_done(self, step: Callable[[], Awaitable[None]], views: list[ContainerView]) -> None:
        """Take a step until it succeeds; meanwhile the containers wait, and say why."""
        said = ""
        while True:
            try:
                await step()
            except ContainerConfigError as error:
                reason, message = "CreateContainerConfigError", str(error)
            except ContainerRuntimeError as error:
                reason, message = error.reason, str(error)
            else:
                for view in views:
                    view.waiting_reason = view.waiting_message = ""
                return
            for view in views:
                view.waiting_reason, view.waiting_message = reason, message
            if message != said:
                said = message
                self._deps.events.event(self.pod, "Warning", "Failed", f"Error: {reason}: {message}")
                self._changed()
            await self._deps.clock.sleep(_CONFIG_RETRY_S)

    async def _call(self, operation: str, work: Awaitable[T]) -> T:
        """A call of the runtime, measured."""
        metrics.RUNTIME_OPERATIONS.labels(operation).inc()
        began_s = self._deps.clock.monotonic()
        try:
            return await work
        except ContainerRuntimeError:
            metrics.RUNTIME_ERRORS.labels(operation).inc()
            raise
        finally:
            metrics.RUNTIME_SECONDS.labels(operation).observe(self._deps.clock.monotonic() - began_s)

    # -- one run --------------------------------------------------------------------------------------------------

    async def _supervise(self, container: Container, view: ContainerView, current: ContainerInfo) -> ContainerInfo:
        """Probe a running container until it has ended."""
        probing = asyncio.get_running_loop().create_task(self._probe(container, view, current))
        try:
            return await self._deps.runtime.wait(current.id)
        finally:
            probing.cancel()
            (failed,) = await asyncio.gather(probing, return_exceptions=True)
            if isinstance(failed, Exception):
                log.error("probing failed pod=%s container=%s", self.uid, container.name, exc_info=failed)

    async def _probe(self, container: Container, view: ContainerView, current: ContainerInfo) -> None:
        target = ProbeTarget(ip=self.ip, container=container, container_id=current.id)
        unhealthy = asyncio.Event()

        def on_outcome(kind: ProbeKind, outcome: Outcome, message: str) -> None:
            success = outcome is Outcome.SUCCESS
            if kind is ProbeKind.READINESS:
                view.ready = success
            elif kind is ProbeKind.STARTUP and success:
                view.started = True
            elif not success:
                unhealthy.set()
            self._changed()

        def on_failure(kind: ProbeKind, message: str) -> None:
            text = f"{kind.value} probe failed: {message}"
            metrics.PROBES.labels(
                kind.value, "failed", container.name, self.pod.metadata.name, self.pod.metadata.namespace
            ).inc()
            self._deps.events.event(self.pod, "Warning", "Unhealthy", text)

        async def probe(kind: ProbeKind) -> None:
            spec = {
                ProbeKind.STARTUP: container.startupProbe,
                ProbeKind.READINESS: container.readinessProbe,
                ProbeKind.LIVENESS: container.livenessProbe,
            }[kind]
            await run_probe(
                kind,
                spec,
                target,
                self._deps.prober,
                self._deps.clock,
                on_outcome=on_outcome,
                on_failure=on_failure,
            )

        async with asyncio.TaskGroup() as group:
            group.create_task(self._kill_when(unhealthy, container, current))
            if container.HasField("startupProbe") and not view.started:
                await probe(ProbeKind.STARTUP)
                if unhealthy.is_set():
                    return
            view.started = True
            if not container.HasField("readinessProbe"):
                view.ready = True
            self._changed()
            if container.HasField("readinessProbe"):
                group.create_task(probe(ProbeKind.READINESS))
            if container.HasField("livenessProbe"):
                group.create_task(probe(ProbeKind.LIVENESS))

    async def _kill_when(self, unhealthy: asyncio.Event, container: Container, current: ContainerInfo) -> None:
        await unhealthy.wait()
        message = f"Container {container.name} failed its liveness or startup probe, will be restarted"
        self._deps.events.event(self.pod, "Normal", "Killing", message)
        grace_s = float(self.pod.spec.terminationGracePeriodSeconds or 30)
        await self._call("stop_container", self._deps.runtime.stop_container(current.id, grace_s))

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
                group.create_task(self._end(containers.get(info.name, Container(name=info.name)), info))
        if self._hurry is not None:
            await self._hurry
        for view in self._all_views():
            view.waiting_reason = view.waiting_message = ""
            view.ready = view.started = False
            if view.current is not None:
                view.current = self._deps.runtime.status(view.current.id)

    async def _end(self, container: Container, info: ContainerInfo) -> None:
        deps = self._deps
        deps.events.event(self.pod, "Normal", "Killing", f"Stopping container {container.name}")
        deadline_s = deps.clock.monotonic() + self._grace_s
        if self._grace_s > 0 and container.lifecycle.HasField("preStop"):
            # A container that ends meanwhile needs its hook no more.
            await run_until_first(self._pre_stop(container, info), self._ended(info.id))
        remaining_s = max(0.0, deadline_s - deps.clock.monotonic())
        await self._call("stop_container", deps.runtime.stop_container(info.id, remaining_s))

    async def _pre_stop(self, container: Container, info: ContainerInfo) -> None:
        deps = self._deps
        wrong = await run_hook(
            container.lifecycle.preStop,
            ProbeTarget(ip=self.ip, container=container, container_id=info.id),
            self._grace_s,
            runtime=deps.runtime,
            http=deps.prober,
            clock=deps.clock,
        )
        if wrong:
            deps.events.event(self.pod, "Warning", "FailedPreStopHook", f"PreStop hook failed: {wrong}")

    async def _ended(self, container_id: str) -> None:
        await self._deps.runtime.wait(container_id)

    async def _stop_all(self, grace_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            for info in self._alive():
                group.create_task(self._deps.runtime.stop_container(info.id, grace_s))
