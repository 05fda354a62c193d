"""One container of a pod: started, kept up as its restart policy says, its runs told apart.

Owns what is known of the container (``view``), its runs and the pauses between them. Must not know the pod's other
containers or when the pod ends: its worker cancels this one's.

- Nothing is started before the pod is confirmed to be this node's; a run that is there already is taken over.
- Two runs are kept, so that the logs of the one before can be read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from controlplane.pb.k8s.core_v1_pb2 import Container
from node import metrics
from node.pod_scope import PodScope
from node.pod_status import ContainerView
from node.restart import RestartBackoff, restarts
from node.runtime.base import ContainerInfo, ContainerRuntimeError, ContainerState
from node.supervision import supervise

__all__ = ["ContainerWorker"]

log = logging.getLogger("quarterdeck.pods")

#: Runs kept per container, for ``logs --previous``.
_RUNS_KEPT: Final = 2


class ContainerWorker:
    """See the module. ``view``: what is known of it now."""

    def __init__(self, container: Container, scope: PodScope) -> None:
        self.container = container
        self.view = ContainerView()
        self._scope = scope

    def adopt(self, infos: Sequence[ContainerInfo]) -> bool:
        """Take over the runs the runtime has of it; True if the newest runs on as it was reported before."""
        runs = sorted(infos, key=lambda info: info.attempt)
        view = self.view
        view.current = runs[-1]
        view.last = runs[-2] if len(runs) > 1 else None
        view.restart_count = runs[-1].attempt
        # Until its probes have spoken again: what was ready stays ready, a new agent is no reason to lose traffic.
        statuses = self._scope.pod.status.containerStatuses
        before = next((s for s in statuses if s.name == self.container.name), None)
        if runs[-1].state is not ContainerState.RUNNING or before is None:
            return False
        view.ready, view.started = before.ready, before.started
        return True

    async def run_to_success(self) -> bool:
        """Run it as an init container; False if it failed for good."""
        policy = "OnFailure" if self._scope.pod.spec.restartPolicy != "Never" else "Never"
        backoff = RestartBackoff()
        while True:
            ended = await self._one_run()
            if ended.exit_code == 0:
                return True
            if not restarts(policy, ended.exit_code):
                self._scope.changed()
                return False
            await self._back_off(backoff, ended)

    async def keep_running(self) -> None:
        """Run it, again and again as the pod's restart policy says; return when it is over for good."""
        policy = self._scope.pod.spec.restartPolicy or "Always"
        backoff = RestartBackoff()
        while True:
            ended = await self._one_run()
            if not restarts(policy, ended.exit_code):
                self._scope.changed()
                return
            await self._back_off(backoff, ended)

    async def _back_off(self, backoff: RestartBackoff, ended: ContainerInfo) -> None:
        scope, view, name = self._scope, self.view, self.container.name
        began_ms = ended.started_at_ms or ended.created_at_ms
        pause_s = backoff.after_run((ended.finished_at_ms - began_ms) / 1000)
        if pause_s > 0:
            view.waiting_reason = "CrashLoopBackOff"
            view.waiting_message = f"back-off {pause_s:g}s restarting failed container={name}"
            message = f"Back-off restarting failed container {name} in pod {scope.pod.metadata.name}"
            scope.event("Warning", "BackOff", message)
            scope.changed()
            await scope.deps.clock.sleep(pause_s)
            view.waiting_reason = view.waiting_message = ""
        view.last, view.current = ended, ended

    async def _one_run(self) -> ContainerInfo:
        """The newest run if it is not over (adopted), or a new one; returns how it ended."""
        scope, view = self._scope, self.view
        if view.current is None or view.current is view.last:
            await self._start()
        elif view.current.state is ContainerState.CREATED:
            # An agent died between creating and starting it: it never ran.
            await scope.call("stop_container", scope.deps.runtime.stop_container(view.current.id, 0))
            view.current = scope.deps.runtime.status(view.current.id)
            return view.current
        current = view.current
        assert current is not None
        if current.state is not ContainerState.RUNNING:
            return current
        scope.changed()
        view.current = await supervise(scope, self.container, view, current)
        view.ready = view.started = False
        scope.changed()
        return view.current

    async def _start(self) -> None:
        scope, view, container = self._scope, self.view, self.container
        deps = scope.deps
        await scope.confirmed.wait()
        started_s = deps.clock.monotonic()
        attempt = view.restart_count + 1 if view.current is not None else 0

        async def create() -> None:
            deps.runtime.check_image(container.image)
            config = await deps.configs.make(scope.pod, container, scope.ip, attempt)
            created = await scope.call("create_container", deps.runtime.create_container(scope.uid, config))
            info = await scope.call("start_container", deps.runtime.start_container(created))
            view.current, view.restart_count = info, attempt
            view.ready = view.started = False

        await scope.until_done(create, [view])
        current = view.current
        assert current is not None
        if current.reason == "StartError":
            scope.event("Warning", "Failed", f"Error: {current.message}")
        else:
            scope.event("Normal", "Started", f"Started container {container.name}")
        await self._drop_old_runs()
        metrics.POD_WORKER_SECONDS.labels("create").observe(deps.clock.monotonic() - started_s)

    async def _drop_old_runs(self) -> None:
        scope, name = self._scope, self.container.name
        runtime = scope.deps.runtime
        runs = [info for info in runtime.list_containers() if info.pod_uid == scope.uid and info.name == name]
        runs.sort(key=lambda info: info.attempt)
        for info in runs[:-_RUNS_KEPT]:
            try:
                await scope.call("remove_container", runtime.remove_container(info.id))
            except ContainerRuntimeError as error:
                log.warning("old run not removed pod=%s container=%s why=%s", scope.uid, name, error)
