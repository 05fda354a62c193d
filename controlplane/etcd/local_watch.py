"""Watches of this replica's store for callers in the same process: responses made as they are taken.

Owns the waiting for events and the bookmarks of an idle watch. Must not know permissions or gRPC (``watch_service``
sends watches to clients).

- Nothing queues here: revisions are read from the store's history when the caller asks for more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Final

from controlplane.base.clock import Clock
from controlplane.etcd.headers import Headers
from controlplane.pb.etcd import rpc_pb2
from controlplane.store.errors import CompactedError
from controlplane.store.store import Store
from controlplane.store.watch import Watcher

__all__ = ["LocalWatches"]

#: A watch that has more to read yields this many events at a time (or one revision, if that has more).
_WATCH_EVENTS_PER_RESPONSE: Final = 500


class LocalWatches:
    """Of one replica. ``progress_every_s``: how often an idle watch that asked for progress gets a bookmark."""

    def __init__(self, store: Store, headers: Headers, clock: Clock, progress_every_s: float) -> None:
        self._store = store
        self._headers = headers
        self._clock = clock
        self._progress_every_s = progress_every_s

    @asynccontextmanager
    async def open(self, request: rpc_pb2.WatchCreateRequest) -> AsyncIterator[AsyncIterator[rpc_pb2.WatchResponse]]:
        """The responses of a watch, which ends with the context. The last one is ``canceled`` when its revisions are
        compacted away."""
        work = asyncio.Event()
        watcher = self._store.watches.create(
            request.key,
            request.range_end,
            request.start_revision,
            filters=request.filters,
            prev_kv=request.prev_kv,
            wake=work.set,
        )
        ticking = asyncio.create_task(self._tick(work)) if request.progress_notify else None
        try:
            async with aclosing(self._responses(watcher, work, request.progress_notify)) as responses:
                yield responses
        finally:
            watcher.cancel()
            if ticking is not None:
                ticking.cancel()

    async def _tick(self, work: asyncio.Event) -> None:
        while True:
            await self._clock.sleep(self._progress_every_s)
            work.set()

    async def _responses(
        self, watcher: Watcher, work: asyncio.Event, progress_notify: bool
    ) -> AsyncGenerator[rpc_pb2.WatchResponse, None]:
        woken = False
        while True:
            try:
                batch = watcher.poll(_WATCH_EVENTS_PER_RESPONSE)
            except CompactedError as error:
                yield rpc_pb2.WatchResponse(
                    header=self._headers.new(), canceled=True, compact_revision=error.compact_revision
                )
                return
            if batch:
                events = [event for _, events in batch for event in events]
                yield rpc_pb2.WatchResponse(header=self._headers.new(watcher.progress), events=events)
            elif woken and progress_notify and watcher.synced:  # woken without an event: the tick
                yield rpc_pb2.WatchResponse(header=self._headers.new(watcher.progress))
            if watcher.synced:
                await work.wait()
                work.clear()
                woken = True
            else:
                await asyncio.sleep(0)
