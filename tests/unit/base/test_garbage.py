"""A full collection that takes long is the last one over what it saw; a short one freezes nothing."""

from __future__ import annotations

import asyncio
import gc

from controlplane.base.clock import ManualClock
from controlplane.base.garbage import GarbageCollector


class SlowCollections:
    """Makes each full collection last ``seconds`` on the clock."""

    def __init__(self, clock: ManualClock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] == 2:
            self._clock.advance(self._seconds)


def freezes(seconds: float) -> bool:
    """Whether a full collection of that length freezes what survived it."""
    clock = ManualClock()
    thresholds = gc.get_threshold()
    slow = SlowCollections(clock, seconds)
    gc.callbacks.append(slow)
    collector = GarbageCollector(clock)
    collector.start()
    try:
        at_start = gc.get_freeze_count()
        kept = [[n] for n in range(1_000)]
        gc.collect(1)
        assert gc.get_freeze_count() == at_start, "only a full collection freezes"
        gc.collect(2)
        return gc.get_freeze_count() >= at_start + len(kept)
    finally:
        collector.stop()
        gc.callbacks.remove(slow)
        assert gc.get_freeze_count() == 0
        assert gc.get_threshold() == thresholds


def test_a_long_full_collection_is_the_last_over_what_survived_it() -> None:
    assert freezes(1.0)


def test_a_short_full_collection_freezes_nothing() -> None:
    assert not freezes(0.0)


def test_stopping_a_collector_that_never_started_does_nothing() -> None:
    thresholds = gc.get_threshold()
    GarbageCollector(ManualClock()).stop()
    assert gc.get_threshold() == thresholds


async def test_who_leads_does_not_look_at_everything_and_the_others_do_once_an_hour() -> None:
    clock = ManualClock()
    looks: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            looks.append(phase)

    leads = True
    running = asyncio.ensure_future(GarbageCollector(clock).run(lambda: leads))

    async def hours(count: int) -> int:
        before = len(looks)
        for _ in range(count):
            await asyncio.sleep(0)
            clock.advance(3_600)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return len(looks) - before

    gc.callbacks.append(note)
    try:
        assert await hours(30) == 0
        leads = False
        assert await hours(2) == 2
    finally:
        gc.callbacks.remove(note)
        running.cancel()
        gc.unfreeze()
