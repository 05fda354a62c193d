"""The pods of a node: what an agent does with the pods an earlier agent left, before and after it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.pb.quarterdeck.v1.node_pb2 import Assignments, PodStatusReport
from node.container_config import ContainerConfigs
from node.layout import Layout
from node.pod_scope import WorkerDeps
from node.podips import PodIPs
from node.pods import NodePods
from tests.unit.node.fake_runtime import FakeRuntime
from tests.unit.node.support import AlwaysHealthy, NoConfigMaps, RecordedEvents, make_pod
from tests.unit.node.virtual import VirtualClock


class Machine:
    """One node whose agent may die and come back."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.clock = VirtualClock()
        self.runtime = FakeRuntime(self.clock)
        self.reports: dict[str, PodStatusReport] = {}
        self.pods: NodePods = self._agent()

    def _agent(self) -> NodePods:
        ips = PodIPs(self.layout.root / "podips.json")
        ips.set_cidr("127.130.1.0/24")
        deps = WorkerDeps(
            runtime=self.runtime,
            configs=ContainerConfigs(self.layout, NoConfigMaps(), node_name="node-1", host_ip="127.0.0.1"),
            prober=AlwaysHealthy(),
            clock=self.clock,
            events=RecordedEvents(),
            host_ip="127.0.0.1",
        )
        return NodePods(self.layout, deps, ips, report=self._report, drop=lambda _uid: None)

    def _report(self, report: PodStatusReport) -> None:
        self.reports[report.uid] = report

    async def assigned(self, *pods: Pod) -> None:
        """A replica sends its first, full list."""
        self.pods.assigned(Assignments(full=True, upserts=pods))
        await self.clock.settle()

    async def agent_returns(self) -> None:
        """The agent dies and another takes its place."""
        await self.pods.abandon()
        self.pods = self._agent()
        await self.pods.adopt()
        await self.clock.run_for(10)

    def starts(self) -> list[tuple[str, int]]:
        return [(name, attempt) for name, attempt, _ in self.runtime.started]


@pytest.fixture
async def machine(layout: Layout) -> AsyncIterator[Machine]:
    made = Machine(layout)
    yield made
    await made.pods.abandon()


async def test_a_new_agent_does_not_run_a_dead_pod_again_that_was_replaced_meanwhile(machine: Machine) -> None:
    await machine.assigned(make_pod("a"))
    machine.runtime.end("main-0", 137)  # with the machine
    await machine.agent_returns()
    assert machine.starts() == [("main", 0)]
    await machine.assigned()  # the pod was deleted while the machine was away
    await machine.clock.run_for(10)
    assert machine.starts() == [("main", 0)]
    assert machine.pods.workers == {}


async def test_a_new_agent_runs_a_dead_pod_again_when_it_is_told_that_it_is_still_its_own(machine: Machine) -> None:
    pod = make_pod("a")
    await machine.assigned(pod)
    machine.runtime.end("main-0", 137)
    await machine.agent_returns()
    await machine.assigned(pod)
    await machine.clock.run_for(10)
    assert machine.starts() == [("main", 0), ("main", 1)]


async def test_a_new_agent_leaves_what_still_runs_alone(machine: Machine) -> None:
    pod = make_pod("a")
    await machine.assigned(pod)
    await machine.agent_returns()
    assert machine.pods.running_uids() == [pod.metadata.uid]
    assert machine.reports[pod.metadata.uid].status.phase == "Running"
    await machine.assigned(pod)
    assert machine.starts() == [("main", 0)]
    assert machine.runtime.stopped == []
