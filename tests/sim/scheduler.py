"""Virtual time: events in order, one at a time. Owns the clock, the seeded chance and the trace of a run."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from controlplane.base.rand import SeededRand

__all__ = ["NodeClock", "Scheduler"]

T = TypeVar("T")


#: More events than this in so little virtual time are a loop that does not wait for anything.
_BUSY_S = 0.05
_BUSY_EVENTS = 20_000


class Scheduler:
    """The one queue of everything that will happen. Same seed, same run, to the last bit of the trace."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.rand = SeededRand(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._trace = hashlib.sha256()
        self.events = 0
        self._busy_since = 0.0
        self._busy_from = 0
        self._failure: BaseException | None = None
        self._buried: list[asyncio.Task[Any]] = []

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Do it then (or now, if that is past), after everything already due at the same moment."""
        heapq.heappush(self._events, (max(time_s, self.now), next(self._order), action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self.at(self.now + delay_s, action)

    def run_until(self, end_s: float) -> None:
        """Let everything due before ``end_s`` happen. Raises what :meth:`fail` was told."""
        while self._events and self._events[0][0] <= end_s:
            self.now, _, action = heapq.heappop(self._events)
            self.events += 1
            if self.now - self._busy_since > _BUSY_S:
                self._busy_since, self._busy_from = self.now, self.events
            elif self.events - self._busy_from > _BUSY_EVENTS:
                raise AssertionError(f"livelock: {_BUSY_EVENTS} events within {_BUSY_S} s at {self.now:.3f} s")
            action()
            if self._failure is not None:
                raise self._failure
        self.now = max(self.now, end_s)

    def fail(self, error: BaseException) -> None:
        """End the run with this error (the first counts)."""
        self._failure = self._failure or error

    def note(self, *what: object) -> None:
        """Add to the trace."""
        self._trace.update(f"{self.now:.9f} {' '.join(map(str, what))}\n".encode())

    @property
    def trace_hash(self) -> str:
        return self._trace.hexdigest()

    # -- the dead ----------------------------------------------------------------------------------------------

    def bury(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        """Tasks of a process that is dead: they stay as they are until the run ends, so that nothing of them runs."""
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            self._buried.append(task)

    def close(self) -> None:
        """The run is over: close what was left of the dead."""
        for task in self._buried:
            coroutine: Any = task.get_coro()
            try:
                coroutine.close()
            except RuntimeError:
                continue  # it insists on waiting for something: nobody is left to do that
        self._buried.clear()
        self._events.clear()

    # -- chance ------------------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return self.rand.random() < probability

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rand.random()

    def pick(self, items: Sequence[T]) -> T:
        return items[self.rand.randint(0, len(items) - 1)]


class NodeClock:
    """One node's clock: its own origin and a slightly wrong rate; its wall clock may be stepped."""

    def __init__(self, scheduler: Scheduler, offset_s: float, rate: float) -> None:
        self._scheduler = scheduler
        self._offset_s = offset_s
        self._rate = rate
        #: Somebody set the wall clock forward or back.
        self.wall_step_ms = 0

    def monotonic(self) -> float:
        return self._offset_s + self._scheduler.now * self._rate

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + int(self.monotonic() * 1000) + self.wall_step_ms

    def virtual(self, monotonic_s: float) -> float:
        """The virtual time at which this clock shows ``monotonic_s``."""
        return (monotonic_s - self._offset_s) / self._rate

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds of this clock: inside a simulated process, whose loop runs by it."""
        await asyncio.sleep(seconds)
