"""Clients that fight over few keys: puts, reads, deletes and compare-and-swap on registers, appends to lists.

Every value is written once, so that whoever sees it knows whose it is.
"""

from __future__ import annotations

import asyncio
from typing import Final

from chaos.history import Recorder
from chaos.records import Op
from chaos.workload.keys import Keys, SharedKeyValue
from chaos.workload.pace import Pace, Process
from controlplane.base.rand import Rand

__all__ = ["Appender", "Fighter", "Lists", "Newest"]

#: What a fighter does, in parts of 100; the rest are swaps.
_PUTS: Final = 25
_GETS: Final = 35
_OLD_GETS: Final = 5
_DELETES: Final = 5
_LISTS: Final = 3
#: A list that is this long is left alone, and others begun: values must not grow for ever.
_LENGTH_MAX: Final = 60


class Newest:
    """The newest revision that any client was told of, and how it grew: what watchers and the compactor start from."""

    def __init__(self) -> None:
        self.revision = 0
        self.compacted = 0

    def told(self, op: Op) -> None:
        """An operation was answered."""
        self.revision = max(self.revision, op.revision)


class Fighter:
    """Works on one of few registers in every slot, for ever."""

    def __init__(
        self, number: int, prefix: str, keys: int, client: SharedKeyValue, newest: Newest, recorder: Recorder,
        pace: Pace, rand: Rand,
    ) -> None:  # fmt: skip
        self._number = number
        self._names = [f"{prefix}hot/{n}" for n in range(keys)]
        self._keys = Keys("txn", client, Process(f"f{number}", recorder))
        self._newest = newest
        self._pace = pace
        self._rand = rand
        self._sequence = 0
        #: What each register held when last seen; None: nothing, as far as we know.
        self._known: dict[str, str | None] = {}

    async def run(self, stopping: asyncio.Event) -> None:
        """Until told to stop; what is outstanding then is waited for."""
        while not stopping.is_set():
            await self._pace.slot()
            await self.act()

    async def act(self) -> None:
        """One operation."""
        key = self._names[int(self._rand.random() * len(self._names))]
        dice = self._rand.random() * 100
        if dice < _PUTS:
            op = await self._keys.put(key, self._value())
            self._known[key] = op.value
        elif dice < _PUTS + _GETS:
            op = await self._keys.get(key)
            if op.outcome == "ok":
                self._known[key] = op.value
        elif dice < _PUTS + _GETS + _OLD_GETS:
            op = await self._keys.get(key, serializable=True)
        elif dice < _PUTS + _GETS + _OLD_GETS + _DELETES:
            op = await self._keys.delete(key)
            self._known[key] = None
        else:
            op = await self._swap(key)
        self._newest.told(op)

    async def _swap(self, key: str) -> Op:
        """Replace what was seen last; when it is something else by now, see what."""
        known, value = self._known.get(key), self._value()
        op = await self._keys.txn(
            [(key, "create", 0) if known is None else (key, "value", known)],
            [("put", key, value)],
            [("get", key)],
        )
        if op.outcome == "ok":
            seen = op.results[0] if op.results else None
            self._known[key] = value if op.succeeded else (seen[0] if seen else None)
        return op

    def _value(self) -> str:
        self._sequence += 1
        return f"f{self._number}-{self._sequence}"


class Lists:
    """Which lists are appended to now: a new set when the old ones are long enough."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._generation = 0

    def names(self) -> list[str]:
        """Their keys."""
        return [f"{self._prefix}list/{self._generation}.{n}" for n in range(_LISTS)]

    def seen(self, key: str, length: int) -> None:
        """A list was seen to be that long."""
        if length >= _LENGTH_MAX and key in self.names():
            self._generation += 1


class Appender:
    """Reads one or two lists in one transaction, then appends to each of them in one, if they are still so."""

    def __init__(
        self, number: int, lists: Lists, client: SharedKeyValue, newest: Newest, recorder: Recorder, pace: Pace,
        rand: Rand,
    ) -> None:  # fmt: skip
        self._number = number
        self._lists = lists
        self._keys = Keys("append", client, Process(f"a{number}", recorder))
        self._newest = newest
        self._pace = pace
        self._rand = rand
        self._sequence = 0

    async def run(self, stopping: asyncio.Event) -> None:
        """Until told to stop; what is outstanding then is waited for."""
        while not stopping.is_set():
            await self._pace.slot()
            await self.act()

    async def act(self) -> None:
        """One read and one append."""
        names = self._lists.names()
        first = int(self._rand.random() * len(names))
        chosen = [names[first]]
        if self._rand.random() < 0.5:
            chosen.append(names[(first + 1) % len(names)])
        read = await self._keys.txn([], [("get", key) for key in chosen])
        self._newest.told(read)
        if read.outcome != "ok":
            return
        self._sequence += 1
        compares, puts = [], []
        for key, seen in zip(chosen, read.results, strict=True):
            held = seen[0] if seen else ""
            compares.append((key, "mod", seen[2] if seen else 0))
            puts.append(("put", key, f"{held} a{self._number}-{self._sequence}".strip()))
            self._lists.seen(key, len(held.split()) + 1)
        self._newest.told(await self._keys.txn(compares, puts))  # type: ignore[arg-type]
