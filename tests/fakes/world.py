"""World: a control plane's components around one FakeApi, in virtual time: for tests of loops.

Everything runs on the test's own loop. ``settle`` lets it run until nothing changes any more, ``pass_time`` moves the
clock in small steps and settles after each, and ``kubelet`` plays the node agents: bound pods become ready, deleted
ones go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from controlplane.base.clock import ManualClock
from controlplane.base.rand import SeededRand
from controlplane.client.shared import CATCH_UP_S, SharedInformers
from controlplane.controllers.bundle import all_controllers
from controlplane.controllers.manager import ControllerFactory, ControllerManager
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.scheduler.scheduler import Scheduler
from tests.fakes.api import FakeApi

__all__ = ["RecordedEvents", "World", "world"]


class RecordedEvents:
    """An EventSink that remembers ``(type, reason, message)``."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str, str]] = []

    def event(self, regarding: Any, event_type: str, reason: str, message: str) -> None:
        self.said.append((event_type, reason, message))

    def reasons(self) -> list[str]:
        return [reason for _, reason, _ in self.said]


class World:
    """One replica's controllers and scheduler, and the cluster they see."""

    def __init__(self, factories: Sequence[ControllerFactory] | None = None, api: FakeApi | None = None) -> None:
        self.api = api or FakeApi(ManualClock())
        self.clock = self.api.clock
        self.rand = SeededRand(1)
        self.events = RecordedEvents()
        self.caches = SharedInformers(self.api, clock=self.clock, rand=self.rand)
        self.manager = ControllerManager(
            self.api,
            self.caches,
            all_controllers() if factories is None else factories,
            events=self.events,
            clock=self.clock,
            rand=self.rand,
        )
        self.scheduler = Scheduler(self.api, self.caches, events=self.events, clock=self.clock, rand=self.rand)
        self.kubelet_runs = True
        self.running: list[asyncio.Task[None]] = []

    async def lead(self, term: int = 1) -> None:
        """Win a term: from now on the fence of every earlier term is refused."""
        self.api.fence_revision = term
        fence = api_pb2.Fence(key=b"/quarterdeck/leader", mod_revision=term)
        await self.manager.lead(fence)
        await self.scheduler.lead(fence)
        await self.settle()
        await self.pass_time(CATCH_UP_S)  # a cache with nothing to hear may hold the term up that long

    async def stop_leading(self) -> None:
        await self.manager.stop_leading()
        await self.scheduler.stop_leading()

    async def settle(self, quiet_turns: int = 60) -> None:
        """Run until the cluster has not changed for that many turns of the loop."""
        for _ in range(200):
            before = self.api.revision
            for task in self.running:
                if task.done():
                    task.result()
            for _ in range(quiet_turns):
                await asyncio.sleep(0)
            if self.kubelet_runs:
                self.kubelet()
            if self.api.revision == before:
                return
        raise AssertionError("the cluster does not come to rest")

    async def pass_time(self, seconds: float, step_s: float = 0.25) -> None:
        """Move the clock, settling on the way."""
        left = seconds
        while left > 0:
            self.clock.advance(min(step_s, left))
            left -= step_s
            await self.settle()

    def kubelet(self) -> None:
        """What node agents do: start what is bound, remove what is to go. Pods labelled ``broken`` never get ready."""
        for pod in self.api.all(Pod):
            if pod.metadata.HasField("deletionTimestamp"):
                self.api.remove(Pod, pod.metadata.name, pod.metadata.namespace)
            elif pod.spec.nodeName and pod.status.phase == "Pending":
                pod.status.phase = "Running"
                pod.status.podIP = f"127.128.0.{sum(pod.metadata.name.encode()) % 250 + 1}"
                if "broken" not in pod.metadata.labels:
                    pod.status.conditions.add(type="Ready", status="True")
                self.api.put(pod)

    def add_node(self, name: str, cpu: str = "4", memory: str = "8Gi", ready: bool = True) -> Node:
        """A node that reports in."""
        node = Node()
        node.metadata.name = name
        node.metadata.labels["kubernetes.io/hostname"] = name
        for resource, amount in (("cpu", cpu), ("memory", memory), ("pods", "110")):
            node.status.allocatable[resource].string = amount
        node.status.conditions.add(type="Ready", status="True" if ready else "Unknown")
        return self.api.put(node)

    def pods(self, **labels: str) -> list[Pod]:
        """Pods with these labels, by name."""
        return [p for p in self.api.all(Pod) if all(p.metadata.labels.get(k) == v for k, v in labels.items())]


@asynccontextmanager
async def world(
    factories: Sequence[ControllerFactory] | None = None, nodes: int = 3, api: FakeApi | None = None
) -> AsyncIterator[World]:
    """A world with warm caches and that many nodes, not leading yet."""
    made = World(factories, api)
    for i in range(nodes):
        made.add_node(f"node-{i}")
    made.running = [asyncio.create_task(part.run()) for part in (made.caches, made.manager, made.scheduler)]
    try:
        await made.caches.wait_synced()
        yield made
    finally:
        await made.stop_leading()
        for task in made.running:
            task.cancel()
        await asyncio.wait(made.running)
