"""One container in virtual time: restarts, back-off, what cannot be started yet."""

from __future__ import annotations

import itertools

import pytest

from tests.unit.node.pod_bench import Bench, exits
from tests.unit.node.support import make_pod


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


async def test_an_image_that_cannot_be_had_waits_and_is_tried_again(bench: Bench) -> None:
    worker = await bench.begin(make_pod("a", image="nginx"))
    await bench.clock.run_for(20)
    waiting = worker.status().containerStatuses[0].state.waiting
    assert (waiting.reason, worker.status().phase) == ("ErrImageNeverPull", "Pending")
    assert len(bench.events.of("Failed")) == 1
    worker.stop(5)
    await bench.clock.run_for(1)
    assert worker.observed.stopped
