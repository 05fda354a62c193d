"""The log of a running cluster, archived continuously: what was acknowledged before the last interval survives the loss
of every replica.

Owns the archiving of one replica, which works while that one leads: every three quarters of the interval it takes what
was committed, applied and synced since, and publishes it as a segment. There is no queue: what waits is in Raft's own
log, whose memory is bounded by snapshots.

- A new leader goes on from what lies in the archive, by the names there. Where two archive the same entries, they are
  the same (Raft), and a reader takes either.
- If the archive cannot be reached, it is tried again, ever slower, up to half a minute. When the log no longer reaches
  back to what was archived last, or what was archived last is not in this log (a cluster recovered without its
  majority), a snapshot is saved and the archive goes on behind it; that there is a gap is logged and counted.
- Small segments are put together after some minutes, from memory, so that the archive does not become one of millions
  of files. A crash in between leaves them twice.
- Nothing here can stop the replica or make it wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from controlplane.backup import metrics
from controlplane.backup.chain import Log
from controlplane.backup.names import SegmentName
from controlplane.backup.notes import Note
from controlplane.backup.repository import Repository
from controlplane.backup.saving import Saver
from controlplane.backup.segment import Part
from controlplane.backup.worker import Worker
from controlplane.base.clock import Clock
from controlplane.base.errors import QuarterdeckError
from controlplane.base.limits import MIB
from controlplane.pb.quarterdeck.internal.v1.archive_pb2 import ArchivedEntry, SegmentHeader
from controlplane.raft.types import LogReader, LogTail

__all__ = ["Archiver"]

log = logging.getLogger("quarterdeck.archive")

#: One segment at most; one entry may be bigger (BATCH_BYTES_MAX and a request).
_SEGMENT_BYTES: Final = 4 * MIB
_SEGMENT_ENTRIES: Final = 2_000
#: Segments are put together when so many bytes have gathered, or the first is so old.
_PACK_BYTES: Final = 8 * MIB
_PACK_S: Final = 300.0
#: Of the interval; the rest is for publishing.
_PERIOD: Final = 0.75
_RETRY_MIN_S: Final = 0.5
_RETRY_MAX_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Position:
    """Archived up to here: an entry of the log. The next segment begins behind it."""

    index: int
    term: int


class Archiver:
    """See the module. Run :meth:`run` for as long as the replica runs.

    Args:
        note: what is known of an entry that was applied.
        interval_s: what was acknowledged longer ago than this is in the archive, while it can be reached.
    """

    def __init__(
        self,
        reader: LogReader,
        note: Callable[[int], Note | None],
        repository: Repository,
        saver: Saver,
        worker: Worker,
        *,
        name: str,
        interval_s: float,
        clock: Clock,
    ) -> None:
        self._reader = reader
        self._note = note
        self._repository = repository
        self._saver = saver
        self._worker = worker
        self._name = name
        self._period_s = _PERIOD * interval_s
        self._clock = clock
        self._position: _Position | None = None
        self._retry_s = _RETRY_MIN_S
        self._leads_since_ms: int | None = None
        #: Segments published since the last pack.
        self._loose: list[tuple[SegmentName, Part]] = []
        self._loose_since_s = 0.0
        metrics.ARCHIVE_LAG_S.set_function(self.lag_s)

    def lag_s(self) -> float:
        """As leader: for how long the oldest entry that is not archived has been applied, seconds; 0: all is."""
        since_ms, position = self._leads_since_ms, self._position
        if since_ms is None or (position is not None and position.index >= self._reader.durable_index):
            return 0.0
        note = self._note(position.index + 1) if position is not None else None
        return max(0.0, (self._clock.wall_ms() - (note.applied_at_ms if note is not None else since_ms)) / 1000)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            await self._run()
        finally:
            self._leads_since_ms = None  # the metric of a replica that does not run says nothing

    async def _run(self) -> None:
        while True:
            began_s = self._clock.monotonic()
            if not self._reader.leads:
                # Whoever leads now goes on; what lies there is looked at anew.
                self._position = self._leads_since_ms = None
                self._loose.clear()
            elif self._leads_since_ms is None:
                self._leads_since_ms = self._clock.wall_ms()
            try:
                more = self._reader.leads and await self._step()
                await self._pack_when_due()
            except Exception as error:  # a defect too: whatever becomes of the archive, the replica goes on
                metrics.ARCHIVE_FAILURES.inc()
                log.error(
                    "event=archive-failed url=%s retry_s=%.1f lag_s=%.1f error=%r",
                    self._repository.url, self._retry_s, self.lag_s(), str(error),
                    exc_info=None if isinstance(error, QuarterdeckError) else error,
                )  # fmt: skip
                await self._clock.sleep(self._retry_s)
                self._retry_s = min(2 * self._retry_s, _RETRY_MAX_S)
                continue
            self._retry_s = _RETRY_MIN_S
            if not more:
                await self._clock.sleep(max(0.0, self._period_s - (self._clock.monotonic() - began_s)))

    async def _step(self) -> bool:
        """Archive one segment; whether it could not hold all that was there."""
        position = self._position
        if position is None:
            position = self._position = await self._find_position()
        tail = self._tail(position)
        if tail is None:
            self._note_gap(position.index)
            position = self._position = await self._begin_anew()
            self._loose.clear()
            tail = self._tail(position)
        if tail is None or not tail.entries:
            return False
        last_index, last_term, _ = tail.entries[-1]
        # What comes while this is published waits for the next period: a segment each would be no end of small files.
        more = last_index < self._reader.durable_index
        published = await self._publish(position, tail)
        if not self._loose:
            self._loose_since_s = self._clock.monotonic()
        self._loose.append(published)
        self._position = _Position(last_index, last_term)
        metrics.ARCHIVED_INDEX.set(last_index)
        return more

    def _tail(self, position: _Position) -> LogTail | None:
        """What is to be archived next; None: the log does not go on from there."""
        tail = self._reader.tail(position.index, entries_max=_SEGMENT_ENTRIES, bytes_max=_SEGMENT_BYTES)
        return tail if tail is not None and tail.previous_term == position.term else None

    async def _find_position(self) -> _Position:
        """Where to go on: behind the newest segment. If the log does not go on there, behind the oldest snapshot after
        it from which it does: the gap is as small as can be. If there is none, what is returned leads nowhere."""
        segments, snapshots = await self._worker.run(
            lambda: (self._repository.segments(), self._repository.snapshots())
        )
        if not snapshots:
            return await self._begin_anew()
        tip = Log(segments).tip()
        behind = (tip.last_term, tip.last) if tip is not None else (0, 0)
        positions = [_Position(tip.last, tip.last_term)] if tip is not None else []
        positions += [_Position(s.index, s.term) for s in sorted(snapshots) if (s.term, s.index) > behind]
        found = next((position for position in positions if self._tail(position) is not None), positions[0])
        log.info("event=archive-goes-on url=%s behind_index=%d", self._repository.url, found.index)
        if tip is not None and found is not positions[0]:
            self._note_gap(tip.last)
        return found

    def _note_gap(self, index: int) -> None:
        log.error("event=archive-gap url=%s behind_index=%d", self._repository.url, index)
        metrics.ARCHIVE_GAPS.inc()

    async def _begin_anew(self) -> _Position:
        name, manifest = await self._saver.save()
        log.info(
            "event=archive-begins url=%s behind_index=%d revision=%d bytes=%d",
            self._repository.url, name.index, name.revision, manifest.file_bytes,
        )  # fmt: skip
        return _Position(name.index, name.term)

    async def _publish(self, position: _Position, tail: LogTail) -> tuple[SegmentName, Part]:
        notes = [self._note(index) for index, _, _ in tail.entries]
        closed_at_ms = self._clock.wall_ms()

        def publish() -> tuple[SegmentName, Part]:
            entries = [_entry(*entry, note) for entry, note in zip(tail.entries, notes, strict=True)]
            header = SegmentHeader(
                cluster_id=self._repository.cluster_id,
                previous_term=position.term,
                revision=next((note.revision for note in reversed(notes) if note is not None), 0),
                closed_at_ms=closed_at_ms,
                archived_by=self._name,
            )
            return self._repository.save_segment(header, entries)

        published = await self._worker.run(publish)
        metrics.ARCHIVED_ENTRIES.inc(len(tail.entries))
        metrics.ARCHIVED_BYTES.inc(sum(len(batch or b"") for _, _, batch in tail.entries))
        return published

    async def _pack_when_due(self) -> None:
        loose = self._loose
        full = sum(len(part.data) for _, part in loose) >= _PACK_BYTES
        if loose and (full or self._clock.monotonic() - self._loose_since_s >= _PACK_S):
            # Whatever comes of it, they are not held on to: an archive that fails must not cost memory.
            self._loose = []
            if len(loose) > 1:
                await self._worker.run(lambda: self._repository.save_pack(loose))


def _entry(index: int, term: int, batch: bytes | None, note: Note | None) -> ArchivedEntry:
    entry = ArchivedEntry(index=index, term=term, batch=batch)
    if note is not None:
        entry.applied_at_ms, entry.revision, entry.state_hash = note.applied_at_ms, note.revision, note.state_hash
    return entry
