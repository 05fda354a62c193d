"""A replica whose disk refuses is closed, and opened again until that works; nothing else is survived."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from controlplane.base.clock import ManualClock
from controlplane.base.errors import ConfigError, CorruptStateError, QuarterdeckError, StorageError
from controlplane.supervision import ROOM_BYTES, supervise


class FakeLife:
    """Ends as its script says: an error at opening, an error later, or when it is told to stop."""

    def __init__(self, world: World, *, at_start: QuarterdeckError | None, later: QuarterdeckError | None) -> None:
        self._world = world
        self._at_start, self._later = at_start, later
        self.has_data = at_start is None

    async def start(self) -> None:
        self._world.open += 1
        if self._at_start is not None:
            raise self._at_start

    async def wait(self, stop: asyncio.Event) -> None:
        if self._later is not None:
            raise self._later
        self._world.steady.set()
        await stop.wait()

    async def stop(self) -> None:
        self._world.open -= 1


class World:
    """Lives by script, a clock, and a disk with so much room."""

    def __init__(self, *script: tuple[QuarterdeckError | None, QuarterdeckError | None]) -> None:
        self._script = list(script)
        self.clock = ManualClock()
        self.stop = asyncio.Event()
        self.steady = asyncio.Event()
        self.free = ROOM_BYTES
        self.open = 0
        self.had_data: list[bool] = []
        self.began_at: list[float] = []
        self.reasons: list[str] = []
        self._origin = self.clock.monotonic()

    def begin(self, had_data: bool) -> FakeLife:
        assert self.open == 0, "the life before is not closed"
        self.had_data.append(had_data)
        self.began_at.append(self.clock.monotonic() - self._origin)
        at_start, later = self._script.pop(0) if self._script else (None, None)
        return FakeLife(self, at_start=at_start, later=later)

    @asynccontextmanager
    async def outage(self, reason: Callable[[], str]) -> AsyncIterator[None]:
        self.reason = reason
        yield
        self.reasons.append(reason())

    def run(self) -> asyncio.Task[None]:
        return asyncio.create_task(
            supervise(self.begin, self.stop, outage=self.outage, free_bytes=lambda: self.free, clock=self.clock)
        )

    async def pass_time(self, seconds: int) -> None:
        for _ in range(seconds * 2):
            for _ in range(10):
                await asyncio.sleep(0)
            self.clock.advance(0.5)
        for _ in range(10):
            await asyncio.sleep(0)


def eio() -> StorageError:
    return StorageError("cannot sync wal: Input/output error", errno=errno.EIO)


async def test_it_is_opened_again_after_growing_waits_until_that_works() -> None:
    world = World((None, eio()), *[(eio(), None)] * 6)
    task = world.run()
    await world.pass_time(60)
    assert world.began_at == [0, 1, 3, 7, 15, 25, 35, 45]
    assert world.steady.is_set()
    assert all("closed, its disk refused: cannot sync wal" in reason for reason in world.reasons)
    world.stop.set()
    await task
    assert world.open == 0


async def test_a_directory_seen_with_data_must_hold_them_from_then_on() -> None:
    world = World((eio(), None), (None, eio()), (eio(), None))
    task = world.run()
    await world.pass_time(10)
    assert world.had_data == [False, False, True, True]
    world.stop.set()
    await task


async def test_after_a_full_disk_it_waits_for_room_and_says_how_much() -> None:
    world = World((None, StorageError("cannot write wal: No space left on device", errno=errno.ENOSPC)))
    world.free = ROOM_BYTES - 1
    task = world.run()
    await world.pass_time(30)
    assert len(world.began_at) == 1
    assert f"its disk is full: {ROOM_BYTES - 1} bytes are free, {ROOM_BYTES} are needed" in world.reason()
    world.free = ROOM_BYTES
    await world.pass_time(2)
    assert world.steady.is_set()
    world.stop.set()
    await task


async def test_it_stops_when_told_to_while_the_disk_refuses() -> None:
    world = World((None, eio()))
    task = world.run()
    await world.pass_time(0)
    world.stop.set()
    await task
    assert len(world.began_at) == 1


@pytest.mark.parametrize("error", [CorruptStateError("damaged"), ConfigError("wrong"), QuarterdeckError("defect")])
async def test_nothing_but_the_disk_is_survived(error: QuarterdeckError) -> None:
    world = World((None, error))
    with pytest.raises(type(error)):
        await world.run()
    assert world.open == 0
