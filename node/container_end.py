"""The end of a container that is told to stop: its preStop hook, SIGTERM, grace, SIGKILL.

Owns the order, and that the hook takes its time from the grace. Must not know why the pod ends.
"""

from __future__ import annotations

from controlplane.base.aio import run_until_first
from controlplane.pb.k8s.core_v1_pb2 import Container
from node.hooks import run_hook
from node.pod_scope import PodScope
from node.probes import ProbeTarget
from node.runtime.base import ContainerInfo

__all__ = ["end_container"]


async def end_container(scope: PodScope, container: Container, info: ContainerInfo, grace_s: float) -> None:
    """End a run within ``grace_s`` seconds; none at all kills it at once, without its hook."""
    scope.event("Normal", "Killing", f"Stopping container {container.name}")
    clock, runtime = scope.deps.clock, scope.deps.runtime
    deadline_s = clock.monotonic() + grace_s
    if grace_s > 0 and container.lifecycle.HasField("preStop"):
        # A container that ends meanwhile needs its hook no more.
        await run_until_first(_pre_stop(scope, container, info, grace_s), _ended(scope, info))
    remaining_s = max(0.0, deadline_s - clock.monotonic())
    await scope.call("stop_container", runtime.stop_container(info.id, remaining_s))


async def _pre_stop(scope: PodScope, container: Container, info: ContainerInfo, grace_s: float) -> None:
    deps = scope.deps
    wrong = await run_hook(
        container.lifecycle.preStop,
        ProbeTarget(ip=scope.ip, container=container, container_id=info.id),
        grace_s,
        runtime=deps.runtime,
        http=deps.prober,
        clock=deps.clock,
    )
    if wrong:
        scope.event("Warning", "FailedPreStopHook", f"PreStop hook failed: {wrong}")


async def _ended(scope: PodScope, info: ContainerInfo) -> None:
    await scope.deps.runtime.wait(info.id)
