"""One client that writes ever higher numbers to one key, and remembers when each was acknowledged.

What it finds there after a restore says how much time was lost: the recovery point as a client sees it, whatever
anybody's log says. Times are of this process's monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from controlplane.client import EtcdClient
from controlplane.client.etcd_client import Acknowledged

__all__ = ["Ticks", "lost_s"]

_EVERY_S: Final = 0.02


class Ticks:
    """Use :meth:`running` as a context; ``acknowledged``: number -> when. The key is nobody else's, nor an earlier
    one's: its numbers begin at 0."""

    def __init__(self, endpoints: Sequence[str], key: bytes) -> None:
        self._endpoints = endpoints
        self._key = key
        self.acknowledged: dict[int, float] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write meanwhile; not before the first was acknowledged."""
        first = asyncio.Event()
        task = asyncio.create_task(self._write(first))
        waiting = asyncio.create_task(first.wait())
        try:
            await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
            yield
        finally:
            waiting.cancel()
            task.cancel()
            # An error of ours is not lost; the cancellation is what was asked for.
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _write(self, first: asyncio.Event) -> None:
        async with EtcdClient(self._endpoints) as client:
            number = 0
            while True:
                if isinstance(await client.put(self._key, b"%d" % number), Acknowledged):
                    self.acknowledged[number] = time.monotonic()
                    first.set()
                number += 1
                await asyncio.sleep(_EVERY_S)

    async def found(self) -> int | None:
        """The number that is there now."""
        async with EtcdClient(self._endpoints) as client:
            there = await client.get(self._key)
        return None if there is None else int(there.value)


def lost_s(acknowledged: Mapping[int, float], found: int | None, end_s: float) -> float:
    """How long before ``end_s`` the first number was acknowledged that is not there any more; 0: none is missing."""
    missing = [at_s for number, at_s in acknowledged.items() if found is None or number > found]
    return max((end_s - at_s for at_s in missing), default=0.0)
