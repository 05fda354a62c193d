"""One simulated replica: the production core and storage on a disk that forgets, its turns in virtual time.

Owns the same order as ``driver.py``: step, sync, release. A sync takes time, and a crash may come in the middle of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from controlplane.base.rand import SeededRand
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import RaftMessage
from controlplane.raft.config import RaftConfig
from controlplane.raft.core import Core, Turn
from controlplane.raft.snapshotting import Snapshotting
from controlplane.raft.storage import Storage, create_storage, has_run_before, open_storage
from controlplane.raft.types import Member
from controlplane.raft.wal import Flush, Identity
from tests.sim.checks import CheckedStore, Checks
from tests.sim.disk import PowerLoss, SimDisk
from tests.sim.net import SimNet
from tests.sim.scheduler import NodeClock, Scheduler

__all__ = ["Breakage", "SimNode"]

T = TypeVar("T")

_CLUSTER_ID = 1


class Breakage:
    """What a deliberately broken build leaves out; the checks must catch each one."""

    def __init__(
        self,
        *,
        send_before_sync: bool = False,
        read_locally: bool = False,
        on_start: Callable[[SimNode], None] = lambda node: None,
    ) -> None:
        self.send_before_sync = send_before_sync
        self.read_locally = read_locally
        #: Called with every replica before its first turn, to break something inside it.
        self.on_start = on_start


async def _at_once(operation: Callable[[], T]) -> T:
    return operation()


def run_now(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as ended:
        return ended.value  # type: ignore[no-any-return]
    raise AssertionError("it waited for something")


def at_once(operation: Callable[[], T], /) -> Awaitable[T]:
    return _at_once(operation)


class SimNode:
    """A member with its disk; alive between :meth:`start` and :meth:`crash`."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        net: SimNet,
        checks: Checks,
        config: RaftConfig,
        me: Member,
        members: Sequence[Member],
        sync_s: tuple[float, float],
        breakage: Breakage,
    ) -> None:
        self.me = me
        self._members = members
        self._s = scheduler
        self._net = net
        self._checks = checks
        self.config = config
        self.sync_s = sync_s
        self._breakage = breakage
        self.disk = SimDisk(SeededRand(scheduler.rand.randint(0, 1 << 30)))
        self.alive = False
        self.boot = 0
        self.core: Core
        self.machine: CheckedStore
        self.snapshotting: Snapshotting
        self.storage: Storage
        self._clock: NodeClock
        self._paused_until = 0.0
        self._syncing: Flush | None = None
        self._wake_at: float | None = None
        self._kicked = False

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Recover from the disk and take part."""
        assert not self.alive
        self.boot += 1
        self._s.note("start", self.me.name)
        self._clock = NodeClock(self._s, self._s.between(1_000, 9_000), self._s.between(0.999, 1.001))
        self.machine = CheckedStore(self.me.name, self._checks)
        identity = Identity(_CLUSTER_ID, self.me.id)
        opening = open_storage if has_run_before(self.disk) else create_storage
        self.storage = opening(self.disk, identity, clock=self._clock, segment_bytes=4_096)
        if (ref := self.storage.snapshot_ref) is not None:
            self.machine.restore(self.storage.snapshots.chunks(ref))
        self.core = Core(
            config=self.config,
            me=self.me,
            members=self._members,
            journal=self.storage.journal,
            state_machine=self.machine,
            clock=self._clock,
            rand=SeededRand(self._s.rand.randint(0, 1 << 30)),
        )
        self.snapshotting = Snapshotting(
            cluster_id=_CLUSTER_ID,
            core=self.core,
            journal=self.storage.journal,
            store=self.storage.snapshots,
            state_machine=self.machine,
            newest=ref,
            clock=self._clock,
            io=at_once,
        )
        self._paused_until = 0.0
        self._syncing = None
        self._wake_at = None
        self.alive = True
        self._breakage.on_start(self)
        self._net.started(self.me.id)
        self._wake(self._s.now)

    def crash(self, *, power: bool) -> None:
        """kill -9, or the machine's power: what was not synced is in doubt."""
        if not self.alive:
            return
        self._s.note("crash", self.me.name, power)
        self.alive = False
        self.boot += 1
        flush, self._syncing = self._syncing, None
        if flush is not None and self._s.chance(0.6):
            # The write was under way: some of its operations happened.
            self.disk.stop_at = len(self.disk.operations) + self._s.rand.randint(0, 3)
            try:
                self.storage.wal.write_and_sync(flush)
            except PowerLoss:
                pass  # exactly what was asked for
        if power:
            self.disk.power_loss()
        else:
            self.disk.process_died()
        self._net.died(self.me.id, noticed=not power)

    def pause(self, seconds: float) -> None:
        """SIGSTOP: messages wait, timers pass unseen."""
        self._s.note("pause", self.me.name, seconds)
        self._paused_until = self._s.now + seconds
        self._wake(self._paused_until)

    # -- inputs ------------------------------------------------------------------------------------------------

    def receive(self, peer_id: int, message: RaftMessage) -> None:
        self.core.receive(peer_id, message)
        self.kick()

    def link_up(self, peer_id: int) -> None:
        self.core.link_up(peer_id)
        self.kick()

    def link_down(self, peer_id: int) -> None:
        self.core.link_down(peer_id)
        self.kick()

    def peer_died(self, peer_id: int) -> None:
        self.core.peer_died(peer_id)
        self.kick()

    def kick(self) -> None:
        self._kicked = True
        self._wake(self._s.now)

    def monotonic(self) -> float:
        return self._clock.monotonic()

    # -- turns -------------------------------------------------------------------------------------------------

    def _wake(self, time_s: float) -> None:
        """A turn at ``time_s``, unless one is due sooner."""
        time_s = max(time_s, self._s.now, self._paused_until)
        if self._wake_at is not None and self._wake_at <= time_s:
            return
        self._wake_at = time_s
        boot = self.boot
        self._s.at(time_s, lambda: self._due(boot, time_s))

    def _due(self, boot: int, time_s: float) -> None:
        if not self.alive or boot != self.boot or self._wake_at != time_s:
            return
        self._wake_at = None
        if self._s.now < self._paused_until:
            self._wake(self._paused_until)
        elif self._syncing is None:
            self._turn()

    def _turn(self) -> None:
        self._kicked = False
        turn = self.core.step()
        engine = self.core.engine
        if engine.is_leader:
            self._checks.leads(self.me.name, engine.term)
        self._s.note("turn", self.me.name, engine.term, engine.last_index, engine.commit_index, len(turn.messages))
        flush = self.storage.journal.take_dirty()
        if flush is None:
            self._release(turn)
            return
        if self._breakage.send_before_sync:
            self._let_out(turn)
        self._syncing = flush
        latency = self._s.between(*self.sync_s) * (20 if self._s.chance(0.01) else 1)
        boot = self.boot
        self._s.after(latency, lambda: self._synced(boot, flush, turn))

    def _synced(self, boot: int, flush: Flush, turn: Turn) -> None:
        if not self.alive or boot != self.boot:
            return
        self.storage.wal.write_and_sync(flush)
        self._syncing = None
        self._release(turn)

    def _let_out(self, turn: Turn) -> None:
        for peer_id, message in turn.messages:
            self._net.send(self.me.id, peer_id, message)
        for done, outcome in turn.outcomes:
            done(outcome)
        for read_done, result in turn.reads:
            read_done(result)
        turn.messages, turn.outcomes, turn.reads = [], [], []

    def _release(self, turn: Turn) -> None:
        self._let_out(turn)
        for term, leading in turn.leadership:
            self._s.note("leading", self.me.name, term, leading)
        for peer_id, message in turn.snapshot_messages:
            run_now(self.snapshotting.handle(peer_id, message))
        self.snapshotting.offer()
        if self.snapshotting.due:
            run_now(self.snapshotting.cut())
        if self.snapshotting.compact_to is not None:
            self.storage.wal.compact_to(self.snapshotting.compact_to)
            self.snapshotting.compact_to = None
        if self.core.has_work or self._kicked:
            self._wake(self._s.now + 0.0001)
        else:
            self._wake(self._clock.virtual(self.core.next_wake()) + 0.0005)
