"""The lookout: asks every replica how it is, all the time, and says when who leads has changed.

One task a replica, so that a dead or stopped one does not hold up the view of the others. An answer counts while it is
fresh. Owns the asking; draws no conclusion but the leader by majority.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from chaos.observe import Replicas
from controlplane.base.clock import Clock
from controlplane.pb.quarterdeck.v1 import operator_pb2

__all__ = ["Lookout", "ReplicaView"]

_POLL_S: Final = 0.03
_FRESH_S: Final = 0.8


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A replica's last answer. ``role``: ``silent`` if there is none, or none of late."""

    name: str
    role: str
    term: int
    revision: int
    applied_index: int
    ready: bool


class Lookout:
    """Use as a context manager. ``changed`` is called with (leader, term, roles) whenever one of them has changed."""

    def __init__(
        self, replicas: Replicas, clock: Clock, changed: Callable[[str | None, int, dict[str, str]], None]
    ) -> None:
        self._replicas = replicas
        self._clock = clock
        self._changed = changed
        self._answers: dict[str, tuple[float, operator_pb2.StatusResponse]] = {}
        self._said: tuple[str | None, int, dict[str, str]] = (None, 0, {})
        self._since: dict[tuple[str | None, int], float] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def fresh(self) -> dict[str, operator_pb2.StatusResponse]:
        """The answers that still count."""
        since_s = self._clock.monotonic() - _FRESH_S
        return {name: answer for name, (at_s, answer) in self._answers.items() if at_s >= since_s}

    def leader(self) -> tuple[str | None, int]:
        """The leader that a majority names, and its term."""
        return self._replicas.leader_among(self.fresh())

    def leads_since_s(self, leader: str, term: int) -> float:
        """When that leader of that term was first named by a majority, on the clock; now, if it never was."""
        return self._since.get((leader, term), self._clock.monotonic())

    def views(self) -> list[ReplicaView]:
        """Everyone, in order."""
        fresh = self.fresh()
        found = []
        for name in self._replicas.names:
            answer = fresh.get(name)
            if answer is None:
                last = self._answers.get(name)
                found.append(ReplicaView(name, "silent", last[1].term if last else 0, 0, 0, ready=False))
            else:
                role = answer.role
                found.append(
                    ReplicaView(name, role, answer.term, answer.revision, answer.applied_index, ready=answer.ready)
                )
        return found

    def _follow(self) -> None:
        """Watch everyone that is there: members come and go."""
        for name in self._replicas.names:
            if name not in self._tasks:
                self._tasks[name] = asyncio.create_task(self._watch(name))
        for name in set(self._tasks) - set(self._replicas.names):
            self._tasks.pop(name).cancel()
            self._answers.pop(name, None)

    async def _watch(self, name: str) -> None:
        while True:
            self._follow()
            answer = await self._replicas.status(name)
            if answer is not None:
                self._answers[name] = (self._clock.monotonic(), answer)
            self._notice()
            await self._clock.sleep(_POLL_S)

    def _notice(self) -> None:
        roles = {view.name: view.role for view in self.views()}
        said = (*self.leader(), roles)
        self._since.setdefault(said[:2], self._clock.monotonic())
        if said != self._said:
            self._said = said
            self._changed(*said)

    async def __aenter__(self) -> Self:
        self._follow()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
