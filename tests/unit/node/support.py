"""What the node's tests share: pods in a few words, a replica that is only a session, a collector of events."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from controlplane.pb.k8s.core_v1_pb2 import ConfigMap, HTTPGetAction, Pod, Probe
from controlplane.pb.quarterdeck.v1.node_pb2 import (
    AgentMessage,
    Assignments,
    Goodbye,
    HeartbeatAck,
    Hello,
    PodStatusReport,
    ReplicaMessage,
    StatusAck,
    Welcome,
)
from controlplane.pb.quarterdeck.v1.node_pb2_grpc import NodesServicer, add_NodesServicer_to_server
from node.probes import ProbeTarget, Result

__all__ = ["AlwaysHealthy", "FakeReplica", "NoConfigMaps", "RecordedEvents", "eventually", "make_pod"]


def make_pod(
    name: str = "web-1",
    *argv: str,
    uid: str = "",
    restart_policy: str = "Always",
    grace_s: int = 5,
    image: str = "host",
) -> Pod:
    """A pod of one container ``main``; by default it sleeps."""
    pod = Pod()
    pod.metadata.name = name
    pod.metadata.namespace = "default"
    pod.metadata.uid = uid or f"uid-{name}"
    pod.spec.restartPolicy = restart_policy
    pod.spec.terminationGracePeriodSeconds = grace_s
    container = pod.spec.containers.add(name="main", image=image)
    container.command.extend(argv or ("sleep", "300"))
    return pod


def python(code: str) -> tuple[str, ...]:
    """A command that runs this code, without site packages: starts in 10 ms."""
    return (sys.executable, "-ISc", code)


class NoConfigMaps:
    """There are none."""

    async def get(self, namespace: str, name: str) -> ConfigMap | None:
        return None


class AlwaysHealthy:
    """Every probe and hook succeeds."""

    async def check(self, probe: Probe, target: ProbeTarget) -> Result:
        return Result(True)

    async def get(self, action: HTTPGetAction, target: ProbeTarget, timeout_s: float) -> Result:
        return Result(True)


class RecordedEvents:
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str, str]] = []

    def event(self, regarding: Any, event_type: str, reason: str, message: str) -> None:
        self.said.append((event_type, reason, message))

    def of(self, reason: str) -> list[str]:
        """Messages of that reason."""
        return [message for _, said, message in self.said if said == reason]


async def eventually(condition: Callable[[], Any], *, timeout_s: float = 10.0) -> None:
    """Return when the condition holds; fail after a generous bound. Real processes have no virtual time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not condition():
        assert loop.time() < deadline, f"not within {timeout_s:g} s"
        await asyncio.sleep(0.01)


class FakeReplica(NodesServicer):
    """A replica that holds node sessions and has nothing behind it."""

    def __init__(self, name: str = "r1", *, pod_cidr: str = "127.130.1.0/24") -> None:
        self.name = name
        self.pod_cidr = pod_cidr
        self.hellos: list[Hello] = []
        self.statuses: dict[str, PodStatusReport] = {}
        self.history: list[PodStatusReport] = []
        self.goodbyes: list[Goodbye] = []
        self.endpoints: list[str] = []
        self.pods: dict[str, Pod] = {}
        self.answers_heartbeats = True
        self.acks_statuses = True
        self.sends_assignments = True
        self.endpoint = ""
        self._server: grpc.aio.Server | None = None
        self._outgoing: list[asyncio.Queue[ReplicaMessage]] = []

    @property
    def sessions(self) -> int:
        return len(self._outgoing)

    async def start(self, endpoint: str = "127.0.0.1:0") -> None:
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        add_NodesServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(endpoint)
        self.endpoint = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace=None)
            # The object schedules one more shutdown when it goes: let it go, and run that, while there is a loop.
            del server
            await asyncio.sleep(0.01)

    def assign(self, pod: Pod) -> None:
        """Bind or update a pod."""
        self.pods[pod.metadata.uid] = pod
        self._send(ReplicaMessage(assignments=Assignments(revision=1, upserts=[pod])))

    def remove(self, uid: str) -> None:
        """The pod's object is gone."""
        self.pods.pop(uid, None)
        self._send(ReplicaMessage(assignments=Assignments(revision=1, removed_uids=[uid])))

    def delete(self, uid: str, grace_s: int) -> None:
        """Ask for the pod's end, as a DELETE does."""
        pod = Pod()
        pod.CopyFrom(self.pods[uid])
        pod.metadata.deletionTimestamp.seconds = 1
        pod.metadata.deletionGracePeriodSeconds = grace_s
        self.assign(pod)

    def _send(self, message: ReplicaMessage) -> None:
        for queue in self._outgoing:
            queue.put_nowait(message)

    def phase(self, uid: str) -> str:
        return self.statuses[uid].status.phase if uid in self.statuses else ""

    def ready(self, uid: str) -> bool:
        report = self.statuses.get(uid)
        return report is not None and any(c.type == "Ready" and c.status == "True" for c in report.status.conditions)

    async def Session(self, request_iterator: Any, context: Any) -> AsyncIterator[ReplicaMessage]:
        outgoing: asyncio.Queue[ReplicaMessage] = asyncio.Queue()
        reader = asyncio.get_running_loop().create_task(self._read(request_iterator, outgoing))
        self._outgoing.append(outgoing)
        try:
            while True:
                getter = asyncio.ensure_future(outgoing.get())
                await asyncio.wait({getter, reader}, return_when=asyncio.FIRST_COMPLETED)
                if not getter.done():
                    getter.cancel()
                    return
                yield getter.result()
        finally:
            self._outgoing.remove(outgoing)
            reader.cancel()

    async def _read(self, requests: AsyncIterator[AgentMessage], outgoing: asyncio.Queue[ReplicaMessage]) -> None:
        async for message in requests:
            match message.WhichOneof("message"):
                case "hello":
                    self.hellos.append(message.hello)
                    outgoing.put_nowait(
                        ReplicaMessage(
                            welcome=Welcome(
                                replica=self.name,
                                pod_cidr=self.pod_cidr,
                                heartbeat_interval_ms=100,
                                endpoints=self.endpoints,
                            )
                        )
                    )
                    if self.sends_assignments:
                        full = Assignments(revision=1, full=True, upserts=self.pods.values())
                        outgoing.put_nowait(ReplicaMessage(assignments=full))
                case "heartbeat":
                    if self.answers_heartbeats:
                        ack = HeartbeatAck(sequence=message.heartbeat.sequence)
                        outgoing.put_nowait(ReplicaMessage(heartbeat_ack=ack))
                case "statuses":
                    for report in message.statuses.reports:
                        self.statuses[report.uid] = report
                        self.history.append(report)
                    if self.acks_statuses:
                        outgoing.put_nowait(ReplicaMessage(status_ack=StatusAck(sequence=message.statuses.sequence)))
                case "goodbye":
                    self.goodbyes.append(message.goodbye)
                    return
