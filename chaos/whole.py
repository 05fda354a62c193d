"""A cluster that is whole: asked before it is broken, or nothing is learned, and after it is healed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from chaos.ground import Ground
from chaos.observe import POLL_S, processes_of_pods
from chaos.probes import node_ready
from controlplane.base.errors import QuarterdeckError

__all__ = ["NotWholeError", "Whole"]

_REPLICAS_TIMEOUT_S: Final = 45.0
_NODES_TIMEOUT_S: Final = 30.0
_PODS_TIMEOUT_S: Final = 45.0


class NotWholeError(QuarterdeckError):
    """Something is not as it should be, in time. The message says what, and how to look."""


@dataclass(frozen=True, slots=True)
class Whole:
    """``wanted``: pods that the workload asks for."""

    ground: Ground
    wanted: int

    async def wait(self) -> None:
        """Return once every replica serves, every node is Ready, and there are as many pods as wanted, all Ready and
        none going, each with a process: what the API says of a node that died a moment ago is not yet true.

        Raises:
            NotWholeError: not in time.
            ProcessError: a process has ended; with the end of its log.
        """
        cluster, ground = self.ground.cluster, self.ground
        if not await ground.replicas.until_whole(_REPLICAS_TIMEOUT_S, lambda: cluster.check_alive(cluster.names)):
            answers = await ground.replicas.statuses()
            serving = ", ".join(name for name, answer in answers.items() if answer.ready) or "none"
            raise NotWholeError(
                f"not every replica serves after {_REPLICAS_TIMEOUT_S:g} s (those that do: {serving}); see: qd status"
            )
        await asyncio.gather(*(self._until_node_ready(node.name) for node in cluster.spec.nodes))
        if await ground.pods.until(self._pods_settled, _PODS_TIMEOUT_S) is None:
            raise NotWholeError(f"not {self.wanted} Ready pods after {_PODS_TIMEOUT_S:g} s; see: qd get pods")

    async def _until_node_ready(self, name: str) -> None:
        deadline_s = self.ground.clock.monotonic() + _NODES_TIMEOUT_S
        while not await node_ready(self.ground.client, name):
            if self.ground.clock.monotonic() > deadline_s:
                raise NotWholeError(f"{name} is not Ready after {_NODES_TIMEOUT_S:g} s; see: qd get nodes")
            await self.ground.clock.sleep(POLL_S)

    def _pods_settled(self) -> bool:
        pods = self.ground.pods
        if not len(pods.views()) == len(pods.ready()) == self.wanted:
            return False
        return {pod.uid for pod in pods.ready()} <= set(processes_of_pods(self.ground.cluster))
