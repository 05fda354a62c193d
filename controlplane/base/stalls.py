"""How long the loop kept everybody waiting: the one number behind every late heartbeat and slow request.

Owns the measuring: a sleeper that notes how late it was woken, and the garbage collector's own pauses. Changes nothing.
"""

from __future__ import annotations

import gc
from typing import Final

from prometheus_client import Gauge, Histogram

from controlplane.base.clock import Clock

__all__ = ["GC_PAUSE_SECONDS", "LOOP_LAG_LONGEST_SECONDS", "LOOP_LAG_SECONDS", "GcPauses", "watch_loop"]

_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
#: Twenty samples a second see every stall longer than this, and cost nothing.
_PERIOD_S: Final = 0.05

LOOP_LAG_SECONDS: Final = Histogram(
    "quarterdeck_loop_lag_seconds", "How late a timer of the event loop fired: everything on it waited as long.",
    buckets=_BUCKETS,
)  # fmt: skip
LOOP_LAG_LONGEST_SECONDS: Final = Gauge(
    "quarterdeck_loop_lag_longest_seconds", "The latest that a timer of the event loop fired since the replica started."
)
GC_PAUSE_SECONDS: Final = Histogram(
    "quarterdeck_gc_pause_seconds", "Pauses of the garbage collector, by generation.", ["generation"], buckets=_BUCKETS
)


async def watch_loop(clock: Clock) -> None:
    """Observe the loop's lag until cancelled."""
    longest_s = 0.0
    while True:
        due_s = clock.monotonic() + _PERIOD_S
        await clock.sleep(_PERIOD_S)
        lag_s = max(0.0, clock.monotonic() - due_s)
        LOOP_LAG_SECONDS.observe(lag_s)
        if lag_s > longest_s:
            longest_s = lag_s
            LOOP_LAG_LONGEST_SECONDS.set(longest_s)


class GcPauses:
    """Observes collections between :meth:`start` and :meth:`stop`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun_s = 0.0
        self._by_generation = [GC_PAUSE_SECONDS.labels(str(generation)) for generation in range(3)]

    def start(self) -> None:
        gc.callbacks.append(self._on_phase)

    def stop(self) -> None:
        if self._on_phase in gc.callbacks:  # a replica may stop before it has started
            gc.callbacks.remove(self._on_phase)

    def _on_phase(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._begun_s = self._clock.monotonic()
        else:
            self._by_generation[info["generation"]].observe(self._clock.monotonic() - self._begun_s)
