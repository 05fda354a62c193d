"""One simulated replica: the production driver, links, log, store and services, as a process in virtual time.

Owns the life of the process: start, kill, power loss, pause, a disk that refuses. Everything inside is production code,
on the simulated loop, network and disk; only the gRPC front is left out, whose place ``rpc.py`` takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from controlplane.base.errors import CorruptStateError, RemovedError, StorageError
from controlplane.base.rand import SeededRand
from controlplane.base.retention import Retention
from controlplane.etcd.caller import Caller
from controlplane.etcd.compactor import AutoCompactor
from controlplane.etcd.guard import LeaderGuard
from controlplane.etcd.integrity import CorruptMemberError, Integrity
from controlplane.etcd.local import LocalKV
from controlplane.etcd.restoring import LiveRestore
from controlplane.etcd.watch_service import WatchService
from controlplane.raft.config import RaftConfig
from controlplane.raft.core import Core, Turn
from controlplane.raft.driver import Replica
from controlplane.raft.types import Member
from controlplane.store.auth import ROOT
from controlplane.store.store import Store
from tests.sim.checks import CheckedStore, Checks
from tests.sim.disk import PowerLoss, SimDisk
from tests.sim.loop import SimLoop
from tests.sim.net import SimNet
from tests.sim.scheduler import NodeClock, Scheduler

__all__ = ["Breakage", "SimNode", "at_once", "run_now"]

T = TypeVar("T")

CLUSTER_ID = 1
#: How often a watch is told of its progress.
_PROGRESS_EVERY_S = 0.4
#: Between two comparisons of states.
_COMPARED_EVERY_S = 0.3


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


class _Administrators:
    """Takes every caller for the administrator."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def caller(self, context: Any) -> Caller:
        return self

    async def user(self) -> str | None:
        return ROOT if self._store.auth.enabled else None


class SimNode:
    """A member with its disk; ``alive`` between :meth:`start` and :meth:`crash`, ``serving`` when clients may ask."""

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
        services: bool = True,
        compared: bool = False,
        retention: Retention = Retention(),  # noqa: B008 - frozen
    ) -> None:
        self.me = me
        self.name = me.name
        self._members = members
        self._s = scheduler
        self._net = net
        self._checks = checks
        self.config = config
        self.sync_s = sync_s
        self._breakage = breakage
        self._services = services
        self._compared = compared
        self._retention = retention
        self.disk = SimDisk(SeededRand(scheduler.rand.randint(0, 1 << 30)))
        self.alive = False
        self.serving = False
        self.boot = 0
        #: Why it stopped by itself, since it was started.
        self.stopped: BaseException | None = None
        #: Told that it stopped by itself; by default that is a violation.
        self.on_stop: Callable[[SimNode, BaseException], None] = lambda node, error: scheduler.fail(error)
        #: Told that its disk stopped the machine.
        self.on_power_loss: Callable[[SimNode], None] = lambda node: None
        #: It was removed from the cluster and must not be started again.
        self.retired = False
        self.loop: SimLoop
        self.clock: NodeClock
        self.replica: Replica
        self.core: Core
        self.machine: CheckedStore
        self.kv: LocalKV
        self.restoring: LiveRestore
        self.watching: WatchService
        self.integrity: Integrity
        #: Clients that wait for an answer: what to tell them when the process dies.
        self.waiting: dict[int, Callable[[], None]] = {}

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Recover from the disk and take part."""
        assert not self.alive
        self.boot += 1
        self.stopped = None
        self._s.note("start", self.name)
        self.clock = NodeClock(self._s, self._s.between(1_000, 9_000), self._s.between(0.999, 1.001))
        self.loop = loop = SimLoop(self._s, self.clock, self.name, self._net)
        loop.operation_s = self._operation_s
        loop.on_power_loss = self.stop_in_power_loss
        if self._breakage.send_before_sync:
            self.disk.sync_later = lambda sync: self._s.after(self._operation_s(), sync)
        self.alive = True
        self._net.started(self.name)
        loop.spawn(self._run)

    async def _run(self) -> None:
        """The process, as ``app.py`` begins it, without its ports."""
        self.machine = CheckedStore(self.name, self._checks, lambda: self._s.now)
        rand = SeededRand(self._s.rand.randint(0, 1 << 30))
        self.replica = replica = Replica(
            config=self.config,
            cluster_id=CLUSTER_ID,
            members=self._members,
            name=self.name,
            member_id=self.me.id,
            data_dir=Path("sim"),
            state_machine=self.machine,
            clock=self.clock,
            rand=rand,
            open_disk=lambda: self.disk,
        )
        try:
            self.kv = LocalKV(
                replica,
                self.machine.store,
                clock=self.clock,
                rand=rand,
                election_timeout_ms=self.config.election_max_ms,
                progress_every_s=_PROGRESS_EVERY_S,
            )
            self.restoring = LiveRestore(
                self.kv, replica, self.machine.store, self.clock, rand, lambda: self.disk.capacity_bytes
            )
            self._serve_streams(replica, rand)
            if self._services:
                self.kv.start()
                self.loop.spawn(self.restoring.run)
                self._keep_house(replica)
            await replica.start()
            assert replica._core is not None
            self.core = replica._core
            self._observe_steps()
            if self._breakage.read_locally:
                self._read_locally()
            self._breakage.on_start(self)
            self.serving = True
            replica.on_leadership(self._note_leadership)
            await asyncio.wait([replica.failed])
            raise replica.failed.result()
        except PowerLoss:
            self.stop_in_power_loss()
        except (StorageError, CorruptStateError, RemovedError) as error:
            self.stop_by_itself(error)
        except Exception as error:  # noqa: BLE001 - a defect: it ends the run
            self._s.fail(error)

    def _serve_streams(self, replica: Replica, rand: SeededRand) -> None:
        """The services whose calls are streams. Everybody is the administrator: users have clients of their own."""
        store = self.machine.store
        guard = LeaderGuard(replica, self.clock, election_timeout_ms=self.config.election_max_ms)
        authorizer: Any = _Administrators(store)
        self.watching = WatchService(
            self.kv, store, guard, authorizer, self.clock, rand, progress_every_s=_PROGRESS_EVERY_S
        )

    def _keep_house(self, replica: Replica) -> None:
        """What else runs in every replica (``backbone.py``)."""
        if self._retention.seconds is not None:
            self.loop.spawn(AutoCompactor(self.kv, self.clock, lambda: self.leads, self._retention).run)
        self.integrity = Integrity(self.kv, replica, self.machine.store, self.clock, every_s=_COMPARED_EVERY_S)
        if self._compared:
            self.loop.spawn(self._compare)

    async def _compare(self) -> None:
        try:
            await self.integrity.run()
        except CorruptMemberError as error:
            self.stop_by_itself(error)

    def stop_by_itself(self, error: BaseException) -> None:
        """Fail-stop: the process is gone, and says why."""
        self._s.note("stopped", self.name, type(error).__name__)
        self.stopped = error
        self.retired = self.retired or isinstance(error, RemovedError)
        self.crash(power=False)
        self.on_stop(self, error)

    def stop_in_power_loss(self) -> None:
        """The disk was told to stop the machine at this operation."""
        self.disk.stop_at = None
        self.crash(power=True)
        self.on_power_loss(self)

    def _read_locally(self) -> None:
        async def at_once(*, timeout_ms: int) -> int:
            return self.machine.applied_index

        replica: Any = self.replica
        replica.read_barrier = at_once

    def _observe_steps(self) -> None:
        core: Any = self.core
        step = core.step
        boot = self.boot

        def observed() -> Turn:
            turn: Turn = step()
            engine = self.core.engine
            self._checks.stepped(self.name, boot, engine)
            sent = len(turn.ahead) + len(turn.messages)
            self._s.note("turn", self.name, engine.term, engine.last_index, engine.commit_index, sent)
            return turn

        core.step = observed

    def _note_leadership(self, term: int, leading: bool) -> None:
        self._s.note("leading", self.name, term, leading)
        if leading:
            self._checks.leases.leader_began(self._s.now)

    def _operation_s(self) -> float:
        return self._s.between(*self.sync_s) * (20 if self._s.chance(0.01) else 1)

    def crash(self, *, power: bool) -> None:
        """kill -9, or the machine's power: what was not synced is in doubt."""
        if not self.alive:
            return
        self._s.note("crash", self.name, power)
        self.alive = self.serving = False
        self.boot += 1
        self.loop.kill()
        for operation in self.loop.unfinished():
            if not self._s.chance(0.6):
                break
            # It was under way: some of its steps happened.
            self.disk.stop_at = len(self.disk.operations) + self._s.rand.randint(0, 3)
            try:
                operation()
            except (PowerLoss, StorageError):
                break  # exactly what was asked for
        if power:
            self.disk.power_loss()
        else:
            self.disk.process_died()
        self._net.died(self.name, noticed=not power)
        waiting, self.waiting = self.waiting, {}
        if not power:
            for tell in waiting.values():
                tell()

    def pause(self, seconds: float) -> None:
        """SIGSTOP: messages wait, timers pass unseen."""
        self._s.note("pause", self.name, seconds)
        if self.alive:
            self.loop.pause(self._s.now + seconds)

    # -- for who drives it from outside ------------------------------------------------------------------------

    def kick(self) -> None:
        """There is something to do: take a turn."""
        self.loop.call_soon(self.replica._kick)

    def monotonic(self) -> float:
        return self.clock.monotonic()

    @property
    def leads(self) -> bool:
        return self.serving and self.core.engine.is_leader
