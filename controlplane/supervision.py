"""A replica lives as long as its process, though its disk may not always let it.

Owns what happens between two lives: when the disk refuses (full, read-only, I/O error), the replica is closed whole,
so that it acknowledges nothing and stands for nothing; the health port says why; and it is opened again from what is
on disk, until that works. The others go on meanwhile, and nobody has to restart anything.

Only ``StorageError`` is survived. Damaged state, a wrong setting or a defect would be the same again, so those end the
process. Must not know what a replica is made of.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from controlplane.base.aio import wait_event
from controlplane.base.clock import Clock
from controlplane.base.errors import ConfigError, StorageError
from controlplane.raft.metrics import DISK_FAILED, DISK_FAILURES

__all__ = ["ROOM_BYTES", "Life", "Outage", "health_port", "supervise"]

_log = logging.getLogger("quarterdeck.supervision")

#: Between two tries to open, doubling.
_RETRY_MIN_S = 1.0
_RETRY_MAX_S = 10.0
#: A life that lasted so long was no failed try: the next wait is the shortest again.
_STEADY_S = 60.0
#: Free bytes wanted after the disk was full: the last log segment is written anew at opening, and then there must be
#: room to go on, or the replica would come and go with every few bytes that somebody frees.
ROOM_BYTES = 48 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Life(Protocol):
    """One replica from opening to closing."""

    @property
    def has_data(self) -> bool:
        """Whether its directory was seen to hold a member's data: from then on an empty one is an absent disk."""
        ...

    async def start(self) -> None: ...

    async def wait(self, stop: asyncio.Event) -> None:
        """Return when ``stop`` is set. Raises what made the replica stop by itself."""
        ...

    async def stop(self) -> None:
        """Close everything, however far it had come."""
        ...


#: Entered while the replica is closed; the argument says why at any moment.
Outage = Callable[[Callable[[], str]], AbstractAsyncContextManager[None]]


async def supervise(
    begin: Callable[[bool], Life],
    stop: asyncio.Event,
    *,
    outage: Outage,
    free_bytes: Callable[[], int],
    clock: Clock,
) -> None:
    """Run one life after another until ``stop`` is set, or one ends for another reason than the disk.

    Args:
        begin: a new life; told whether the directory must hold data, as it was seen to before.
        outage: what is up while the replica is not.
        free_bytes: room on its disk; asked only after the disk was full.

    Raises:
        QuarterdeckError: why the last life ended.
    """
    wait_s = _RETRY_MIN_S
    had_data = False
    while True:
        life = begin(had_data)
        began = clock.monotonic()
        try:
            try:
                await life.start()
                DISK_FAILED.set(0)
                await life.wait(stop)
                return
            finally:
                had_data = had_data or life.has_data
                with contextlib.suppress(asyncio.CancelledError):
                    await life.stop()
        except StorageError as error:
            if stop.is_set():
                return
            failure = error
        del life
        if clock.monotonic() - began >= _STEADY_S:
            wait_s = _RETRY_MIN_S
        DISK_FAILED.set(1)
        DISK_FAILURES.inc()
        _log.critical("replica closed, its disk refused: opened again in %gs error=%r", wait_s, str(failure))
        gc.collect()  # a life is made of cycles, and it is over
        if await _wait_for_disk(failure, wait_s, stop, outage, free_bytes, clock):
            return
        wait_s = min(2 * wait_s, _RETRY_MAX_S)
        _log.warning("opening the replica again")


async def _wait_for_disk(
    failure: StorageError,
    wait_s: float,
    stop: asyncio.Event,
    outage: Outage,
    free_bytes: Callable[[], int],
    clock: Clock,
) -> bool:
    """Let the time pass, and after a full disk wait for room. True: it is time to stop."""
    reason = f"closed, its disk refused: {failure}"

    async with outage(lambda: reason):
        if await wait_event(stop, clock, wait_s):
            return True
        while failure.errno in _FULL and (free := _room(free_bytes)) < ROOM_BYTES:
            reason = f"closed, its disk is full: {free} bytes are free, {ROOM_BYTES} are needed to go on ({failure})"
            if await wait_event(stop, clock, _RETRY_MIN_S):
                return True
    return False


def _room(free_bytes: Callable[[], int]) -> int:
    try:
        return free_bytes()
    except OSError as error:
        _log.warning("free space cannot be read error=%r", str(error))
        return 0


def health_port(listen: str, tls: Callable[[], ssl.SSLContext] | None = None) -> Outage:
    """Between two lives their health port answers: alive, not ready, and why; metrics as ever.

    Args:
        tls: a context for callers that speak TLS, made anew for each outage from the newest files.
    """

    @asynccontextmanager
    async def serve(reason: Callable[[], str]) -> AsyncIterator[None]:
        from controlplane.base.http import ObservabilityServer  # most processes never need it here

        server = ObservabilityServer(listen, ready={"disk": reason}, tls=tls() if tls is not None else None)
        try:
            await server.start()
        except ConfigError as error:
            _log.error("health port not served while the disk refuses error=%r", str(error))
        try:
            yield
        finally:
            await server.stop()

    return serve
