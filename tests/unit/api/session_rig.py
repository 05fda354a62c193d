"""Replicas with node sessions, in one loop: real store and API server, a Raft that commits at once, a clock that moves
when told, and agents that say what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from controlplane.api.server import ApiServer
from controlplane.api.sessions import SessionConfig, Sessions
from controlplane.base.clock import ManualClock
from controlplane.base.errors import StatusError
from controlplane.base.rand import SeededRand
from controlplane.client.informer import Informer
from controlplane.client.inprocess import InProcessClient
from controlplane.etcd.local import LocalKV
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod
from controlplane.pb.quarterdeck.v1 import api_pb2, node_pb2
from controlplane.store.store import Store
from tests.fakes.raft import FakeRaft


async def settle(rounds: int = 60) -> None:
    """Let every task that can run, run."""
    for _ in range(rounds):
        await asyncio.sleep(0)


class Agent:
    """One end of a session: what it sends and everything it was told."""

    def __init__(self, sessions: Sessions, name: str, boot_id: str = "b1") -> None:
        self.name = name
        self.boot_id = boot_id
        self.told: list[node_pb2.ReplicaMessage] = []
        self._to_send: asyncio.Queue[node_pb2.AgentMessage | None] = asyncio.Queue()
        self.task = asyncio.create_task(sessions.serve(self._requests(), self._receive))
        self._beats = 0

    async def _requests(self) -> AsyncIterator[node_pb2.AgentMessage]:
        while (message := await self._to_send.get()) is not None:
            yield message

    async def _receive(self, message: node_pb2.ReplicaMessage) -> None:
        copy = node_pb2.ReplicaMessage()
        copy.CopyFrom(message)
        self.told.append(copy)

    async def send(self, *messages: node_pb2.AgentMessage) -> None:
        for message in messages:
            self._to_send.put_nowait(message)
        await settle()

    async def hello(self, *, taints: Sequence[str] = (), **labels: str) -> None:
        node = Node()
        for key in taints:
            node.spec.taints.add(key=key, effect="NoSchedule")
        node.metadata.labels.update(labels)
        node.status.capacity["cpu"].string = "4"
        node.status.allocatable["cpu"].string = "4"
        hello = node_pb2.Hello(node_name=self.name, boot_id=self.boot_id, node=node, protocol_version=1)
        await self.send(node_pb2.AgentMessage(hello=hello))

    async def heartbeat(self) -> None:
        self._beats += 1
        await self.send(node_pb2.AgentMessage(heartbeat=node_pb2.Heartbeat(sequence=self._beats)))

    async def report(self, sequence: int, *reports: node_pb2.PodStatusReport) -> None:
        batch = node_pb2.StatusBatch(sequence=sequence, reports=reports)
        await self.send(node_pb2.AgentMessage(statuses=batch))

    async def goodbye(self, *, drained: bool = False) -> None:
        await self.send(node_pb2.AgentMessage(goodbye=node_pb2.Goodbye(reason="stop", drained=drained)))

    async def hang_up(self) -> None:
        """The stream ends without a word: the process died."""
        self._to_send.put_nowait(None)
        await settle()

    async def error(self) -> StatusError:
        """How the replica ended the session."""
        with pytest.raises(StatusError) as caught:
            await asyncio.wait_for(asyncio.shield(self.task), 5)
        return caught.value

    def all(self, kind: str) -> list[Any]:
        """Every message of that kind it was told, in order."""
        return [getattr(message, kind) for message in self.told if message.WhichOneof("message") == kind]

    @property
    def pods(self) -> set[str]:
        """The names of the pods it has, going by all assignments."""
        pods: dict[str, str] = {}
        for message in self.all("assignments"):
            if message.full:
                pods.clear()
            pods.update({pod.metadata.uid: pod.metadata.name for pod in message.upserts})
            for uid in message.removed_uids:
                pods.pop(uid, None)
        return set(pods.values())


class Replica:
    """One replica: store, API server, pod cache, sessions."""

    def __init__(self, name: str, clock: ManualClock, join: Replica | None = None) -> None:
        self.store = Store(cluster_id=FakeRaft.CLUSTER_ID)
        # Every part draws from a sequence of its own: equal request ids would be retries of one another.
        self.raft: FakeRaft = FakeRaft(self.store, name=name, join=join.raft if join else None)
        self.kv = kv = LocalKV(self.raft, self.store, clock=clock, rand=SeededRand(f"kv {name}"))
        self.api = ApiServer(kv, clock=clock, rand=SeededRand(f"api {name}"))
        self.client = InProcessClient(self.api, clock=clock, rand=SeededRand(f"client {name}"))
        self.pod_cache = Informer(self.client, Pod, clock=clock, rand=SeededRand(f"cache {name}"))
        self.sessions = Sessions(
            self.api,
            kv,
            self.raft,
            self.pod_cache,
            config=SessionConfig(),
            clock=clock,
            rand=SeededRand(f"sessions {name}"),
        )


class Rig:
    """A cluster of replicas on one clock. The first leads."""

    def __init__(self, replicas: int) -> None:
        self.clock = ManualClock()
        self.replicas: list[Replica] = []
        for i in range(replicas):
            join = self.replicas[0] if self.replicas else None
            self.replicas.append(Replica(f"r{i + 1}", self.clock, join))
        self.agents: list[Agent] = []
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}

    @property
    def client(self) -> InProcessClient:
        return self.replicas[0].client

    @property
    def table(self) -> Any:
        return self.replicas[0].sessions.table

    def start(self) -> None:
        for replica in self.replicas:
            self._tasks[replica.raft.name] = [
                asyncio.create_task(replica.pod_cache.run()),
                asyncio.create_task(replica.sessions.run()),
            ]

    def agent(self, name: str, replica: int = 0, boot_id: str = "b1") -> Agent:
        agent = Agent(self.replicas[replica].sessions, name, boot_id)
        self.agents.append(agent)
        return agent

    async def pass_time(self, seconds: float, step_s: float = 0.1, *beating: Agent) -> None:
        """Move the clock in steps; the agents named beat at each."""
        for _ in range(round(seconds / step_s)):
            for agent in beating:
                await agent.heartbeat()
            self.clock.advance(step_s)
            await settle()

    async def kill(self, replica: int) -> None:
        """The replica's process is gone: no reports, no answers; its agents see a closed connection."""
        name = self.replicas[replica].raft.name
        self.replicas[replica].raft.reachable = False
        await _cancel(self._tasks.pop(name))

    async def stop(self) -> None:
        await _cancel([task for tasks in self._tasks.values() for task in tasks])
        await _cancel([agent.task for agent in self.agents])

    async def bound_pod(self, name: str, node: str) -> Pod:
        """A pod of the API, bound to the node."""
        pod = Pod()
        pod.metadata.name = name
        pod.metadata.namespace = "default"
        container = pod.spec.containers.add()
        container.name = "main"
        container.image = "host"
        created = await self.client.create(pod)
        results = await self.client.bind(
            [api_pb2.Binding(namespace="default", name=name, uid=created.metadata.uid, node_name=node)]
        )
        assert results[0].bound, results[0].message
        await settle()
        return await self.client.get(Pod, name, namespace="default")


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def running(replicas: int = 1) -> AsyncIterator[Rig]:
    """A started cluster."""
    rig = Rig(replicas)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(rig.stop)
        await rig.replicas[0].api.bootstrap()
        rig.start()
        await settle()
        yield rig
