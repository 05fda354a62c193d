"""The end of a container: hook, signal, grace."""

from __future__ import annotations

from tests.unit.node.pod_bench import Bench, ready
from tests.unit.node.support import make_pod


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
