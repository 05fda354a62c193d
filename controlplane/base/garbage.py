"""The garbage collector, kept from walking again and again over a state that only grows.

Owns its thresholds and what it is told to forget. A replica's memory is mostly versions of keys: many small objects
that live long and are never part of a cycle. Left alone, the collector walks over all of them each time they have grown
by a quarter: 50 ms with 100,000 keys, half a second with a million, while nothing else runs.

So a full collection that took too long is the last one that looks at what survived it: that is frozen. The next ones
see only what came since. What is given up: a cycle that was frozen alive and dies later is not found (a client
connection with a watch that lived long leaves about 10 KB). So once an hour everything is looked at all the same, but
not by who leads. What is not in a cycle is freed at once, as always.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Final

from controlplane.base.clock import Clock

__all__ = ["GarbageCollector"]

#: New objects that begin a young collection, young ones that begin a middle one, and middle ones a full one. Python's
#: own 700 makes hundreds of collections a second under load; with these each takes about a millisecond.
_THRESHOLDS: Final = (5_000, 5, 2)
#: A full collection longer than this is the last over what it saw.
_PAUSE_S_MAX: Final = 0.005
_LOOK_AGAIN_S: Final = 3_600.0


class GarbageCollector:
    """One per process: the collector is the process's. Between :meth:`start` and :meth:`stop`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun_s = 0.0
        self._before: tuple[int, int, int] | None = None

    def start(self) -> None:
        """From here on collections are rare, and what exists now is :meth:`keep`-ed."""
        self._before = gc.get_threshold()
        gc.set_threshold(*_THRESHOLDS)
        self.keep()
        gc.callbacks.append(self._on_phase)

    def keep(self) -> None:
        """What exists now lives as long as the process: no collection walks over it again, but for those of
        :meth:`run`. Nor is one made now: it would take as long as all that was imported and read is big, and a replica
        that starts is waited for."""
        gc.freeze()

    async def run(self, busy: Callable[[], bool]) -> None:
        """Look at everything now and then, until cancelled. ``busy``: a pause would now be in everybody's way."""
        while True:
            await self._clock.sleep(_LOOK_AGAIN_S)
            if busy():
                continue
            gc.unfreeze()
            gc.collect()
            gc.freeze()

    def stop(self) -> None:
        """As if never started; what was frozen can be collected again."""
        if self._before is None:
            return
        gc.callbacks.remove(self._on_phase)
        gc.set_threshold(*self._before)
        self._before = None
        gc.unfreeze()

    def _on_phase(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] < 2:
            return
        if phase == "start":
            self._begun_s = self._clock.monotonic()
        elif self._clock.monotonic() - self._begun_s > _PAUSE_S_MAX:
            gc.freeze()
