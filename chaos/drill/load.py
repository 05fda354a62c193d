"""Load on a fleet whose state is swapped under it: which acknowledged writes are there, and whether watchers were told.

Owns its writers, its watcher, and what they were told; knows nothing of restores.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from controlplane.client import EtcdClient
from controlplane.client.etcd_client import Acknowledged

__all__ = ["Load"]

_LOAD: Final = b"load/"
_WRITERS: Final = 6


class Load:
    """Writers, each of keys of its own, and a watcher of them all."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._endpoints = endpoints
        self.stopped = False
        self.acked = self.failed = 0
        self.gap_s = 0.0
        self.told = False
        self._last_s = time.monotonic()
        self._revisions: dict[bytes, int] = {}

    async def run(self) -> None:
        """Until stopped."""
        clients = [EtcdClient(self._endpoints[n % len(self._endpoints) :]) for n in range(_WRITERS)]
        watching = asyncio.create_task(self._watch())
        try:
            self._last_s = time.monotonic()
            await asyncio.gather(*(self._write(n, client) for n, client in enumerate(clients)))
        finally:
            watching.cancel()
            await asyncio.gather(watching, *(client.close() for client in clients), return_exceptions=True)

    async def _write(self, writer: int, client: EtcdClient) -> None:
        count = 0
        while not self.stopped:
            key = _LOAD + b"%d/%06d" % (writer, count)
            outcome = await client.put(key, b"v" * 200)
            count += 1
            if not isinstance(outcome, Acknowledged):
                self.failed += 1
                continue
            now_s = time.monotonic()
            self.gap_s, self._last_s = max(self.gap_s, now_s - self._last_s), now_s
            self.acked += 1
            self._revisions[key] = outcome.revision

    async def _watch(self) -> None:
        async with EtcdClient(self._endpoints) as client, client.watch(_LOAD, range_end=b"load0") as stream:
            async for response in stream:
                self.told = self.told or response.compact_revision > 0

    async def lost_since(self, revision: int) -> int:
        """Acknowledged writes of that revision or later that are not there."""
        async with EtcdClient(self._endpoints) as client:
            there = {kv.key: kv.mod_revision for kv in (await client.get_prefix(_LOAD)).kvs}
        return sum(1 for key, at in self._revisions.items() if at >= revision and there.get(key) != at)

    async def clear(self) -> None:
        """Take the load's keys away again."""
        async with EtcdClient(self._endpoints) as client:
            await client.delete(_LOAD, range_end=b"load0")
