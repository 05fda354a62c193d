"""The same controllers and scheduler on the real API server and store (over a Raft that commits at once): what the fake
API of the other tests promises is what the real one does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from controlplane.base.rand import SeededRand
from controlplane.client.fenced import LEADER_KEY
from controlplane.client.inprocess import InProcessClient
from controlplane.client.interface import NotFoundError
from controlplane.client.shared import SharedInformers
from controlplane.controllers.bundle import all_controllers
from controlplane.controllers.manager import ControllerManager
from controlplane.pb.etcd import rpc_pb2 as etcd
from controlplane.pb.k8s.apps_v1_pb2 import Deployment, ReplicaSet
from controlplane.pb.k8s.core_v1_pb2 import Namespace, Node, Pod, Service
from controlplane.pb.k8s.discovery_v1_pb2 import EndpointSlice
from controlplane.pb.k8s.meta_v1_pb2 import ObjectMeta
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.scheduler.scheduler import Scheduler
from tests.fakes.world import RecordedEvents
from tests.unit.api.support import Cluster


class Replica:
    """One replica above Raft, and node agents that do their work at once."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.clock = cluster.clock
        self.rand = SeededRand(7)
        self.client = InProcessClient(cluster.api, clock=self.clock, rand=self.rand)
        self.events = RecordedEvents()
        self.caches = SharedInformers(self.client, clock=self.clock, rand=self.rand)
        self.manager = ControllerManager(
            self.client, self.caches, all_controllers(), events=self.events, clock=self.clock, rand=self.rand
        )
        self.scheduler = Scheduler(self.client, self.caches, events=self.events, clock=self.clock, rand=self.rand)
        self.running = [asyncio.create_task(part.run()) for part in (self.caches, self.manager, self.scheduler)]

    async def lead(self) -> None:
        written = await self.cluster.kv.txn(
            etcd.TxnRequest(
                success=[etcd.RequestOp(request_put=etcd.PutRequest(key=LEADER_KEY, value=b"r1"))],
            )
        )
        fence = api_pb2.Fence(key=LEADER_KEY, mod_revision=written.header.revision)
        await self.manager.lead(fence)
        await self.scheduler.lead(fence)

    async def live(self, seconds: float) -> None:
        """Let time pass, with agents at work."""
        for _ in range(round(seconds / 0.1)):
            for _ in range(150):
                await asyncio.sleep(0)
            for task in self.running:
                if task.done():
                    task.result()
            await self.agents()
            self.clock.advance(0.1)

    async def agents(self) -> None:
        for pod in (await self.client.list(Pod)).items:
            if pod.metadata.HasField("deletionTimestamp"):
                await self.client.delete(Pod, pod.metadata.name, namespace=pod.metadata.namespace, grace_period_s=0)
            elif pod.spec.nodeName and pod.status.phase != "Running":
                pod.status.phase = "Running"
                pod.status.podIP = "127.128.0.1"
                pod.status.conditions.add(type="Ready", status="True")
                await self.client.update_status(pod)

    async def stop(self) -> None:
        await self.manager.stop_leading()
        await self.scheduler.stop_leading()
        for task in self.running:
            task.cancel()
        await asyncio.wait(self.running)


@asynccontextmanager
async def replica() -> AsyncIterator[Replica]:
    made = Replica(await Cluster().start())
    try:
        for i in range(3):
            node = Node(metadata=ObjectMeta(name=f"node-{i}"))
            for resource, amount in (("cpu", "4"), ("memory", "8Gi"), ("pods", "110")):
                node.status.allocatable[resource].string = amount
            node.status.conditions.add(type="Ready", status="True")
            created = await made.client.create(node)
            created.status.CopyFrom(node.status)
            await made.client.update_status(created)
        await made.lead()
        yield made
    finally:
        await made.stop()


def web(namespace: str, image: str = "host") -> Deployment:
    made = Deployment(metadata=ObjectMeta(name="web", namespace=namespace))
    made.spec.replicas = 6
    made.spec.selector.matchLabels["app"] = "web"
    made.spec.template.metadata.labels["app"] = "web"
    container = made.spec.template.spec.containers.add(name="web", image=image)
    container.resources.requests["cpu"].string = "100m"
    return made


async def test_from_manifest_to_endpoints_through_a_rollout_to_nothing() -> None:
    async with replica() as r:
        await r.client.create(Namespace(metadata=ObjectMeta(name="shop")))
        service = Service(metadata=ObjectMeta(name="web", namespace="shop"))
        service.spec.selector["app"] = "web"
        service.spec.ports.add(name="http", port=80)
        await r.client.create(service)
        await r.client.create(web("shop"))
        await r.live(1.5)
        deployment = await r.client.get(Deployment, "web", namespace="shop")
        assert deployment.status.availableReplicas == 6
        assert deployment.status.observedGeneration == deployment.metadata.generation
        pods = (await r.client.list(Pod, namespace="shop")).items
        assert sorted(p.spec.nodeName for p in pods) == [f"node-{i}" for i in (0, 0, 1, 1, 2, 2)]
        slices = (await r.client.list(EndpointSlice, namespace="shop")).items
        assert [e.conditions.ready for s in slices for e in s.endpoints] == [True] * 6

        deployment.spec.template.spec.containers[0].image = "host:2"
        await r.client.update(deployment)
        await r.live(3)
        pods = (await r.client.list(Pod, namespace="shop")).items
        assert [p.spec.containers[0].image for p in pods] == ["host:2"] * 6
        assert len((await r.client.list(ReplicaSet, namespace="shop")).items) == 2

        await r.client.delete(Namespace, "shop")
        await r.live(3)
        kinds: tuple[type[Any], ...] = (Deployment, ReplicaSet, Pod, Service, EndpointSlice)
        for kind in kinds:
            assert (await r.client.list(kind, namespace="shop")).items == []
        try:
            left = await r.client.get(Namespace, "shop")
        except NotFoundError:
            left = None
        assert left is None


async def test_at_rest_nothing_is_written() -> None:
    async with replica() as r:
        await r.client.create(web("default"))
        await r.live(2)
        before = (await r.client.list(Node)).resource_version
        await r.live(5)
        assert (await r.client.list(Node)).resource_version == before


async def test_a_newer_leader_fences_this_one_off() -> None:
    async with replica() as r:
        await r.live(0.5)
        await r.cluster.kv.txn(
            etcd.TxnRequest(success=[etcd.RequestOp(request_put=etcd.PutRequest(key=LEADER_KEY, value=b"r2"))])
        )
        await r.client.create(web("default"))
        await r.live(1)
        assert (await r.client.list(ReplicaSet)).items == []
        assert not r.manager.leading
