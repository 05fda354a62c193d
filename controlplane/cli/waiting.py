"""Waiting for a local cluster to serve: counts that are to be reached, shown while they are not.

Owns the look of progress, the time limit, and how it is found out that replicas and nodes are ready. Must not know what
was started, or what to undo when it does not come.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from controlplane.base.errors import StatusError
from controlplane.cli.common import err
from controlplane.client import GrpcClient
from controlplane.local.cluster import LocalCluster
from controlplane.local.processes import ProcessError
from controlplane.pb.k8s.core_v1_pb2 import Node

__all__ = ["POLL_S", "Waiter", "wait_nodes", "wait_replicas"]

#: Between two looks.
POLL_S: Final = 0.05


class Waiter:
    """Waits for counts to be reached, shows how far they are, and fails with the reason when time is up.

    On a terminal a live bar per count; else one line when each is reached.
    """

    def __init__(self, cluster: LocalCluster, timeout_s: float, names: Sequence[str] = ()) -> None:
        self._cluster = cluster
        self._names = names or cluster.names
        self._deadline = time.monotonic() + timeout_s
        self._progress = Progress(
            TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=err
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if err.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if err.is_terminal:
            self._progress.stop()

    def show(self, what: str, done: int, total: int) -> bool:
        """Report a count; True when it is complete. Raises ProcessError when time is up or a process has died."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=min(done, total), total=total)
        if done >= total:
            if not err.is_terminal:
                err.print(f"{what}: {done}/{total}")
            return True
        self._cluster.check_alive(self._names)
        if time.monotonic() > self._deadline:
            raise ProcessError(
                f"{what}: {done} of {total}, and the time is up; the logs are in {self._cluster.root / 'logs'}"
            )
        return False


async def wait_replicas(cluster: LocalCluster, waiter: Waiter) -> None:
    """Return once every replica answers /readyz."""
    import aiohttp  # late: replicas load meanwhile, and a restore is in a hurry to start them

    timeout = aiohttp.ClientTimeout(total=1.0)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def ready(address: str) -> bool:
            try:
                async with session.get(f"http://{address}/readyz") as response:
                    return response.status == 200
            except (aiohttp.ClientError, TimeoutError):
                return False

        while True:
            answers = await asyncio.gather(*(ready(replica.metrics) for replica in cluster.spec.replicas))
            if waiter.show("replicas ready", sum(answers), len(answers)):
                return
            await asyncio.sleep(POLL_S)


async def wait_nodes(cluster: LocalCluster, client: GrpcClient, waiter: Waiter) -> None:
    """Return once every node of the plan is Ready."""
    from controlplane.cli.printers import node_status

    wanted = {node.name for node in cluster.spec.nodes}
    while True:
        try:
            nodes = (await client.list(Node)).items
        except StatusError:
            nodes = []
        ready = {n.metadata.name for n in nodes if node_status(n) == "Ready"}
        if waiter.show("nodes ready", len(wanted & ready), len(wanted)):
            return
        await asyncio.sleep(POLL_S)
