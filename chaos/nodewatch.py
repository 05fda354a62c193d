"""The watch on the nodes: whether each agent is heard, which nodes the API has given up, and which pods went.

Owns the looking and what is written of it; judges nothing (``checkers.evictions`` does). Agents are asked from outside
the cluster, at their own health address: whether they have a session with a replica. So the account of who was there
does not come from who decides about it. Where that address is not known (chaos agents) nothing is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, Self

from chaos.ground import WORKLOAD, Ground
from chaos.history import Recorder
from chaos.observe import PodView
from chaos.records import NodeSeen, PodSeen
from chaos.workload import fetch
from controlplane.base.addresses import split_address
from controlplane.client import Informer
from controlplane.pb.k8s.core_v1_pb2 import Node

__all__ = ["UNREACHABLE", "Attendance", "NodeWatch", "given_up"]

#: The taint that drives a node's pods away: key and effect.
UNREACHABLE: Final = ("node.kubernetes.io/unreachable", "NoExecute")
_ASK_EVERY_S: Final = 0.25
_ASK_TIMEOUT_S: Final = 1.0
#: Between two answers an agent may have been away for that long without our knowing, if we asked so seldom.
_BLIND_S: Final = 1.0
_LOOK_EVERY_S: Final = 0.1


def given_up(node: Node) -> bool:
    """Whether the API says that the node's pods must go."""
    return any((taint.key, taint.effect) == UNREACHABLE for taint in node.spec.taints)


@dataclass(slots=True)
class Attendance:
    """What is known of one node; each change is one record. Times in ns of the history's clock."""

    node: str
    last_ns: int
    said: NodeSeen | None = None

    def asked(self, call_ns: int, now_ns: int, *, heard: bool) -> list[NodeSeen]:
        """An answer, or none, to what was asked at ``call_ns``."""
        found: list[NodeSeen] = []
        if heard:
            if self.said is not None and self.said.heard and call_ns - self.last_ns > _BLIND_S * 1e9:
                found += self._say(call_ns, heard=False)
            found += self._say(now_ns, heard=True)
            self.last_ns = call_ns
        else:
            found += self._say(now_ns, heard=False)
        return found

    def told(self, now_ns: int, *, condemned: bool) -> list[NodeSeen]:
        """What the API says. Nothing is written of a node that was never asked."""
        if self.said is None or self.said.condemned == condemned:
            return []
        self.said = replace(self.said, at_ns=now_ns, condemned=condemned)
        return [self.said]

    def _say(self, now_ns: int, *, heard: bool) -> list[NodeSeen]:
        if self.said is not None and self.said.heard == heard:
            return []
        condemned = self.said is not None and self.said.condemned
        since_ns = 0 if heard else self.last_ns
        self.said = NodeSeen(now_ns, self.node, heard=heard, since_ns=since_ns, condemned=condemned)
        return [self.said]


class NodeWatch:
    """Use as a context manager. ``ask``: whether the agent at that health address has a session."""

    def __init__(self, ground: Ground, recorder: Recorder, ask: Callable[[str], Awaitable[bool]] | None = None) -> None:
        self._ground = ground
        self._recorder = recorder
        self._ask = ask or _has_session
        self._nodes = Informer(ground.client, Node, clock=ground.clock, rand=ground.rand, backoff_cap_s=0.2)
        self._known: dict[str, Attendance] = {}
        self._pods: dict[str, PodView] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._asking: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        if any(node.metrics for node in self._ground.cluster.spec.nodes):
            self._tasks = [asyncio.create_task(work) for work in (self._nodes.run(), self._look())]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        tasks = [*self._tasks, *self._asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            self._follow()
            now_ns = self._recorder.now_ns()
            for node in self._nodes.list():
                if (known := self._known.get(node.metadata.name)) is not None:
                    self._write(known.told(now_ns, condemned=given_up(node)))
            self._note_pods(now_ns)
            await self._ground.clock.sleep(_LOOK_EVERY_S)

    def _follow(self) -> None:
        """Ask everyone that is there: nodes come and go."""
        there = {node.name: node.metrics for node in self._ground.cluster.spec.nodes if node.metrics}
        for name, address in there.items():
            if name not in self._asking:
                self._known.setdefault(name, Attendance(name, self._recorder.now_ns()))
                self._asking[name] = asyncio.create_task(self._keep_asking(self._known[name], address))
        for name in self._asking.keys() - there.keys():
            self._asking.pop(name).cancel()

    async def _keep_asking(self, known: Attendance, address: str) -> None:
        while True:
            call_ns = self._recorder.now_ns()
            heard = await self._ask(address)
            self._write(known.asked(call_ns, self._recorder.now_ns(), heard=heard))
            await self._ground.clock.sleep(_ASK_EVERY_S)

    def _note_pods(self, now_ns: int) -> None:
        """Where each pod of the workload is, and that it goes or is gone."""
        now = {pod.uid: pod for pod in self._ground.pods.views()}
        for uid, pod in now.items():
            was = self._pods.get(uid)
            if was is None or (was.node, was.deleting) != (pod.node, pod.deleting):
                self._recorder.pod(PodSeen(now_ns, WORKLOAD, uid, pod.name, pod.node, deleting=pod.deleting))
        for uid in self._pods.keys() - now.keys():
            pod = self._pods[uid]
            self._recorder.pod(PodSeen(now_ns, WORKLOAD, uid, pod.name, pod.node, gone=True))
        self._pods = now

    def _write(self, found: list[NodeSeen]) -> None:
        for seen in found:
            self._recorder.node(seen)


async def _has_session(address: str) -> bool:
    host, port = split_address(address)
    return await fetch(host, port, path="/readyz", timeout_s=_ASK_TIMEOUT_S) is None
