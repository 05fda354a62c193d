"""The write-ahead log: Raft's entries, term and vote as a stream of records in segment files.

Owns ``wal/`` of the data directory. Knows the order of records, not why they are written: what may be truncated is
the journal's decision. Holds no entries; recovery hands them out once.

Invariants:

- Records are durable in the order they were given: what survives a crash is a prefix of them.
- Every segment begins with its identity and the hard state of that moment, so dropping the oldest segments loses
  neither term nor vote.
- A segment appears under its name only complete and synced, and only after all earlier ones are synced. So only
  the last segment can have a torn tail; damage anywhere else is rot and is never served.
- After a failed write or sync the log refuses everything until it is opened again: the kernel may have dropped
  the dirty pages, so nothing may be acknowledged from what the page cache still shows.

One flush at a time: :meth:`Wal.take_dirty` on the loop, :meth:`Wal.write_and_sync` in the driver's helper thread,
and the next ``take_dirty`` only after that returned. Appending to the buffer meanwhile is fine.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.base import failpoints
from controlplane.base.clock import Clock, SystemClock
from controlplane.base.errors import ConfigError, CorruptStateError, StorageError
from controlplane.base.limits import MIB
from controlplane.raft import wal_format as fmt
from controlplane.raft.disk import Disk, DiskFile
from controlplane.raft.metrics import WAL_FSYNC_SECONDS, WAL_TORN_TAILS
from controlplane.raft.wal_format import Entry, HardState
from controlplane.raft.wal_recovery import (
    WAL_DIR,
    Identity,
    Recovered,
    RecoveryReport,
    Segment,
    list_segments,
    read_log,
)

__all__ = ["WAL_DIR", "Entry", "Flush", "HardState", "Identity", "Recovered", "RecoveryReport", "Wal"]

_log = logging.getLogger("quarterdeck.wal")

_TEMP_SUFFIX = ".tmp"
#: A segment past this size is closed at the next flush.
SEGMENT_BYTES = 16 * MIB


@dataclass(frozen=True, slots=True)
class Flush:
    """What one sync makes durable. Opaque to the driver, which carries it from the loop to its helper thread."""

    data: bytes
    new_segment: Segment | None
    next_index: int
    hard_state: HardState


class Wal:
    """One replica's log, open for appending: :meth:`create` for a new member, :meth:`open` for one that ran before."""

    def __init__(
        self,
        disk: Disk,
        identity: Identity,
        segments: list[Segment],
        file: DiskFile,
        *,
        next_frame: int,
        next_index: int,
        hard_state: HardState,
        clock: Clock | None,
        segment_bytes: int,
    ) -> None:
        """Use create or open."""
        self._disk = disk
        self._identity = identity
        self._segments = segments
        self._file = file
        self._next_frame = next_frame
        self._next_index = next_index
        self._hard_state = hard_state
        self._clock = clock or SystemClock()
        self._segment_bytes = segment_bytes
        self._pending: list[bytes] = []
        self._flushed_next_index = next_index
        self._flushed_hard_state = hard_state
        self._in_flight = False
        self._failure: str | None = None

    # -- opening ------------------------------------------------------------------------------------------------

    @staticmethod
    def exists(disk: Disk) -> bool:
        """Whether this directory holds a log: its member has run before."""
        return bool(list_segments(disk))

    @classmethod
    def create(
        cls,
        disk: Disk,
        identity: Identity,
        *,
        first_index: int = 1,
        entries: Sequence[Entry] = (),
        hard_state: HardState = HardState(),  # noqa: B008 - frozen
        clock: Clock | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> Wal:
        """A new log, durable when this returns; after a crash inside, there is all of it or none.

        Raises:
            ConfigError: there is a log already.
            StorageError: the disk refused.
        """
        if cls.exists(disk):
            raise ConfigError(f"{disk.locate(WAL_DIR)} already holds a log; refusing to start a new one over it")
        disk.make_dir(WAL_DIR)
        _remove_leftovers(disk)
        segment = Segment(1, first_index)
        records = [_header(identity, segment), fmt.encode_hard_state(hard_state)]
        records += [fmt.encode_entry(*entry) for entry in entries]
        file = _publish(disk, segment, fmt.encode_frame(segment.sequence, 1, records), "wal.open")
        return cls(
            disk,
            identity,
            [segment],
            file,
            next_frame=2,
            next_index=first_index + len(entries),
            hard_state=hard_state,
            clock=clock,
            segment_bytes=segment_bytes,
        )

    @classmethod
    def open(
        cls, disk: Disk, identity: Identity, *, clock: Clock | None = None, segment_bytes: int = SEGMENT_BYTES
    ) -> tuple[Wal, Recovered]:
        """Read the whole log, cut a torn tail, and open it for appending. A second run finds nothing more to do.

        Raises:
            CorruptStateError: damage that no crash explains; names segment and offset. Nothing was changed.
            ConfigError: no log, another member's log, or one of a newer format.
            StorageError: the disk refused.
        """
        image = read_log(disk, identity)
        recovered, report = image.recovered, image.recovered.report
        _remove_leftovers(disk)
        if not report.clean:
            _log.warning(
                "torn tail cut segment=%s offset=%d bytes=%d reason=%r",
                report.cut_segment,
                report.cut_offset,
                report.cut_bytes,
                report.cut_reason,
            )
            WAL_TORN_TAILS.inc()
        # From here on everything read counts as durable, but it may come from a page cache that was never written
        # out: the process died, not the machine; or a sync failed, after which the kernel calls dropped pages clean.
        # So the only segment that can be in doubt is written once more, without its torn tail, and its name synced.
        file = _publish(disk, image.segments[-1], image.tail, "wal.open")
        wal = cls(
            disk,
            identity,
            image.segments,
            file,
            next_frame=image.next_frame,
            next_index=recovered.first_index + len(recovered.entries),
            hard_state=recovered.hard_state,
            clock=clock,
            segment_bytes=segment_bytes,
        )
        return wal, recovered

    # -- appending: on the loop, in memory ------------------------------------------------------------------------

    @property
    def hard_state(self) -> HardState:
        """The last one recorded, durable or not."""
        return self._hard_state

    @property
    def dirty(self) -> bool:
        """Whether something waits for a flush."""
        return bool(self._pending)

    @property
    def failure(self) -> str | None:
        """Why this log refuses to go on, if it does."""
        return self._failure

    def append_entry(self, command: bytes, index: int, term: int) -> None:
        """Record one entry; its index must follow the last one's."""
        self._check_alive()
        if index != self._next_index:
            raise CorruptStateError(f"log entry {index} given where entry {self._next_index} belongs")
        self._pending.append(fmt.encode_entry(command, index, term))
        self._next_index = index + 1

    def truncate_from(self, index: int) -> None:
        """Record that entries from ``index`` on are gone: only ever for a conflict with the leader's log."""
        self._check_alive()
        if index > self._next_index:
            raise CorruptStateError(f"truncation at {index}, behind the end {self._next_index} of the log")
        self._pending.append(fmt.encode_truncate(index))
        self._next_index = index

    def restart_after(self, index: int, term: int) -> None:
        """Record that an installed snapshot, durable already, replaced the log up to ``index`` and all behind it."""
        self._check_alive()
        self._pending.append(fmt.encode_snapshot(index, term))
        self._next_index = index + 1

    def record_hard_state(self, state: HardState) -> None:
        self._check_alive()
        if state.term < self._hard_state.term:
            raise CorruptStateError(f"term would go back from {self._hard_state.term} to {state.term}")
        self._pending.append(fmt.encode_hard_state(state))
        self._hard_state = state

    # -- flushing -------------------------------------------------------------------------------------------------

    def take_dirty(self) -> Flush | None:
        """Everything recorded since the last call, as one frame; None if there is nothing. Cheap, no I/O."""
        self._check_alive()
        if self._in_flight:
            raise StorageError("a flush of the log is still under way")
        if not self._pending:
            return None
        records = self._pending
        self._pending = []
        segment, new_segment = self._segments[-1], None
        if self._file.size >= self._segment_bytes:
            # It begins with the state as of the last flush: the records that follow may hold several newer ones.
            segment = new_segment = Segment(segment.sequence + 1, self._flushed_next_index)
            records = [_header(self._identity, segment), fmt.encode_hard_state(self._flushed_hard_state), *records]
        data = fmt.encode_frame(segment.sequence, self._next_frame, records)
        self._in_flight = True
        return Flush(data, new_segment, self._next_index, self._hard_state)

    def write_and_sync(self, flush: Flush) -> None:
        """Write and sync. Blocks; touches nothing that the appending methods use.

        Raises:
            StorageError: nothing of this flush counts as durable, and this log takes no more.
        """
        self._check_alive()
        started = self._clock.monotonic()
        known = self._flushed_hard_state
        voted = (flush.hard_state.term, flush.hard_state.voted_for) != (known.term, known.voted_for)
        try:
            if voted:
                failpoints.hit("term.vote.before")
            if flush.new_segment is None:
                failpoints.hit("wal.write.before")
                self._file.append(flush.data)
                failpoints.hit("wal.sync.before")
                self._file.sync()
                failpoints.hit("wal.sync.after")
            else:
                file = _publish(self._disk, flush.new_segment, flush.data, "wal.roll")
                self._file.close()
                self._file = file
                self._segments.append(flush.new_segment)
            if voted:
                failpoints.hit("term.vote.after")
        except StorageError as error:
            self._failure = str(error)
            raise
        self._flushed_next_index = flush.next_index
        self._flushed_hard_state = flush.hard_state
        self._next_frame += 1
        self._in_flight = False
        WAL_FSYNC_SECONDS.observe(self._clock.monotonic() - started)

    def flush(self) -> None:
        """Both steps at once, where blocking is fine: start, seeding, tests."""
        if (flush := self.take_dirty()) is not None:
            self.write_and_sync(flush)

    def compact_to(self, keep_from: int) -> int:
        """Drop whole segments that only hold entries below ``keep_from``; returns how many. Blocks.

        Give the index of the *oldest* snapshot kept, so that each of them still has its log. Crash-atomic: segments
        go one by one, oldest first, and the rest is a complete log at every step. Not while a flush is under way.
        """
        self._check_alive()
        dropped = 0
        while len(self._segments) > 1 and self._segments[1].first_index <= keep_from:
            failpoints.hit("wal.compact.before")
            self._disk.remove(self._segments[0].name)
            failpoints.hit("wal.compact.remove.after")
            self._disk.fsync_dir(WAL_DIR)
            failpoints.hit("wal.compact.dirsync.after")
            del self._segments[0]
            dropped += 1
        return dropped

    def close(self) -> None:
        """Close the file. What was not flushed is lost, as in a crash."""
        self._file.close()
        self._failure = self._failure or "the log is closed"

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise StorageError(f"the log takes no more until this replica is restarted: {self._failure}")


def _header(identity: Identity, segment: Segment) -> bytes:
    header = fmt.SegmentHeader(
        fmt.FORMAT_VERSION, identity.cluster_id, identity.member_id, segment.sequence, segment.first_index
    )
    return fmt.encode_segment_header(header)


def _publish(disk: Disk, segment: Segment, data: bytes, step: str) -> DiskFile:
    """Create a segment, or replace it by the same content: temporary name, sync, rename, sync of the directory.

    Args:
        step: how the failpoints in here are called.
    """
    temporary = segment.name + _TEMP_SUFFIX
    if disk.exists(temporary):
        disk.remove(temporary)
    file = disk.open_append(temporary)
    try:
        file.append(data)
        failpoints.hit(f"{step}.write.after")
        file.sync()
        failpoints.hit(f"{step}.sync.after")
        disk.rename(temporary, segment.name)
        failpoints.hit(f"{step}.rename.after")
        disk.fsync_dir(WAL_DIR)
        failpoints.hit(f"{step}.dirsync.after")
    except StorageError:
        file.close()
        raise
    return file


def _remove_leftovers(disk: Disk) -> None:
    for name in disk.list(WAL_DIR):
        if name.endswith(_TEMP_SUFFIX):
            disk.remove(f"{WAL_DIR}/{name}")
