"""Everything that works on shared keys, as one: started, stopped, waited for and read back.

Owns which clients there are for which part of a load, and that watches begin before anything is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Final, Protocol

from chaos.history import Recorder
from chaos.records import Listing
from chaos.workload.fresh import read_prefix
from chaos.workload.leases import LeaseHolder, LockUser
from chaos.workload.pace import Pace
from chaos.workload.shared import Appender, Fighter, Lists, Newest
from chaos.workload.watchers import Brief, Compactor, Follower, Kind
from controlplane.base.clock import Clock
from controlplane.base.rand import Rand
from controlplane.client import EtcdClient

__all__ = ["SHARED_PARTS", "Contest", "shared_prefix"]

#: Parts of a load that work on shared keys.
SHARED_PARTS: Final = frozenset({"txn", "lease", "lock"})
_FIGHTERS: Final = 5
_FIGHTS_PER_S: Final = 14.0
_REGISTERS: Final = 4
_APPENDERS: Final = 3
_APPENDS_PER_S: Final = 4.0
_LEASE_HOLDERS: Final = 4
_LOCK_USERS: Final = 3
_SLOW_S: Final = 0.03
_CATCH_UP_TIMEOUT_S: Final = 8.0


class _Part(Protocol):
    async def run(self, stopping: asyncio.Event) -> None: ...


def shared_prefix(prefix: str) -> str:
    """Where shared keys live, beside the keys that are written once."""
    return f"{prefix.rstrip('/')}-shared/"


class Contest:
    """``connect`` makes the n-th client, each beginning at another replica."""

    def __init__(
        self,
        parts: Collection[str],
        prefix: str,
        connect: Callable[[int], EtcdClient],
        recorder: Recorder,
        clock: Clock,
        rand: Rand,
        *,
        foreign: bool,
    ) -> None:
        self._prefix = shared_prefix(prefix)
        self._recorder = recorder
        self._newest = newest = Newest()
        self._first = connect(0)
        self._parts: list[_Part] = []
        base = self._prefix
        if "txn" in parts:
            self._parts += [
                Fighter(n, base, _REGISTERS, connect(n), newest, recorder, Pace(_FIGHTS_PER_S, clock), rand)
                for n in range(1, _FIGHTERS + 1)
            ]
            lists = Lists(base)
            self._parts += [
                Appender(n, lists, connect(n), newest, recorder, Pace(_APPENDS_PER_S, clock), rand)
                for n in range(1, _APPENDERS + 1)
            ]
        if "lease" in parts:
            self._parts += [
                LeaseHolder(n, base, connect(n), newest, recorder, clock, rand) for n in range(1, _LEASE_HOLDERS + 1)
            ]
        if "lock" in parts:
            self._parts += [
                LockUser(n, base, connect(n), newest, recorder, clock, rand) for n in range(1, _LOCK_USERS + 1)
            ]
        # etcd 3.4 answers about progress for watches that are not up to date; asking it would prove nothing of us.
        kinds = [
            Kind("all", base, prev_kv=True, progress=not foreign),
            Kind("slow", base, slow_s=_SLOW_S),
            Kind("one", f"{base}hot/0", single=True, prev_kv=True),
        ]
        self._progress = not foreign
        self._followers = [Follower(kind, connect(n), recorder, clock) for n, kind in enumerate(kinds)]
        self._brief = Brief(base, connect(1), newest, recorder, clock)
        self._compactor = Compactor(connect(2), newest, recorder, clock)
        self._beside: list[asyncio.Task[None]] = []

    async def start(self, stopping: asyncio.Event) -> list[asyncio.Task[None]]:
        """Begin, the watches first; the tasks that end when told to. Raises ApiError."""
        revision, _ = await read_prefix(self._first, self._prefix)
        self._beside = [asyncio.create_task(follower.run(revision + 1)) for follower in self._followers]
        self._beside += [asyncio.create_task(self._brief.run()), asyncio.create_task(self._compactor.run())]
        return [asyncio.create_task(part.run(stopping)) for part in self._parts]

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """Those that end only when cancelled."""
        return self._beside

    async def finish(self) -> None:
        """After everything has stopped: read back, and wait until the watches have come so far. Raises ApiError."""
        for follower in self._followers:
            follower.hurry()
        revision, rows = await read_prefix(self._first, self._prefix)
        # What has not come by then is missing; the checkers will say so. The first is told how far it has been told
        # everything; what came last may be a deletion, of which no row speaks, so the slow one is waited for apart.
        first, slow = self._followers[:2]
        newest = max((row.mod_revision for row in rows), default=0)
        await first.reached(revision if self._progress else newest, _CATCH_UP_TIMEOUT_S)
        await slow.reached(first.changed, _CATCH_UP_TIMEOUT_S)
        self._recorder.listing(Listing("shared", 0, revision, self._recorder.now_ns(), rows))
