"""A pod's life in virtual time: order, restarts, back-off, probes, stop."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable

import pytest

from controlplane.pb.k8s.core_v1_pb2 import HTTPGetAction, Pod, Probe
from node.container_config import ContainerConfigs
from node.layout import Layout
from node.pod_worker import PodWorker, WorkerDeps
from node.probes import ProbeTarget, Result
from tests.unit.node.fake_runtime import FakeRuntime
from tests.unit.node.support import NoConfigMaps, RecordedEvents, make_pod
from tests.unit.node.virtual import VirtualClock


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


@pytest.fixture
async def bench(layout: Layout) -> AsyncIterator[Bench]:
    made = Bench(layout)
    yield made
    for worker in made.workers:
        await worker.abandon()


def ready(worker: PodWorker) -> bool:
    return any(c.type == "Ready" and c.status == "True" for c in worker.status().conditions)


def exits(*codes: int) -> Callable[[str, int], int | None]:
    """Each attempt ends at once with its code; later ones run on."""
    return lambda _name, attempt: codes[attempt] if attempt < len(codes) else None


async def test_a_crashing_container_is_restarted_with_growing_pauses(bench: Bench) -> None:
    bench.runtime.exit_of = lambda _n, _a: 1
    worker = await bench.begin(make_pod("a"))
    await bench.clock.run_for(20)
    times = [at for _, _, at in bench.runtime.started]
    assert [round(b - a) for a, b in itertools.pairwise(times)] == [0, 1, 2, 4, 8]
    status = worker.status()
    assert status.phase == "Running"
    container = status.containerStatuses[0]
    assert container.state.waiting.reason == "CrashLoopBackOff"
    assert container.restartCount == 5
    assert container.lastState.terminated.exitCode == 1
    assert bench.events.of("BackOff")
    # Two runs are kept, for the logs of the last one.
    assert len(bench.runtime.list_containers()) == 2


@pytest.mark.parametrize(
    ("policy", "codes", "phase", "runs"),
    [
        ("Never", (0,), "Succeeded", 1),
        ("Never", (1,), "Failed", 1),
        ("OnFailure", (1, 0), "Succeeded", 2),
        ("Always", (0,), "Running", 2),
    ],
)
async def test_the_restart_policy_decides_the_phase(
    bench: Bench, policy: str, codes: tuple[int, ...], phase: str, runs: int
) -> None:
    bench.runtime.exit_of = exits(*codes)
    worker = await bench.begin(make_pod("a", restart_policy=policy))
    await bench.clock.run_for(5)
    assert (worker.status().phase, len(bench.runtime.started)) == (phase, runs)


async def test_init_containers_run_one_after_the_other_before_the_rest(bench: Bench) -> None:
    pod = make_pod("a")
    for name in ("i1", "i2"):
        pod.spec.initContainers.add(name=name, image="host", command=["true"])
    bench.runtime.exit_of = lambda name, attempt: {"i1": 1 if attempt == 0 else 0}.get(name)
    worker = await bench.begin(pod)
    await bench.clock.run_for(1)
    assert [(name, attempt) for name, attempt, _ in bench.runtime.started] == [("i1", 0), ("i1", 1), ("i2", 0)]
    status = worker.status()
    assert status.phase == "Pending"
    assert status.containerStatuses[0].state.waiting.reason == "PodInitializing"
    assert {c.type: c.status for c in status.conditions}["Initialized"] == "False"
    bench.runtime.end("i2-0", 0)
    await bench.clock.run_for(1)
    assert worker.status().phase == "Running"
    assert {c.type: c.status for c in worker.status().conditions}["Initialized"] == "True"


async def test_a_failed_init_container_fails_a_pod_that_never_restarts(bench: Bench) -> None:
    pod = make_pod("a", restart_policy="Never")
    pod.spec.initContainers.add(name="i1", image="host", command=["false"])
    bench.runtime.exit_of = lambda name, _a: 1 if name == "i1" else None
    worker = await bench.begin(pod)
    await bench.clock.run_for(1)
    assert worker.status().phase == "Failed"
    assert [name for name, _, _ in bench.runtime.started] == ["i1"]


async def test_readiness_follows_its_probe(bench: Bench) -> None:
    pod = make_pod("a")
    pod.spec.containers[0].readinessProbe.periodSeconds = 1
    pod.spec.containers[0].readinessProbe.handler.tcpSocket.port.intVal = 80
    bench.prober.healthy = False
    worker = await bench.begin(pod)
    await bench.clock.run_for(2)
    assert not ready(worker)
    bench.prober.healthy = True
    await bench.clock.run_for(2)
    assert ready(worker)
    bench.prober.healthy = False
    await bench.clock.run_for(6)
    assert not ready(worker)
    assert worker.status().containerStatuses[0].restartCount == 0
    assert bench.events.of("Unhealthy")


async def test_a_container_that_fails_its_liveness_probe_is_restarted(bench: Bench) -> None:
    pod = make_pod("a", grace_s=7)
    pod.spec.containers[0].livenessProbe.periodSeconds = 2
    pod.spec.containers[0].livenessProbe.handler.exec.command.append("true")
    worker = await bench.begin(pod)
    await bench.clock.run_for(3)
    bench.prober.healthy = False
    await bench.clock.run_for(5)
    bench.prober.healthy = True
    await bench.clock.run_for(3)
    assert bench.runtime.stopped == [("main-0", 7.0)]
    assert worker.status().containerStatuses[0].restartCount == 1
    assert ready(worker)


async def test_a_startup_probe_holds_back_the_others(bench: Bench) -> None:
    pod = make_pod("a")
    pod.spec.containers[0].startupProbe.handler.tcpSocket.port.intVal = 80
    bench.prober.healthy = False
    worker = await bench.begin(pod)
    await bench.clock.run_for(2)
    assert not worker.status().containerStatuses[0].started
    assert not ready(worker)
    bench.prober.healthy = True
    await bench.clock.run_for(5)
    assert ready(worker)


async def test_stop_runs_the_hook_first_and_takes_its_time_from_the_grace(bench: Bench) -> None:
    pod = make_pod("a")
    pod.spec.containers[0].lifecycle.preStop.sleep.seconds = 4
    worker = await bench.begin(pod)
    assert ready(worker)
    worker.stop(10)
    await bench.clock.settle()
    assert not ready(worker)
    assert bench.runtime.stopped == []
    await bench.clock.run_for(5)
    assert bench.runtime.stopped == [("main-0", 6.0)]
    assert worker.observed.stopped
    assert worker.status().containerStatuses[0].state.terminated.exitCode == 143


async def test_a_shorter_grace_cuts_a_stop_under_way(bench: Bench) -> None:
    pod = make_pod("a")
    pod.spec.containers[0].lifecycle.preStop.sleep.seconds = 100
    worker = await bench.begin(pod)
    worker.stop(200)
    await bench.clock.run_for(5)
    worker.stop(0)
    await bench.clock.run_for(1)
    assert worker.observed.stopped
    assert ("main-0", 0) in bench.runtime.stopped


async def test_an_image_that_cannot_be_had_waits_and_is_tried_again(bench: Bench) -> None:
    worker = await bench.begin(make_pod("a", image="nginx"))
    await bench.clock.run_for(20)
    waiting = worker.status().containerStatuses[0].state.waiting
    assert (waiting.reason, worker.status().phase) == ("ErrImageNeverPull", "Pending")
    assert len(bench.events.of("Failed")) == 1
    worker.stop(5)
    await bench.clock.run_for(1)
    assert worker.observed.stopped


async def test_a_pod_the_node_ends_is_failed_and_one_that_succeeded_stays_so(bench: Bench) -> None:
    running = await bench.begin(make_pod("a"))
    running.stop(5, failed_reason="NodeShutdown", failed_message="why")
    await bench.clock.run_for(1)
    assert (running.status().phase, running.status().reason) == ("Failed", "NodeShutdown")
    bench.runtime.exit_of = exits(0)
    done = await bench.begin(make_pod("b", restart_policy="Never"))
    await bench.clock.run_for(1)
    done.stop(5, failed_reason="NodeShutdown", failed_message="why")
    await bench.clock.run_for(1)
    assert (done.status().phase, done.status().reason) == ("Succeeded", "")


async def test_a_condition_keeps_its_time_while_its_status_stays(bench: Bench) -> None:
    worker = await bench.begin(make_pod("a"))
    before = {c.type: c.lastTransitionTime.seconds for c in worker.status().conditions}
    await bench.clock.run_for(60)
    assert {c.type: c.lastTransitionTime.seconds for c in worker.status().conditions} == before


async def test_what_runs_is_adopted_before_the_control_plane_has_spoken_and_nothing_is_started_until_then(
    bench: Bench,
) -> None:
    pod = make_pod("a")
    first = await bench.begin(pod)
    await first.abandon()
    bench.runtime.end("main-0", 137)  # the machine died with the agent
    second = await bench.begin(pod, confirmed=False)
    await bench.clock.run_for(30)
    assert [(name, attempt) for name, attempt, _ in bench.runtime.started] == [("main", 0)]
    second.confirm()
    await bench.clock.settle()
    assert [(name, attempt) for name, attempt, _ in bench.runtime.started] == [("main", 0), ("main", 1)]
