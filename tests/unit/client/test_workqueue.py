"""WorkQueue: a key waits once, is worked once at a time, and is never lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from controlplane.base.clock import ManualClock
from controlplane.base.errors import Code
from controlplane.client import metrics
from controlplane.client.interface import ConflictError
from controlplane.client.workqueue import WorkQueue
from tests.unit.client.fakes import settle


class Bench:
    """A queue, its clock, and a work function that waits until the test lets it finish."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.queue: WorkQueue[str] = WorkQueue("test", self.clock)
        self.started: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.held: set[str] = set()

    async def work(self, key: str) -> None:
        self.started.append(key)
        if key in self.held:
            self.gates[key] = asyncio.Event()
            await self.gates[key].wait()

    @asynccontextmanager
    async def working(
        self, n: int = 1, fn: Callable[[str], Awaitable[float | None]] | None = None
    ) -> AsyncIterator[None]:
        task = asyncio.create_task(self.queue.run_workers(fn or self.work, n))
        await settle()
        try:
            yield
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await settle()


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_key_added_many_times_before_it_is_worked_is_worked_once(bench: Bench) -> None:
    for key in ["a", "b", "a", "a"]:
        bench.queue.add(key)
    assert len(bench.queue) == 2
    async with bench.working():
        assert bench.started == ["a", "b"]


async def test_a_key_added_while_it_is_worked_is_worked_again_but_never_twice_at_a_time(bench: Bench) -> None:
    bench.held = {"a"}
    async with bench.working(n=4):
        bench.queue.add("a")
        await settle()
        bench.queue.add("a")
        bench.queue.add("a")
        await settle()
        assert bench.started == ["a"]
        bench.gates["a"].set()
        await settle()
        assert bench.started == ["a", "a"]


async def test_no_more_keys_than_workers_are_worked_at_a_time(bench: Bench) -> None:
    bench.held = {"a", "b", "c"}
    async with bench.working(n=2):
        for key in "abc":
            bench.queue.add(key)
        await settle()
        assert bench.started == ["a", "b"]
        bench.gates["b"].set()
        await settle()
        assert bench.started == ["a", "b", "c"]


async def test_a_delayed_key_waits_and_the_earliest_delay_counts(bench: Bench) -> None:
    async with bench.working():
        bench.queue.add_after("a", 5.0)
        bench.queue.add_after("a", 2.0)
        bench.queue.add_after("a", 9.0)
        await bench.pass_time(1.9)
        assert bench.started == []
        await bench.pass_time(0.2)
        assert bench.started == ["a"]
        await bench.pass_time(20.0)
        assert bench.started == ["a"]


async def test_failures_back_off_exponentially_per_key_until_forgotten(bench: Bench) -> None:
    failing = {"a"}

    async def work(key: str) -> None:
        bench.started.append(key)
        if key in failing:
            raise ConflictError(Code.ABORTED, "changed meanwhile")

    async with bench.working(fn=work):
        bench.queue.add("a")
        await settle()
        for wait_s in [0.01, 0.02, 0.04]:
            count = len(bench.started)
            await bench.pass_time(wait_s - 0.001)
            assert len(bench.started) == count
            await bench.pass_time(0.002)
            assert len(bench.started) == count + 1
        failing.clear()
        await bench.pass_time(1.0)
        assert bench.queue.failures("a") == 0


async def test_the_longest_back_off_is_bounded(bench: Bench) -> None:
    for _ in range(200):
        bench.queue.retry("a")
    async with bench.working():
        await bench.pass_time(10.001)
        assert bench.started == ["a"]


async def test_a_bug_in_one_keys_work_is_logged_and_stops_no_other(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(key: str) -> None:
        bench.started.append(key)
        if key == "bad":
            raise ZeroDivisionError

    with caplog.at_level(logging.ERROR, "quarterdeck.workqueue"):
        async with bench.working(fn=work):
            bench.queue.add("bad")
            bench.queue.add("good")
            await settle()
    assert bench.started == ["bad", "good"]
    assert "crashed, working again queue=test key=bad" in caplog.text


async def test_work_may_ask_to_be_called_again_later(bench: Bench) -> None:
    async def work(key: str) -> float | None:
        bench.started.append(key)
        return 3.0 if len(bench.started) == 1 else None

    async with bench.working(fn=work):
        bench.queue.add("a")
        await settle()
        await bench.pass_time(2.9)
        assert bench.started == ["a"]
        await bench.pass_time(0.2)
        assert bench.started == ["a", "a"]


async def test_a_key_whose_work_was_cancelled_is_worked_by_the_next_workers(bench: Bench) -> None:
    bench.held = {"a"}
    async with bench.working():
        bench.queue.add("a")
        bench.queue.add("b")
        await settle()
    bench.held = set()
    async with bench.working():
        assert bench.started == ["a", "b", "a"]


async def test_metrics_tell_depth_adds_and_work_in_progress(bench: Bench) -> None:
    adds = metrics.QUEUE_ADDS.labels("test")._value.get()
    bench.held = {"a"}
    async with bench.working():
        bench.queue.add("a")
        await settle()
        bench.queue.add("b")
        bench.queue.add("b")
        bench.clock.advance(4.0)
        assert metrics.QUEUE_ADDS.labels("test")._value.get() - adds == 2
        assert metrics.QUEUE_DEPTH.labels("test")._value.get() == 1
        assert bench.queue.longest_s() == pytest.approx(4.0)
        assert bench.queue.unfinished_s() == pytest.approx(4.0)
