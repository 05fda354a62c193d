"""Snapshots in motion: cutting our own, sending one to a follower the log no longer reaches, taking one over.

Owns when each happens and in which order its steps are safe. File operations go through ``io``, which the driver runs
in a helper thread and the simulator at once; everything else happens on the loop, between turns.

- Cutting: the state machine pins its state at an entry; chunks are written while writes go on. Only when the file is
  verified by name and durable is the log compacted, and a tail of it is kept for followers that were briefly away.
- Sending: the follower drives. Each answer names the offset it wants; silence makes the leader offer again. So a
  broken link costs one piece, not the transfer, and so does a restart of either side: what has arrived is kept, and
  goes on if the file offered is the same. One piece at a time is on its way to a follower, read when it is asked
  for: a slow one costs the others nothing. All of them together get so many bytes a second, in the order in which
  they ask: writes and heartbeats go on beside them.
- Taking over: pieces go to a file; whole, verified, durable; its state built in slices beside the present one; then
  state and log change over in one step, and only then is it acknowledged,
  with the turn that makes the log's restart durable. A damaged one is dropped and asked for from the start.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from controlplane.base import failpoints
from controlplane.base.clock import Clock
from controlplane.base.errors import CorruptStateError, StoppedError, StorageError
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import RaftMessage, SnapshotAck, SnapshotChunk
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader
from controlplane.raft import metrics
from controlplane.raft.core import Core
from controlplane.raft.journal import RaftJournal
from controlplane.raft.membership import Membership, membership_of, to_wire
from controlplane.raft.snapshot_format import SnapshotEncoder
from controlplane.raft.snapshots import SnapshotReceiver, SnapshotRef, SnapshotSource, SnapshotStore
from controlplane.raft.types import SnapshotCut, StateMachine

__all__ = ["Io", "Snapshotting"]

_log = logging.getLogger("quarterdeck.snapshotting")

#: A peer that does not answer a piece is offered it again after so long.
_OFFER_PERIOD_S = 0.5
#: A peer silent for so long no longer keeps its snapshot, and the log behind it, from being dropped.
_SENDING_SILENCE_S = 30.0
#: Of the bytes a second that snapshots may take, so much may leave at once.
_BURST_S = 0.05
#: After the disk refused a snapshot.
_RETRY_S = 30.0


T = TypeVar("T")


class Io(Protocol):
    """Runs one blocking file operation where blocking is fine, and returns its result."""

    def __call__(self, operation: Callable[[], T], /) -> Awaitable[T]: ...


@dataclass(slots=True)
class _Sending:
    ref: SnapshotRef
    total_bytes: int
    file_id: bytes
    term: int
    heard_at: float
    offered_at: float = 0.0
    #: The piece that was sent last: where it begins, and when. A reminder is no piece.
    sent_offset: int = -1
    sent_at: float = 0.0
    #: A piece of it waits for its share of the bytes a second.
    waits: bool = False


class _Budget:
    """So many bytes a second, and a moment's worth of them at once."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._spent_until = float("-inf")

    def spend(self, size_bytes: int, now: float) -> float:
        """Take that much; the seconds to wait before it may leave."""
        self._spent_until = max(self._spent_until, now - _BURST_S) + size_bytes / self._bytes_per_s
        return max(0.0, self._spent_until - now)


class Snapshotting:
    """The snapshots of one running replica."""

    def __init__(
        self,
        *,
        cluster_id: int,
        core: Core,
        journal: RaftJournal,
        store: SnapshotStore,
        state_machine: StateMachine,
        newest: SnapshotRef | None,
        clock: Clock,
        io: Io,
    ) -> None:
        self._cluster_id = cluster_id
        self._core = core
        self._journal = journal
        self._store = store
        self._state_machine = state_machine
        self._newest = newest
        self._clock = clock
        self._io = io
        self._sending: dict[int, _Sending] = {}
        self._budget = _Budget(core.config.catch_up_bytes_per_s)
        self._receiving: SnapshotReceiver | None = None
        self._cutting = False
        #: Who wants a snapshot cut now, whatever the log's length.
        self._asked: list[asyncio.Future[SnapshotCut]] = []
        self._retry_at = 0.0
        #: The log on disk may be compacted to this index, between two flushes; None when there is nothing to do.
        self.compact_to: int | None = None

    @property
    def newest_index(self) -> int:
        """Index of the newest snapshot; 0 when there is none."""
        return self._newest.index if self._newest is not None else 0

    @property
    def due(self) -> bool:
        """A snapshot should be cut: enough log has been applied since the last one."""
        config = self._core.config
        if self._asked and not self._cutting:
            return True
        if self._cutting or self._clock.monotonic() < self._retry_at:
            return False
        return (
            self._core.engine.applied_index - self.newest_index >= config.snapshot_entries
            or self._core.bytes_since_snapshot >= config.snapshot_log_bytes
        )

    # -- cutting -----------------------------------------------------------------------------------------------

    def ask(self) -> asyncio.Future[SnapshotCut]:
        """Have one cut as soon as none is being cut, whether it is due or not, and all of the log dropped that it
        holds. Resolves when both are done; fails with StorageError if the disk refuses, StoppedError by
        :meth:`abandon`."""
        asked: asyncio.Future[SnapshotCut] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        return asked

    def abandon(self) -> None:
        """The replica stops: nobody's wish is fulfilled any more."""
        asked, self._asked = self._asked, []
        _refuse(asked, StoppedError("the replica stopped"))

    def cut(self) -> Coroutine[None, None, None]:
        """Save a snapshot of the state as applied now, then compact the log behind it. Await the result.

        A disk that refuses the snapshot leaves everything as it was; it is tried again later.
        """
        self._cutting = True
        asked, self._asked = self._asked, []
        return self._cut(asked)

    async def _cut(self, asked: Sequence[asyncio.Future[SnapshotCut]]) -> None:
        try:
            ref, revision = await self._save()
        except StorageError as error:
            _log.error("snapshot not saved, trying again later error=%r", str(error))
            self._retry_at = self._clock.monotonic() + _RETRY_S
            _refuse(asked, error)
            return
        except BaseException:
            _refuse(asked, StoppedError("the replica stopped"))
            raise
        finally:
            self._cutting = False
        if self._newest is None or ref > self._newest:
            self._newest = ref
        _log.info("snapshot saved index=%d term=%d asked=%s", ref.index, ref.term, bool(asked))
        self._compact_memory(keep_tail=not asked)
        await self._prune()
        for wish in asked:
            if not wish.done():
                first = self._journal.first_index
                wish.set_result(SnapshotCut(ref.index, ref.term, revision, self._store.size(ref), first))

    async def _save(self) -> tuple[SnapshotRef, int]:
        """The snapshot and its revision."""
        if self._newest is not None and self._newest.index == self._core.engine.applied_index:
            # It holds all there is, and may be on its way to somebody.
            return self._newest, self._state_machine.revision
        header, chunks = self._begin_cut()
        self._core.bytes_since_snapshot = 0
        writer = await self._io(lambda: self._store.begin(header))
        for chunk in chunks:
            await self._io(partial(writer.add, chunk))
        ref = await self._io(writer.commit)
        return ref, header.revision

    async def file(self) -> AsyncIterator[bytes]:
        """The bytes of a snapshot file of the state as applied now, without saving it here."""
        header, chunks = self._begin_cut()
        encoder = SnapshotEncoder(header)
        yield encoder.begin()
        for chunk in chunks:
            yield await self._io(partial(encoder.chunk, chunk))
        yield encoder.finish()

    def _begin_cut(self) -> tuple[SnapshotHeader, Iterator[bytes]]:
        engine = self._core.engine
        index = engine.applied_index
        term = engine.term_at(index)
        assert term is not None
        membership = engine.memberships.at(index)
        header = SnapshotHeader(
            cluster_id=self._cluster_id,
            index=index,
            term=term,
            revision=self._state_machine.revision,
            created_at_ms=self._clock.wall_ms(),
            members=to_wire(membership.members),
            membership=membership.encode(),
        )
        chunks = iter(self._state_machine.snapshot())
        # The first chunk now: a lazy iterator must pin its state before the loop runs anything else.
        first = next(chunks, b"")
        return header, itertools.chain([first], chunks)

    def _compact_memory(self, *, keep_tail: bool) -> None:
        """Drop entries the newest snapshot holds, but for a tail bounded in entries and bytes, if one is to be kept."""
        config, journal = self._core.config, self._journal
        first = journal.first_index
        # What a follower will need right after the snapshot it is being sent stays too, or it would need another one.
        keep_from = min([self.newest_index, *(sending.ref.index for sending in self._sending.values())])
        room_bytes = config.snapshot_log_bytes // 2
        floor = max(first, keep_from - (config.catch_up_entries if keep_tail else 0))
        if keep_from > floor and keep_from - first >= len(journal):
            raise CorruptStateError(f"the log ends before entry {keep_from}, which is applied: it was cut by mistake")
        while keep_from > floor:
            room_bytes -= len(journal[keep_from - first][0])
            if room_bytes < 0:
                break
            keep_from -= 1
        if keep_from > first:
            journal.deleteEntriesTo(keep_from - first)

    async def _prune(self) -> None:
        in_use = [sending.ref for sending in self._sending.values()]
        oldest = await self._io(lambda: self._store.prune(in_use))
        if oldest > 0:
            self.compact_to = min(oldest, self._journal.first_index)

    # -- sending -----------------------------------------------------------------------------------------------

    def offer(self) -> None:
        """As leader: begin with followers that need a snapshot, and remind those that are silent. Call every turn."""
        engine, now = self._core.engine, self._clock.monotonic()
        for peer_id, sending in list(self._sending.items()):
            over = not engine.is_leader or sending.term != engine.term or peer_id not in engine.behind
            if over or now - sending.heard_at > _SENDING_SILENCE_S:
                del self._sending[peer_id]
        for peer_id in sorted(engine.behind):
            current = self._sending.get(peer_id)
            if current is None:
                if self._newest is None:
                    raise CorruptStateError(
                        f"the log begins at {engine.first_index} and no snapshot holds what was before"
                    )
                ref = self._newest
                current = _Sending(ref, self._store.size(ref), self._store.file_id(ref), engine.term, now)
                self._sending[peer_id] = current
                _log.info("sending snapshot peer=%x index=%d bytes=%d", peer_id, current.ref.index, current.total_bytes)
            if now - current.offered_at >= _OFFER_PERIOD_S:
                self._send_chunk(peer_id, current, 0, b"")

    def _send_chunk(self, peer_id: int, sending: _Sending, offset: int, data: bytes) -> None:
        sending.offered_at = self._clock.monotonic()
        chunk = SnapshotChunk(
            index=sending.ref.index,
            snapshot_term=sending.ref.term,
            total_bytes=sending.total_bytes,
            offset=offset,
            data=data,
            file_sha256=sending.file_id,
        )
        self._core.send(peer_id, RaftMessage(term=self._core.engine.term, snapshot_chunk=chunk))

    async def handle(self, peer_id: int, message: RaftMessage) -> Coroutine[None, None, None] | None:
        """A peer's snapshot message. One at a time, in order. What is returned takes its time: run it beside, so that
        no other message waits for it; there is one for each peer at most."""
        if message.term != self._core.engine.term:
            return None
        if message.HasField("snapshot_ack"):
            return await self._on_ack(peer_id, message.snapshot_ack)
        await self._on_chunk(peer_id, message.term, message.snapshot_chunk)
        return None

    async def _on_ack(self, peer_id: int, ack: SnapshotAck) -> Coroutine[None, None, None] | None:
        engine = self._core.engine
        sending = self._sending.get(peer_id)
        if (
            sending is None
            or not engine.is_leader
            or (ack.index, ack.snapshot_term) != (sending.ref.index, sending.ref.term)
        ):
            return None
        sending.heard_at = self._clock.monotonic()
        engine.peer_alive(peer_id)
        if ack.installed:
            del self._sending[peer_id]
            engine.peer_installed(peer_id, ack.index)
            _log.info("snapshot taken over peer=%x index=%d", peer_id, ack.index)
        elif sending.waits or (
            ack.offset == sending.sent_offset and sending.heard_at - sending.sent_at < _OFFER_PERIOD_S
        ):
            pass  # asked for twice, by the answer to a piece and the answer to a reminder: it is on its way
        elif ack.offset < sending.total_bytes:
            sending.sent_offset = ack.offset
            sending.sent_at = sending.offered_at = sending.heard_at
            size = min(self._core.config.snapshot_chunk_bytes, sending.total_bytes - ack.offset)
            # Whoever asks meanwhile waits behind this one: the budget is everybody's.
            wait_s = self._budget.spend(size, self._clock.monotonic())
            if wait_s > 0:
                sending.waits = True
                return self._send_later(wait_s, peer_id, sending, ack.offset, size)
            await self._send_piece(peer_id, sending, ack.offset, size)
        return None

    async def _send_later(self, wait_s: float, peer_id: int, sending: _Sending, offset: int, size: int) -> None:
        try:
            await self._clock.sleep(wait_s)
            sending.sent_at = self._clock.monotonic()
            await self._send_piece(peer_id, sending, offset, size)
        finally:
            sending.waits = False

    async def _send_piece(self, peer_id: int, sending: _Sending, offset: int, size: int) -> None:
        """Unless it is over meanwhile."""
        if self._sending.get(peer_id) is not sending:
            return
        data = await self._io(lambda: self._store.read(sending.ref, offset, size))
        if self._sending.get(peer_id) is sending:
            self._send_chunk(peer_id, sending, offset, data)

    # -- taking over -------------------------------------------------------------------------------------------

    async def _on_chunk(self, peer_id: int, term: int, chunk: SnapshotChunk) -> None:
        engine = self._core.engine
        ref = SnapshotRef(chunk.index, chunk.snapshot_term)
        if engine.is_leader or engine.leader not in (None, peer_id):
            return
        if self._holds(ref):
            self._answer(peer_id, term, ref, offset=0, installed=True)
            return
        # A sender of an older version does not say which file it is: then it is one of that sender's.
        source = SnapshotSource(ref, chunk.total_bytes, chunk.file_sha256 or peer_id.to_bytes(8, "big"))
        receiving = self._receiving
        if receiving is None or receiving.source != source:
            if receiving is not None:
                await self._io(receiving.abort)
            receiving = self._receiving = await self._io(lambda: self._store.receive(source))
            if receiving.offset > 0:
                _log.info("snapshot goes on arriving index=%d from_byte=%d", ref.index, receiving.offset)
        if chunk.data:
            await self._io(lambda: receiving.append(chunk.offset, chunk.data))
        if not receiving.complete:
            self._answer(peer_id, term, ref, offset=receiving.offset, installed=False)
            return
        self._receiving = None
        try:
            info = await self._io(receiving.commit)
        except CorruptStateError as error:
            _log.error("snapshot arrived damaged index=%d error=%r", ref.index, str(error))
            self._answer(peer_id, term, ref, offset=0, installed=False)
            return
        await self._install(ref, membership_of(info.header))
        self._answer(peer_id, term, ref, offset=0, installed=True)
        await self._prune()

    def _holds(self, ref: SnapshotRef) -> bool:
        """Whether this replica already has everything the snapshot has: applied, or in its log."""
        engine = self._core.engine
        if engine.commit_index >= ref.index:
            return True
        if engine.term_at(ref.index) == ref.term:
            # The same last entry means the same log up to there (Raft's log matching), and a snapshot is committed.
            engine.commit_to(ref.index)
            return True
        return False

    async def _install(self, ref: SnapshotRef, membership: Membership) -> None:
        restoring = self._state_machine.begin_restore()
        chunks = self._store.chunks(ref)
        while (chunk := await self._io(partial(next, chunks, None))) is not None:
            restoring.feed(chunk)
        failpoints.hit("snapshot.install.before")
        # From here on nothing else runs: state, log and engine change together.
        if self._holds(ref):
            return  # the log overtook the snapshot while its state was built
        restoring.commit()
        failpoints.hit("snapshot.install.state.after")
        if self._state_machine.applied_index != ref.index:
            raise CorruptStateError(
                f"snapshot {ref.index} restored a state of index {self._state_machine.applied_index}"
            )
        self._journal.install(ref.index, ref.term)
        self._core.installed(ref.index, ref.term, membership)
        failpoints.hit("snapshot.install.log.after")
        self._newest = ref
        metrics.SNAPSHOTS_INSTALLED.inc()
        _log.info("snapshot installed index=%d term=%d", ref.index, ref.term)

    def _answer(self, peer_id: int, term: int, ref: SnapshotRef, *, offset: int, installed: bool) -> None:
        ack = SnapshotAck(index=ref.index, snapshot_term=ref.term, offset=offset, installed=installed)
        if self._core.engine.term == term:
            self._core.send(peer_id, RaftMessage(term=term, snapshot_ack=ack))


def _refuse(asked: Sequence[asyncio.Future[SnapshotCut]], error: Exception) -> None:
    for wish in asked:
        if not wish.done():
            wish.set_exception(error)
