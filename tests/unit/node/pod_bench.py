"""One pod worker in virtual time, with a runtime, probes and events that a test sees through."""

from __future__ import annotations

from collections.abc import Callable

from controlplane.pb.k8s.core_v1_pb2 import HTTPGetAction, Pod, Probe
from node.container_config import ContainerConfigs
from node.layout import Layout
from node.pod_scope import WorkerDeps
from node.pod_worker import PodWorker
from node.probes import ProbeTarget, Result
from tests.unit.node.fake_runtime import FakeRuntime
from tests.unit.node.support import NoConfigMaps, RecordedEvents
from tests.unit.node.virtual import VirtualClock

__all__ = ["Bench", "SwitchProber", "exits", "ready"]


class SwitchProber:
    """Healthy or not, as the test says."""

    def __init__(self) -> None:
        self.healthy = True

    async def check(self, probe: Probe, target: ProbeTarget) -> Result:
        return Result(self.healthy, "switched off")

    async def get(self, action: HTTPGetAction, target: ProbeTarget, timeout_s: float) -> Result:
        return Result(self.healthy)


class Bench:
    """One worker and all it touches."""

    def __init__(self, layout: Layout) -> None:
        self.clock = VirtualClock()
        self.runtime = FakeRuntime(self.clock)
        self.prober = SwitchProber()
        self.events = RecordedEvents()
        self._deps = WorkerDeps(
            runtime=self.runtime,
            configs=ContainerConfigs(layout, NoConfigMaps(), node_name="node-1", host_ip="127.0.0.1"),
            prober=self.prober,
            clock=self.clock,
            events=self.events,
            host_ip="127.0.0.1",
        )
        self.workers: list[PodWorker] = []

    async def begin(self, pod: Pod, *, confirmed: bool = True) -> PodWorker:
        worker = PodWorker(pod, ip="127.130.1.2", accepted_at_ms=1, deps=self._deps, on_change=lambda _uid: None)
        if confirmed:
            worker.confirm()
        self.workers.append(worker)
        worker.begin()
        await self.clock.settle()
        return worker


def ready(worker: PodWorker) -> bool:
    return any(c.type == "Ready" and c.status == "True" for c in worker.status().conditions)


def exits(*codes: int) -> Callable[[str, int], int | None]:
    """Each attempt ends at once with its code; later ones run on."""
    return lambda _name, attempt: codes[attempt] if attempt < len(codes) else None
