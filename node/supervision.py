"""One run of a container, from running to ended: probed meanwhile, and stopped when its probes say it is unwell.

Owns the order of probes (startup first, then readiness and liveness together) and what their outcomes change. Must not
know restarts: how the run ended is returned.
"""

from __future__ import annotations

import asyncio
import logging

from controlplane.pb.k8s.core_v1_pb2 import Container
from node import metrics
from node.pod_scope import PodScope
from node.pod_status import ContainerView
from node.probes import Outcome, ProbeKind, ProbeTarget, run_probe
from node.runtime.base import ContainerInfo

__all__ = ["supervise"]

log = logging.getLogger("quarterdeck.pods")


async def supervise(
    scope: PodScope, container: Container, view: ContainerView, current: ContainerInfo
) -> ContainerInfo:
    """Probe a running container until it has ended; how it ended. ``view`` says meanwhile what its probes say."""
    probing = asyncio.get_running_loop().create_task(_probe(scope, container, view, current))
    try:
        return await scope.deps.runtime.wait(current.id)
    finally:
        probing.cancel()
        (failed,) = await asyncio.gather(probing, return_exceptions=True)
        if isinstance(failed, Exception):
            log.error("probing failed pod=%s container=%s", scope.uid, container.name, exc_info=failed)


async def _probe(scope: PodScope, container: Container, view: ContainerView, current: ContainerInfo) -> None:
    target = ProbeTarget(ip=scope.ip, container=container, container_id=current.id)
    unhealthy = asyncio.Event()

    def on_outcome(kind: ProbeKind, outcome: Outcome, message: str) -> None:
        success = outcome is Outcome.SUCCESS
        if kind is ProbeKind.READINESS:
            view.ready = success
        elif kind is ProbeKind.STARTUP and success:
            view.started = True
        elif not success:
            unhealthy.set()
        scope.changed()

    def on_failure(kind: ProbeKind, message: str) -> None:
        meta = scope.pod.metadata
        metrics.PROBES.labels(kind.value, "failed", container.name, meta.name, meta.namespace).inc()
        scope.event("Warning", "Unhealthy", f"{kind.value} probe failed: {message}")

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
            scope.deps.prober,
            scope.deps.clock,
            on_outcome=on_outcome,
            on_failure=on_failure,
        )

    async with asyncio.TaskGroup() as group:
        group.create_task(_kill_when(unhealthy, scope, container, current))
        if container.HasField("startupProbe") and not view.started:
            await probe(ProbeKind.STARTUP)
            if unhealthy.is_set():
                return
        view.started = True
        if not container.HasField("readinessProbe"):
            view.ready = True
        scope.changed()
        if container.HasField("readinessProbe"):
            group.create_task(probe(ProbeKind.READINESS))
        if container.HasField("livenessProbe"):
            group.create_task(probe(ProbeKind.LIVENESS))


async def _kill_when(unhealthy: asyncio.Event, scope: PodScope, container: Container, current: ContainerInfo) -> None:
    await unhealthy.wait()
    message = f"Container {container.name} failed its liveness or startup probe, will be restarted"
    scope.event("Normal", "Killing", message)
    grace_s = float(scope.pod.spec.terminationGracePeriodSeconds or 30)
    await scope.call("stop_container", scope.deps.runtime.stop_container(current.id, grace_s))
