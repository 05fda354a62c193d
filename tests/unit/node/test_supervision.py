"""A running container and its probes, in virtual time."""

from __future__ import annotations

from tests.unit.node.pod_bench import Bench, ready
from tests.unit.node.support import make_pod


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
