"""The loop of turns of one running replica: their order, durability and pace.

Owns when a turn is taken and when its effects are let out. A turn: step the core, write and sync the log once (in a
helper thread), and only then send its messages and answer its waiters; what the core says need not wait for that sync
is let out while it runs, so that the disks of leader and followers work at the same time. While a sync runs, inputs
gather for the next turn: that is the group commit. A replica that has nothing to do sleeps until something arrives or a
timer is due.

Must not know what a message or an outcome means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor

from controlplane.base import failpoints
from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError, StorageError
from controlplane.pb.quarterdeck.internal.v1 import raft_pb2
from controlplane.raft import metrics
from controlplane.raft.config import RaftConfig
from controlplane.raft.core import Core, Turn
from controlplane.raft.storage import Storage
from controlplane.raft.types import Applied

__all__ = ["Turns"]

#: Writes in one entry from which on the next turn waits a moment for more of them.
_PACE_FROM_WRITES = 4
_SLOW_STEP_S = 0.1


class Turns:
    """See the module.

    Args:
        sync_thread: writes and syncs the log.
        send: a message to a peer; False when it is lost.
        released: hears of each turn whose messages and answers are out.
        attend: what else is to be done between two turns.
    """

    def __init__(
        self,
        *,
        core: Core,
        storage: Storage,
        config: RaftConfig,
        clock: Clock,
        sync_thread: Executor,
        send: Callable[[int, raft_pb2.RaftMessage], bool],
        released: Callable[[Turn], None],
        attend: Callable[[Turn], Awaitable[None]],
    ) -> None:
        self._core = core
        self._storage = storage
        self._config = config
        self._clock = clock
        self._sync_thread = sync_thread
        self._send = send
        self._released = released
        self._attend = attend
        self._kicked = False
        self._sleeper: asyncio.Future[None] | None = None
        self._turn_ended: list[asyncio.Future[None]] = []

    def kick(self) -> None:
        """There is something to do: a turn, soon."""
        self._kicked = True
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    async def run(self, stopping: Callable[[], bool]) -> None:
        """Take turns until ``stopping``. Whatever leaves it is fail-stop."""
        while not stopping():
            turn = await self._turn()
            await self._wait(turn)

    async def _turn(self) -> Turn:
        core, storage = self._core, self._storage
        self._kicked = False
        started = self._clock.monotonic()
        turn = core.step()
        step_s = self._clock.monotonic() - started
        if turn.applied:
            metrics.APPLY_SECONDS.observe(step_s)
        if step_s > _SLOW_STEP_S:
            metrics.SLOW_APPLY.inc()
        flush = storage.journal.take_dirty()
        self._send_all(turn.ahead)
        if flush is not None:
            loop = asyncio.get_running_loop()
            syncing = loop.run_in_executor(self._sync_thread, storage.wal.write_and_sync, flush)
            failpoints.hit("raft.ahead.after")
            if turn.settled:
                self._answer_now(turn)
            try:
                await syncing
            except StorageError:
                self.answer(turn.withheld("the log could not be written"))
                raise
        self._release(turn)
        await self._attend(turn)
        return turn

    def _release(self, turn: Turn) -> None:
        """The turn is durable: let its effects out."""
        failpoints.hit("raft.send.before")
        self._send_all(turn.messages)
        self._answer_now(turn)
        self._released(turn)
        self.wake_waiters()

    def _send_all(self, messages: Iterable[tuple[int, raft_pb2.RaftMessage]]) -> None:
        for peer_id, message in messages:
            if not self._send(peer_id, message) and message.HasField("append_entries"):
                metrics.HEARTBEAT_SEND_FAILURES.inc()

    def _answer_now(self, turn: Turn) -> None:
        """Tell whoever waits for the turn's outcomes and reads, once."""
        if turn.outcomes:
            failpoints.hit("raft.answer.before")
        self.answer(turn)
        turn.outcomes, turn.reads, turn.transfers = [], [], []

    def answer(self, turn: Turn) -> None:
        """Tell its waiters."""
        for done, outcome in turn.outcomes:
            if not isinstance(outcome, Applied):
                metrics.PROPOSALS_FAILED.inc()
            done(outcome)
        for read_done, result in turn.reads:
            if isinstance(result, StatusError):
                metrics.READ_INDEXES_FAILED.inc()
            read_done(result)
        for moved, error in turn.transfers:
            moved(error)

    async def _wait(self, turn: Turn) -> None:
        """Every way through here gives the loop to the sockets at least once."""
        core = self._core
        if turn.batched >= _PACE_FROM_WRITES:
            await self._clock.sleep(self._config.pace_ms / 1000)
        if core.has_work or self._kicked:
            await asyncio.sleep(0)
            return
        delay_s = core.next_wake() - self._clock.monotonic()
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        self._sleeper = loop.create_future()
        timer = loop.call_later(delay_s + 0.0005, self.kick)
        try:
            await self._sleeper
        finally:
            timer.cancel()
            self._sleeper = None

    async def next_turn(self, *, deadline: float, stopping: bool) -> None:
        """Return when a turn has ended, or at ``deadline`` (monotonic seconds).

        Raises:
            StatusError: Unavailable, the replica stops.
        """
        if stopping:
            raise StatusError(Code.UNAVAILABLE, "etcdserver: server stopped", unknown_outcome=True)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turn_ended.append(ended)
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock.monotonic())):
                await ended
        except TimeoutError:
            return
        finally:
            if ended in self._turn_ended:
                self._turn_ended.remove(ended)

    def wake_waiters(self) -> None:
        """Whoever waits for the end of a turn."""
        ended, self._turn_ended = self._turn_ended, []
        for waiter in ended:
            if not waiter.done():
                waiter.set_result(None)
