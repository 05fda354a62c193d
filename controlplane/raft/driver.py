"""One running replica: the core's turns on an asyncio loop, with a real log, real links and real time.

Owns its beginning, its end, and what others may ask of it. Knows the order, not the meaning: consensus is in ``core``,
the loop of turns in ``turns``, bytes on disk in ``storage``, links in ``transport.peer``, snapshots in
``snapshotting``, who the others are in ``roster``.

Fail-stop: any exception out of a turn (a full disk included: the log takes nothing more, so nothing can be
acknowledged) ends the replica. ``failed`` carries the reason, every waiter gets an honest outcome, the others go on.

A data directory is bound to its member and cluster. Never start a member with an empty directory under an identity
that has voted before: replace the member instead. (A new directory cannot be told from a lost one.)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from controlplane.base.clock import Clock, SystemClock
from controlplane.base.errors import Code, RemovedError, StatusError, StoppedError, StorageError
from controlplane.base.rand import Rand, SystemRand
from controlplane.pb.quarterdeck.internal.v1 import raft_pb2
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import HelloAck
from controlplane.raft import metrics
from controlplane.raft.config import RaftConfig
from controlplane.raft.core import Core, Turn
from controlplane.raft.disk import OpenDisk, RealDisk
from controlplane.raft.founding import Founding, read_founding, write_founding
from controlplane.raft.members import CHANNEL, MemberChanges
from controlplane.raft.membership import Membership, membership_of
from controlplane.raft.roster import Roster, address_of
from controlplane.raft.snapshot_work import SnapshotWork
from controlplane.raft.snapshotting import Snapshotting
from controlplane.raft.storage import Storage, create_storage, has_run_before, open_storage
from controlplane.raft.turns import Turns
from controlplane.raft.types import (
    LeadershipListener,
    LogTail,
    Member,
    MemberChange,
    NeverSent,
    Outcome,
    PeerHandler,
    RaftStatus,
    SnapshotCut,
    StateMachine,
)
from controlplane.raft.wal import Identity
from controlplane.transport.peer import PeerAddress, PeerLinks
from controlplane.transport.tls import Reloader

__all__ = ["Replica"]

_log = logging.getLogger("quarterdeck.raft")

T = TypeVar("T")

_SLOW_READ_S = 1.0
#: How long a stopping leader waits for a follower to take over, and for its own writes to be answered.
_STEP_ASIDE_S = 1.0
_DRAIN_S = 0.3


class Replica:
    """One member of the cluster, running. Implements ``RaftHandle`` and ``LogReader``.

    Args:
        config: timers and sizes.
        cluster_id, members: who takes part, as far as is known at the start (see ``config.make_members``): a membership
            in the data directory wins over ``members``.
        name: which of the members this is; what it calls itself, if ``member_id`` says which.
        member_id: which of the members this is, for one that was added to a running cluster.
        settings: members as the settings name them, ``members`` by default: where they differ is said in the log.
        data_dir: its log and snapshots; locked while it runs.
        state_machine: empty; restored and fed from here on.
        create_data_dir: make the directory if it is missing.
        had_data: this process has seen the member's data in there: if they are gone, its disk is not mounted.
        clock, rand: the machine's, unless a test says otherwise.
        tls: this member's certificate, for the links to its peers; None: they speak plainly.
        open_disk: takes hold of the data directory; by default of the one in the machine's file system.
        dial: see PeerLinks.
    """

    def __init__(
        self,
        *,
        config: RaftConfig,
        cluster_id: int,
        members: Sequence[Member],
        name: str,
        data_dir: Path,
        state_machine: StateMachine,
        create_data_dir: bool = False,
        had_data: bool = False,
        member_id: int | None = None,
        settings: Sequence[Member] | None = None,
        clock: Clock | None = None,
        rand: Rand | None = None,
        tls: Reloader | None = None,
        open_disk: Callable[[], OpenDisk] | None = None,
        dial: Mapping[str, str] | None = None,
    ) -> None:
        config.validate()
        self._config = config
        self._cluster_id = cluster_id
        self._first_members = tuple(members)
        self._settings = self._first_members if settings is None else tuple(settings)
        me = next(m for m in members if (m.name == name if member_id is None else m.id == member_id))
        self._me = replace(me, name=name)
        self._data_dir = data_dir
        self._create_data_dir = create_data_dir and not had_data
        #: The directory holds this member's data, or did: an empty one would be another disk.
        self.has_data = had_data
        self._state_machine = state_machine
        self._tls = tls
        self._dial = dial
        self._clock: Clock = clock or SystemClock()
        self._rand: Rand = rand or SystemRand()
        self._listeners: list[LeadershipListener] = []
        self._handlers: dict[str, PeerHandler] = {}
        self._open_disk = open_disk or (lambda: RealDisk(self._data_dir, create=self._create_data_dir))
        self._disk: OpenDisk | None = None
        self._storage: Storage | None = None
        self._core: Core | None = None
        self._links: PeerLinks | None = None
        self._snapshotting: Snapshotting | None = None
        self._snapshot_work: SnapshotWork | None = None
        self._task: asyncio.Task[None] | None = None
        self._sync_thread = ThreadPoolExecutor(1, thread_name_prefix="wal-sync")
        self._snapshot_thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._stopping = False
        #: What was applied when a turn had become durable.
        self._durable_index = 0
        self._turns: Turns | None = None
        self._roster: Roster | None = None
        self._seen_leader: int | None = None
        self._seen_dropped = 0
        self._changes = MemberChanges(self, self._clock, self._rand)
        #: Members whose link is up.
        self._linked: set[int] = set()
        #: Resolves with the reason when the replica had to stop by itself. Create it inside the loop: see start.
        self.failed: asyncio.Future[BaseException]

    # -- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Recover, bind the peer address, take part. Returns before there is a leader.

        Raises:
            ConfigError: data directory or address cannot be used, or belong to someone else.
            CorruptStateError: what is on disk is not a state that may be served.
            StorageError: the disk refused.
        """
        self.failed = asyncio.get_running_loop().create_future()
        if self.has_data and not self._data_dir.is_dir():
            raise StorageError(f"data directory {self._data_dir} is gone: is its disk mounted?")
        self._disk = self._open_disk()
        try:
            identity = Identity(self._cluster_id, self._me.id)
            ran_before = has_run_before(self._disk)
            if self.has_data and not ran_before:
                raise StorageError(f"data directory {self._data_dir} holds no log any more: is its disk mounted?")
            self.has_data = ran_before
            founding = read_founding(self._disk) if ran_before else None
            if not ran_before:
                founding = Founding(self._cluster_id, self._me.id, Membership(self._first_members))
                write_founding(self._disk, founding)
            opening = open_storage if ran_before else create_storage
            self._storage = opening(
                self._disk, identity, clock=self._clock, segment_bytes=self._config.wal_segment_bytes
            )
            self.has_data = True
            if (ref := self._storage.snapshot_ref) is not None:
                self._state_machine.restore(self._storage.snapshots.chunks(ref))
            self._core = Core(
                config=self._config,
                me=self._me,
                members=self._first_members if founding is None else founding.membership.members,
                journal=self._storage.journal,
                state_machine=self._state_machine,
                clock=self._clock,
                rand=self._rand,
                membership=None if self._storage.snapshot is None else membership_of(self._storage.snapshot.header),
            )
            if ran_before:
                self._core.engine.no_leader_yet()
            self._roster = Roster(self._core.engine, self._me)
            self._roster.compare_settings(self._settings)
            self._snapshotting = Snapshotting(
                cluster_id=self._cluster_id,
                core=self._core,
                journal=self._storage.journal,
                store=self._storage.snapshots,
                state_machine=self._state_machine,
                newest=self._storage.snapshot_ref,
                clock=self._clock,
                io=self._io,
            )
            self._links = PeerLinks(
                cluster_id=self._cluster_id,
                me=address_of(
                    replace(self._core.engine.memberships.active.get(self._me.id) or self._me, name=self._me.name)
                ),
                peers=[],
                events=self,
                clock=self._clock,
                rand=self._rand,
                tls=self._tls,
                empty_disk=not ran_before,
                on_outcast=self._on_outcast,
                dial=self._dial,
            )
            self.serve(CHANNEL, self._changes.serve)
            for channel, handler in self._handlers.items():
                self._links.serve(channel, handler)
            self._snapshot_work = SnapshotWork(
                self._snapshotting, self._storage, sync_thread=self._sync_thread, kick=self._kick, fail=self._fail
            )
            self._turns = Turns(
                core=self._core,
                storage=self._storage,
                config=self._config,
                clock=self._clock,
                sync_thread=self._sync_thread,
                send=self._links.send,
                released=self._released,
                attend=self._snapshot_work.attend,
            )
            self._roster.follow(self._links)
            await self._links.start()
        except BaseException:
            self._close_files()
            raise
        _log.info(
            "replica started name=%s id=%x cluster=%x term=%d last_index=%d applied_index=%d",
            self._me.name,
            self._me.id,
            self._cluster_id,
            self._core.engine.term,
            self._core.engine.last_index,
            self._core.engine.applied_index,
        )
        self._task = asyncio.create_task(self._run(self._turns), name="raft-turns")
        self._snapshot_work.start()

    async def stop(self) -> None:
        """Hand leadership over if we have it, answer every waiter, close everything. Idempotent."""
        if self._task is None:
            return
        core, task = self._the_core(), self._task
        self._task = None
        if not task.done() and core.engine.voters:
            core.step_aside()
            await self._until(lambda: not core.engine.is_leader or task.done(), _STEP_ASIDE_S)
            await self._until(lambda: core.pending == 0 or task.done(), _DRAIN_S)
        self._stopping = True
        self._kick()
        await task
        await self._shut()

    async def _until(self, condition: Callable[[], bool], limit_s: float) -> None:
        end = self._clock.monotonic() + limit_s
        while not condition() and self._clock.monotonic() < end:
            self._kick()
            await self._clock.sleep(0.002)

    async def _shut(self) -> None:
        if self._turns is not None:
            self._turns.answer(self._the_core().abandon("the replica stopped"))
            self._turns.wake_waiters()
        if self._snapshot_work is not None:
            await self._snapshot_work.stop()
        if self._snapshotting is not None:
            self._snapshotting.abandon()
        if self._links is not None:
            await self._links.stop()
        self._close_files()

    async def _io(self, operation: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._snapshot_thread, operation)

    def _close_files(self) -> None:
        self._sync_thread.shutdown()
        self._snapshot_thread.shutdown()
        if self._storage is not None:
            self._storage.wal.close()
        if self._disk is not None:
            self._disk.close()

    async def _run(self, turns: Turns) -> None:
        try:
            await turns.run(lambda: self._stopping)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - fail-stop: whatever it was, this replica must not go on
            self._fail(error)
        if self.failed.done():
            await self._shut()

    def _fail(self, error: BaseException) -> None:
        """Fail-stop: end the loop of turns; say why, once."""
        self._stopping = True
        if not self.failed.done() and isinstance(error, RemovedError):
            _log.error("replica stops name=%s: %s", self._me.name, error)
            self.failed.set_result(error)
        if not self.failed.done():
            _log.critical(
                "replica stops name=%s error=%s: %s", self._me.name, type(error).__name__, error, exc_info=error
            )
            self.failed.set_result(error)
        self._kick()

    # -- between two turns -------------------------------------------------------------------------------------

    def _released(self, turn: Turn) -> None:
        """Its messages and answers are out."""
        self._durable_index = self._the_core().engine.applied_index
        core, links, roster = self._the_core(), self._links, self._roster
        assert links is not None
        assert roster is not None
        for term, leading in turn.leadership:
            _log.info("leadership name=%s term=%d leading=%s", self._me.name, term, leading)
            for listener in self._listeners:
                listener(term, leading)
        self._observe(turn)
        roster.follow(links)
        if core.removed_at is not None:
            self._fail(roster.removed(core.removed_at, self._data_dir))

    async def next_turn(self, *, deadline: float) -> None:
        """Return when a turn has ended, or at ``deadline`` (monotonic seconds).

        Raises:
            StatusError: Unavailable, the replica stops.
        """
        if self._turns is None:
            raise StoppedError("the replica is not running")
        await self._turns.next_turn(deadline=deadline, stopping=self._stopping)

    def kick(self) -> None:
        """There is something to do: a turn, soon."""
        self._kick()

    @property
    def core(self) -> Core:
        """Raises StoppedError: it does not run."""
        return self._the_core()

    def _kick(self) -> None:
        if self._turns is not None:
            self._turns.kick()

    def _observe(self, turn: Turn) -> None:
        core = self._the_core()
        engine = core.engine
        if engine.leader != self._seen_leader:
            self._seen_leader = engine.leader
            if engine.leader is not None:
                _log.info("leader name=%s leader=%s term=%d", self._me.name, self._name_of(engine.leader), engine.term)
        metrics.TERM.set(engine.term)
        if core.dropped > self._seen_dropped:
            metrics.INBOX_DROPPED.inc(core.dropped - self._seen_dropped)
            self._seen_dropped = core.dropped
        if turn.batched:
            metrics.TURN_WRITES.observe(turn.batched)

    def _name_of(self, member_id: int) -> str:
        """Its name; its id, while it has none."""
        assert self._roster is not None
        return self._roster.name_of(member_id)

    def _on_outcast(self, peer: PeerAddress, ack: HelloAck) -> None:
        """A peer says that we do not belong any more."""
        assert self._roster is not None
        self._fail(self._roster.refused(peer, ack, self._data_dir))

    # -- PeerEvents --------------------------------------------------------------------------------------------

    def receive(self, peer_id: int, message: raft_pb2.RaftMessage, size_bytes: int) -> None:
        self._the_core().receive(peer_id, message, size_bytes)
        self._kick()

    def link_up(self, peer_id: int) -> None:
        self._linked.add(peer_id)
        knows_pre_vote = self._links is not None and self._links.revision(peer_id) >= 1
        self._the_core().link_up(peer_id, knows_pre_vote=knows_pre_vote)
        self._kick()

    def link_down(self, peer_id: int) -> None:
        self._linked.discard(peer_id)
        self._the_core().link_down(peer_id)
        self._kick()

    def peer_died(self, peer_id: int) -> None:
        self._the_core().peer_died(peer_id)
        self._kick()

    # -- RaftHandle --------------------------------------------------------------------------------------------

    async def propose(self, payload: bytes, *, request_id: bytes, timeout_ms: int, born_index: int = 0) -> Outcome:
        """See RaftHandle."""
        if self._stopping or self._core is None:
            return NeverSent("the replica is stopping")
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def done(outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        deadline = self._clock.monotonic() + timeout_ms / 1000
        self._core.propose(payload, request_id=request_id, deadline=deadline, done=done, born_index=born_index)
        self._kick()
        return await future

    async def read_barrier(self, *, timeout_ms: int) -> int:
        """See RaftHandle."""
        if self._stopping or self._core is None:
            raise StatusError(Code.UNAVAILABLE, "etcdserver: server stopped")
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def done(result: int | StatusError) -> None:
            if future.done():
                return
            if isinstance(result, StatusError):
                future.set_exception(result)
            else:
                future.set_result(result)

        started = self._clock.monotonic()
        self._core.read(deadline=started + timeout_ms / 1000, done=done)
        self._kick()
        index = await future
        if self._clock.monotonic() - started > _SLOW_READ_S:
            metrics.SLOW_READ_INDEXES.inc()
        return index

    async def change_members(self, change: MemberChange, *, timeout_ms: int) -> tuple[Member, ...]:
        """See RaftHandle."""
        if self._stopping or self._core is None:
            raise StatusError(Code.UNAVAILABLE, "etcdserver: server stopped")
        return await self._changes.change(change, timeout_ms=timeout_ms)

    async def transfer_leadership(self, target_id: int | None, *, timeout_ms: int) -> None:
        """See RaftHandle."""
        if self._stopping or self._core is None:
            raise StatusError(Code.UNAVAILABLE, "etcdserver: server stopped")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: StatusError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self._core.transfer(target_id, deadline=self._clock.monotonic() + timeout_ms / 1000, done=done)
        self._kick()
        await future

    def status(self) -> RaftStatus:
        """See RaftHandle."""
        core, storage = self._the_core(), self._storage
        assert storage is not None
        engine = core.engine
        leader = engine.leader
        if leader not in self._linked and leader != self._me.id:
            leader = None  # the term had one; whether it still lives nobody here can say
        return RaftStatus(
            name=self._me.name,
            member_id=self._me.id,
            cluster_id=self._cluster_id,
            role=engine.role.value,
            leader=None if leader is None else self._name_of(leader),
            term=engine.term,
            commit_index=engine.commit_index,
            applied_index=engine.applied_index,
            last_index=engine.last_index,
            snapshot_index=0 if self._snapshotting is None else self._snapshotting.newest_index,
            members=engine.memberships.at(engine.applied_index).members,
            ready=core.ready,
            pending=core.pending,
            torn_bytes=0 if storage.report is None else storage.report.cut_bytes,
        )

    @property
    def term(self) -> int:
        """See RaftHandle."""
        return self._the_core().engine.term

    def members_below(self, revision: int) -> list[str]:
        """See RaftHandle."""
        links, roster = self._links, self._roster
        if links is None or roster is None:
            return []
        return sorted(roster.name_of(peer_id) for peer_id in links.below(revision))

    @property
    def is_learner(self) -> bool:
        """See RaftHandle."""
        return self._roster is not None and self._roster.is_learner

    @property
    def leads(self) -> bool:
        """See LogReader."""
        return self._core is not None and self._core.engine.term_committed

    @property
    def durable_index(self) -> int:
        """See LogReader."""
        return self._durable_index

    def tail(self, after: int, *, entries_max: int, bytes_max: int) -> LogTail | None:
        """See LogReader."""
        engine = self._the_core().engine
        previous_term = engine.term_at(after)
        if previous_term is None:
            return None
        taken: list[tuple[int, int, bytes | None]] = []
        for command, index, term in engine.entries(after + 1, min(self._durable_index, after + entries_max) + 1):
            if taken and bytes_max < len(command):
                break
            bytes_max -= len(command)
            taken.append((index, term, command[1:] if command[:1] == b"\x00" else None))
        return LogTail(previous_term, tuple(taken))

    def on_leadership(self, listener: LeadershipListener) -> None:
        """See RaftHandle."""
        self._listeners.append(listener)

    def serve(self, channel: str, handler: PeerHandler) -> None:
        """See RaftHandle. May be called before start."""
        self._handlers[channel] = handler
        if self._links is not None:
            self._links.serve(channel, handler)

    async def call(self, peer: str, channel: str, payload: bytes, *, timeout_ms: int) -> bytes:
        """See RaftHandle."""
        if peer == self._me.name:
            handler = self._handlers.get(channel)
            if handler is None:
                raise StatusError(Code.UNIMPLEMENTED, f"{peer} serves no channel {channel!r}")
            return await handler(peer, payload)
        # The leader too, by what status() calls it: the entry that made it a member may still be on its way to us.
        leader = self._the_core().engine.leader
        ids = [m.id for m in self._the_core().members] + ([] if leader is None else [leader])
        peer_id = next((member_id for member_id in ids if self._name_of(member_id) == peer), None)
        if peer_id is None:
            raise StatusError(Code.NOT_FOUND, f"no member {peer!r}")
        return await self.call_id(peer_id, channel, payload, timeout_ms=timeout_ms)

    async def call_id(self, member_id: int, channel: str, payload: bytes, *, timeout_ms: int) -> bytes:
        """Ask another member, which may not have a name yet. Raises StatusError, as :meth:`call`."""
        if self._links is None:
            raise StatusError(Code.UNAVAILABLE, "the replica is not running")
        return await self._links.call(member_id, channel, payload, timeout_ms=timeout_ms)

    def snapshot_file(self) -> AsyncIterator[bytes]:
        """See RaftHandle."""
        if self._snapshotting is None:
            raise StoppedError("the replica is not running")
        return self._snapshotting.file()

    async def cut_snapshot(self) -> SnapshotCut:
        """See RaftHandle."""
        if self._snapshotting is None or self._stopping:
            raise StoppedError("the replica is not running")
        if self._the_core().engine.applied_index == 0:
            raise StatusError(Code.UNAVAILABLE, "nothing has been applied yet: there is nothing to cut a snapshot of")
        asked = self._snapshotting.ask()
        self._kick()
        return await asked

    def _the_core(self) -> Core:
        if self._core is None:
            raise StoppedError("the replica is not running")
        return self._core
