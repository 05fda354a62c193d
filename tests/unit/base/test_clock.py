"""Time, handed in."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.base.aio import run_until_first, wait_event
from controlplane.base.clock import ManualClock, SystemClock


def test_the_machines_clock_goes_forward_and_tells_the_date() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    assert clock.monotonic() >= before
    assert clock.wall_ms() > 1_700_000_000_000


async def test_the_machines_clock_sleeps() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0.01)
    assert clock.monotonic() - before >= 0.009


def test_a_manual_clock_moves_when_told_both_hands_together() -> None:
    clock = ManualClock(start_s=5.0, wall_ms=1_000_000)
    assert (clock.monotonic(), clock.wall_ms()) == (5.0, 1_000_000)
    clock.advance(2.5)
    assert (clock.monotonic(), clock.wall_ms()) == (7.5, 1_002_500)


async def _turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_sleepers_wake_when_their_time_has_come_the_earliest_first() -> None:
    clock = ManualClock()
    woken: list[str] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(name)

    tasks = [asyncio.ensure_future(sleeper(name, seconds)) for name, seconds in (("c", 3), ("a", 1), ("b", 2))]
    await _turns()
    clock.advance(0.999)
    await _turns()
    assert woken == []
    clock.advance(1.001)
    await _turns()
    assert woken == ["a", "b"]
    clock.advance(1)
    await asyncio.gather(*tasks)
    assert woken == ["a", "b", "c"]


async def test_no_time_is_no_wait() -> None:
    await ManualClock().sleep(0)
    await ManualClock().sleep(-1)


async def test_a_sleeper_that_was_cancelled_is_passed_over() -> None:
    clock = ManualClock()
    task = asyncio.ensure_future(clock.sleep(1))
    await _turns()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    clock.advance(2)
    assert task.cancelled()


async def test_an_event_is_waited_for_as_long_as_the_clock_says() -> None:
    clock, event = ManualClock(), asyncio.Event()
    waiting = asyncio.ensure_future(wait_event(event, clock, 5.0))
    await _turns()
    clock.advance(5.0)
    assert await waiting is False
    waiting = asyncio.ensure_future(wait_event(event, clock, 5.0))
    await _turns()
    event.set()
    assert await waiting is True
    assert await wait_event(event, clock, 0.0) is True
    event.clear()
    assert await wait_event(event, clock, 0.0) is False


async def test_the_first_to_end_ends_the_others() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("forever")

    async def short() -> None:
        await asyncio.sleep(0)
        ended.append("short")

    await run_until_first(forever(), short())
    assert ended == ["short", "forever"]


async def test_the_first_failure_is_raised_as_it_is() -> None:
    async def failing() -> None:
        raise ValueError("broken")

    async def forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(ValueError, match="broken"):
        await run_until_first(failing(), forever())


async def test_cancelling_cancels_all_and_waits_for_them() -> None:
    ended: list[str] = []

    async def slow_to_leave(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    task = asyncio.ensure_future(run_until_first(slow_to_leave("a"), slow_to_leave("b")))
    await _turns()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert sorted(ended) == ["a", "b"]
