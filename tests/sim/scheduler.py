"""Virtual time: events in order, one at a time. Owns the clock, the seeded chance and the trace of a run."""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

from controlplane.base.rand import SeededRand

__all__ = ["NodeClock", "Scheduler"]

T = TypeVar("T")


#: More events than this in so little virtual time are a loop that does not wait for anything.
_BUSY_S = 0.05
_BUSY_EVENTS = 10_000


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

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Do it then (or now, if that is past), after everything already due at the same moment."""
        heapq.heappush(self._events, (max(time_s, self.now), next(self._order), action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self.at(self.now + delay_s, action)

    def run_until(self, end_s: float) -> None:
        """Let everything due before ``end_s`` happen."""
        while self._events and self._events[0][0] <= end_s:
            self.now, _, action = heapq.heappop(self._events)
            self.events += 1
            if self.now - self._busy_since > _BUSY_S:
                self._busy_since, self._busy_from = self.now, self.events
            elif self.events - self._busy_from > _BUSY_EVENTS:
                raise AssertionError(f"livelock: {_BUSY_EVENTS} events within {_BUSY_S} s at {self.now:.3f} s")
            action()
        self.now = max(self.now, end_s)

    def note(self, *what: object) -> None:
        """Add to the trace."""
        self._trace.update(f"{self.now:.9f} {' '.join(map(str, what))}\n".encode())

    @property
    def trace_hash(self) -> str:
        return self._trace.hexdigest()

    # -- chance ------------------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return self.rand.random() < probability

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rand.random()

    def pick(self, items: Sequence[T]) -> T:
        return items[self.rand.randint(0, len(items) - 1)]


class NodeClock:
    """One node's clock: its own origin and a slightly wrong rate."""

    def __init__(self, scheduler: Scheduler, offset_s: float, rate: float) -> None:
        self._scheduler = scheduler
        self._offset_s = offset_s
        self._rate = rate

    def monotonic(self) -> float:
        return self._offset_s + self._scheduler.now * self._rate

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + int(self.monotonic() * 1000)

    def virtual(self, monotonic_s: float) -> float:
        """The virtual time at which this clock shows ``monotonic_s``."""
        return (monotonic_s - self._offset_s) / self._rate

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing under simulation may sleep")
