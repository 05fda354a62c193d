"""Snapshots by the clock: one a period and place, however many replicas; old ones go; failures are counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controlplane.backup import metrics
from controlplane.backup.repository import Repository
from controlplane.backup.retention import Keep
from controlplane.backup.saving import Saver
from controlplane.backup.schedule import Schedule
from controlplane.backup.worker import Worker
from controlplane.base.clock import ManualClock
from controlplane.base.errors import StorageError
from controlplane.base.rand import SeededRand
from tests.unit.backup.support import T0_MS, FakeLog, InlineWorker, Life


class Rig:
    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.life = Life(tmp_path / "archive")
        self.clock = ManualClock(wall_ms=T0_MS)

    def schedule(self, name: str) -> Schedule:
        log, worker = FakeLog(self.life, leads=False), InlineWorker()
        saver = Saver(log, self.life.repository, worker, scratch=self.tmp_path / name, name=name, clock=self.clock)
        return Schedule(
            self.life.repository, saver, worker, every_s=900, keep=Keep(last=3), clock=self.clock, rand=SeededRand(name)
        )

    @asynccontextmanager
    async def running(self, *names: str) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.schedule(name).run()) for name in names]
        try:
            yield
            assert not any(task.done() for task in tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def passes(self, seconds: float, step_s: float = 5.0) -> None:
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)
            self.life.now_ms = self.clock.wall_ms()
            self.life.put(b"k")
            for _ in range(20):
                await asyncio.sleep(0)


async def test_replicas_that_share_a_place_save_one_a_period(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with rig.running("r1", "r2", "r3"):
        await rig.passes(15)
        assert len(rig.life.repository.snapshots()) == 1
        await rig.passes(990)
        times = [name.created_at_ms for name in rig.life.repository.snapshots()]
        assert len(times) == 2
        assert abs(times[0] - times[1] - 900_000) <= 90_000 + 15_000
        assert metrics.SNAPSHOT_LAST_SUCCESS._value.get() >= times[0] / 1000
        await rig.passes(5 * 990)
    assert len(rig.life.repository.snapshots()) == 3  # older ones went


async def test_a_failure_is_counted_logged_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise StorageError("the bucket is away")

    failures = metrics.SNAPSHOT_FAILURES._value.get()
    monkeypatch.setattr(Repository, "publish", refuse)
    async with rig.running("r1"):
        await rig.passes(60)
        assert rig.life.repository.snapshots() == []
        assert metrics.SNAPSHOT_FAILURES._value.get() >= failures + 2
        assert "event=backup-failed" in caplog.text
        assert "the bucket is away" in caplog.text
        assert list((tmp_path / "r1").iterdir()) == []
        monkeypatch.undo()
        await rig.passes(60)
        assert len(rig.life.repository.snapshots()) == 1


async def test_a_store_that_hangs_holds_up_nobody() -> None:
    """It is given up on, what comes next is refused at once, and its thread does not hold up the end of the process."""
    worker, hangs = Worker("hanging"), threading.Event()
    with pytest.raises(StorageError, match="has not answered"):
        await worker.run(lambda: hangs.wait(30), patience_s=0.01)
    with pytest.raises(StorageError, match="an earlier request still waits"):
        await worker.run(lambda: None)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "hanging"]
    assert thread.daemon
    hangs.set()
    async with asyncio.timeout(10):
        while True:
            try:
                assert await worker.run(lambda: 7) == 7  # it answers again
                break
            except StorageError:
                await asyncio.sleep(0)
    worker.close()
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()


async def test_a_worker_hands_back_results_and_errors() -> None:
    worker = Worker("working")
    try:
        assert await worker.run(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await worker.run(lambda: 1 // 0)
    finally:
        worker.close()
