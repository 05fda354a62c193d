"""The whole load as one thing: started, checked, stopped and read back. Owns its tasks and connections."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Self

from chaos.history import Recorder
from chaos.observe import processes_by_node
from chaos.records import Listing
from chaos.workload import Board, Pace, Reader, ServiceClient, Watcher, Writer, read_prefix
from chaos.workload.contest import SHARED_PARTS, Contest
from chaos.workload.deploy import Rollouts
from controlplane.base.clock import Clock
from controlplane.base.errors import ConfigError, QuarterdeckError
from controlplane.base.rand import Rand
from controlplane.client import ApiClient, EtcdClient
from controlplane.client.tls import Credentials
from controlplane.local.cluster import LocalCluster

__all__ = ["DEFAULT_PARTS", "PARTS", "Load", "LoadError", "Rates"]

#: Everything a load can be made of, and what it is made of if nobody says.
PARTS: Final = ("kv", "watch", "http", "txn", "lease", "lock", "deploy")
DEFAULT_PARTS: Final = ("kv", "watch", "http", "txn", "lease", "lock", "deploy")

_CATCH_UP_TIMEOUT_S = 5.0


class LoadError(QuarterdeckError):
    """A part of the load ended by itself: the run proves nothing."""


@dataclass(frozen=True, slots=True)
class Rates:
    """How much load. Per second: writes of each writer, reads of each reader, requests of all HTTP clients together."""

    writes: float = 40.0
    reads: float = 15.0
    requests: float = 60.0
    http_clients: int = 4
    http_timeout_s: float = 1.0


class Load:
    """Steady load on whoever serves the key-value API and on one Service address."""

    def __init__(
        self,
        endpoints: Sequence[str],
        service: tuple[str, int],
        *,
        prefix: str,
        recorder: Recorder,
        rates: Rates,
        clock: Clock,
        rand: Rand,
        foreign: bool = False,
        credentials: Credentials | None = None,
        parts: Collection[str] = DEFAULT_PARTS,
        api: ApiClient | None = None,
        cluster: LocalCluster | None = None,
    ) -> None:
        """``foreign``: the endpoints are etcd's own members. ``credentials``: shown to them. ``api`` and ``cluster``:
        for the part ``deploy``, which works on a Deployment and looks at the processes of its pods.

        Raises:
            ConfigError: a part that there is not, or ``deploy`` without a cluster.
        """
        if unknown := sorted(set(parts) - set(PARTS)):
            raise ConfigError(f"workload {', '.join(unknown)} is unknown; there are: {', '.join(PARTS)}")
        self._parts = frozenset(parts)
        self._foreign = foreign
        self._credentials = credentials
        self._prefix = prefix
        self._recorder = recorder
        self.board = Board()
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._watching: asyncio.Task[None] | None = None
        # A client for each: sharing one would make the parts share its choice of replica.
        self._clients: list[EtcdClient] = []
        self._writers = [
            Writer(n, prefix, self._client(endpoints, first), self.board, recorder, Pace(rates.writes, clock), rand)
            for n, first in enumerate(endpoints, start=1)
        ]
        self._readers = [
            Reader(n, self._client(endpoints, first), self.board, recorder, Pace(rates.reads, clock))
            for n, first in enumerate(endpoints, start=1)
        ]
        each = rates.requests / rates.http_clients
        self._http = [
            ServiceClient(n, service, recorder, Pace(each, clock), rates.http_timeout_s)
            for n in range(1, rates.http_clients + 1)
        ]
        self._watcher = Watcher(prefix, self._client(endpoints, endpoints[0]), recorder, clock)
        self._contest: Contest | None = None
        if SHARED_PARTS & self._parts:

            def connect(n: int) -> EtcdClient:
                return self._client(endpoints, endpoints[n % len(endpoints)])

            self._contest = Contest(self._parts, prefix, connect, recorder, clock, rand, foreign=foreign)

        self._rollouts: Rollouts | None = None
        if "deploy" in self._parts:
            if api is None or cluster is None:
                raise ConfigError("workload deploy needs a cluster of this machine")
            self._rollouts = Rollouts(api, lambda: processes_by_node(cluster), recorder, clock, rand)

    def _client(self, endpoints: Sequence[str], first: str) -> EtcdClient:
        client = EtcdClient(endpoints, first=first, foreign=self._foreign, credentials=self._credentials)
        self._clients.append(client)
        return client

    async def start(self) -> None:
        """Begin: the watcher before the first write. Raises ApiError."""
        if "watch" in self._parts:
            await self._watcher.begin()
            self._watching = asyncio.create_task(self._watcher.run())
        parts: list[Writer | Reader | ServiceClient] = []
        if "kv" in self._parts:
            parts += [*self._writers, *self._readers]
        if "http" in self._parts:
            parts += self._http
        self._tasks = [asyncio.create_task(part.run(self._stopping)) for part in parts]
        if self._contest is not None:
            self._tasks += await self._contest.start(self._stopping)
        if self._rollouts is not None:
            await self._rollouts.start()
            self._tasks.append(asyncio.create_task(self._rollouts.run(self._stopping)))

    def check(self) -> None:
        """Raise LoadError if a part has ended."""
        for task in self._running():
            if task.done() and not task.cancelled() and not self._stopping.is_set():
                raise LoadError(f"a part of the load ended: {task.exception()!r}") from task.exception()

    async def finish(self) -> None:
        """Stop, wait for what is outstanding, and read everything back. Raises ApiError if that cannot be read."""
        self.check()
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        revision, rows = await read_prefix(self._clients[0], self._prefix)
        # What has not come by then is missing; the checkers will say so.
        if self._watching is not None:
            await self._watcher.reached(max((row.mod_revision for row in rows), default=0), _CATCH_UP_TIMEOUT_S)
        self._recorder.listing(Listing("final", 0, revision, self._recorder.now_ns(), rows))
        if self._contest is not None:
            await self._contest.finish()
        if self._rollouts is not None:
            await self._rollouts.finish()

    async def close(self) -> None:
        """End at once what still runs, and close the connections."""
        running = [task for task in self._running() if not task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._rollouts is not None:
            await self._rollouts.close()
        await asyncio.gather(*(client.close() for client in self._clients))

    def _running(self) -> list[asyncio.Task[None]]:
        beside = list(self._contest.tasks) if self._contest is not None else []
        beside += self._rollouts.looking if self._rollouts is not None else []
        return [*self._tasks, *beside, *([self._watching] if self._watching is not None else [])]

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
