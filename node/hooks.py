"""preStop hooks: exec, httpGet, sleep. Owns one hook's run; the grace period is its caller's."""

from __future__ import annotations

from typing import Protocol

from controlplane.base.clock import Clock
from controlplane.pb.k8s.core_v1_pb2 import HTTPGetAction, LifecycleHandler
from node.probes import ProbeTarget, Result
from node.runtime.base import ContainerRuntimeError, Runtime

__all__ = ["HttpGetter", "run_hook"]


class HttpGetter(Protocol):
    """Makes the GET of an httpGet hook."""

    async def get(self, action: HTTPGetAction, target: ProbeTarget, timeout_s: float) -> Result: ...


async def run_hook(
    handler: LifecycleHandler,
    target: ProbeTarget,
    timeout_s: float,
    *,
    runtime: Runtime,
    http: HttpGetter,
    clock: Clock,
) -> str:
    """Run a hook for at most ``timeout_s`` seconds; returns what went wrong, empty if nothing did."""
    if handler.HasField("sleep"):
        await clock.sleep(min(float(handler.sleep.seconds), timeout_s))
        return ""
    if handler.HasField("exec"):
        try:
            done = await runtime.exec_sync(target.container_id, list(handler.exec.command), timeout_s)
        except ContainerRuntimeError as error:
            return str(error)
        return "" if done.exit_code == 0 else f"exit code {done.exit_code}: {done.output.strip()}"
    if handler.HasField("httpGet"):
        result = await http.get(handler.httpGet, target, timeout_s)
        return "" if result.ok else result.message
    return "this kind of hook is not served: want exec, httpGet or sleep"
