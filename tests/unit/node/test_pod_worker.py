"""A pod's life in virtual time: order, phase, stop, adoption."""

from __future__ import annotations

from tests.unit.node.pod_bench import Bench, exits
from tests.unit.node.support import make_pod


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
