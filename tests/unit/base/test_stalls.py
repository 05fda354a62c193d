"""A loop that was kept busy and a collection that ran are seen in the metrics."""

from __future__ import annotations

import asyncio
import gc

from prometheus_client import REGISTRY

from controlplane.base.clock import ManualClock, SystemClock
from controlplane.base.stalls import GcPauses, watch_loop


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_a_timer_that_fires_late_is_a_stall() -> None:
    clock = ManualClock()
    before = sample("quarterdeck_loop_lag_seconds_sum")
    watching = asyncio.ensure_future(watch_loop(clock))
    await asyncio.sleep(0)
    clock.advance(0.05 + 0.3)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    watching.cancel()
    assert abs(sample("quarterdeck_loop_lag_seconds_sum") - before - 0.3) < 1e-6
    assert abs(sample("quarterdeck_loop_lag_longest_seconds") - 0.3) < 1e-6


def test_a_collection_is_counted_by_its_generation() -> None:
    pauses = GcPauses(SystemClock())
    before = sample("quarterdeck_gc_pause_seconds_count", generation="2")
    pauses.start()
    try:
        gc.collect(2)
    finally:
        pauses.stop()
    gc.collect(2)
    assert sample("quarterdeck_gc_pause_seconds_count", generation="2") == before + 1
