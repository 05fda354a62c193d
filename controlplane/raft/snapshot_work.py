"""Snapshots beside the turns: the tasks that cut them, and that take and send their pieces.

Owns the tasks and the peers' messages that wait for them. Must not know what is in a message, nor when a snapshot is
due: that is ``snapshotting``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor

from controlplane.pb.quarterdeck.internal.v1 import raft_pb2
from controlplane.raft import metrics
from controlplane.raft.core import Turn
from controlplane.raft.snapshotting import Snapshotting
from controlplane.raft.storage import Storage

__all__ = ["SnapshotWork"]

_INBOX_MAX = 64


class SnapshotWork:
    """See the module.

    Args:
        sync_thread: where the log is written, and so where segments of it are dropped.
        kick: something was done that a turn should see.
        fail: a task ended with an error: it is the replica's.
    """

    def __init__(
        self,
        snapshotting: Snapshotting,
        storage: Storage,
        *,
        sync_thread: Executor,
        kick: Callable[[], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._snapshotting = snapshotting
        self._storage = storage
        self._sync_thread = sync_thread
        self._kick = kick
        self._fail = fail
        self._inbox: asyncio.Queue[tuple[int, raft_pb2.RaftMessage]] = asyncio.Queue(_INBOX_MAX)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._begin(self._handle_messages())

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def attend(self, turn: Turn) -> None:
        """Between two turns: hand over messages, start what is due, drop log segments nobody needs."""
        snapshotting = self._snapshotting
        for item in turn.snapshot_messages:
            if self._inbox.full():
                break  # the leader offers again
            self._inbox.put_nowait(item)
        snapshotting.offer()
        if snapshotting.due:
            self._begin(self._cut())
        if (index := snapshotting.compact_to) is not None:
            snapshotting.compact_to = None
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._sync_thread, self._storage.wal.compact_to, index)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        """Run beside the turns; its failure is the replica's."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    async def _handle_messages(self) -> None:
        while True:
            peer_id, message = await self._inbox.get()
            beside = await self._snapshotting.handle(peer_id, message)
            if beside is not None:
                self._begin(self._beside(beside))
            self._kick()

    async def _beside(self, work: Coroutine[None, None, None]) -> None:
        await work
        self._kick()

    async def _cut(self) -> None:
        with metrics.SNAPSHOT_SAVE_SECONDS.time():
            await self._snapshotting.cut()
        self._kick()
