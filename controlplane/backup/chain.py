"""Which snapshots and which segments of the log make a state. Pure: names in, decisions out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from controlplane.backup.names import SegmentName, SnapshotName

__all__ = ["Covered", "Goal", "Log", "covered"]


@dataclass(frozen=True, slots=True)
class Goal:
    """The state wanted: the last one of a revision, the last one of a moment (wall clock), or the newest."""

    revision: int | None = None
    time_ms: int | None = None

    @property
    def newest(self) -> bool:
        return self.revision is None and self.time_ms is None

    def bases(self, snapshots: Iterable[SnapshotName]) -> list[SnapshotName]:
        """Snapshots the state can be built on, the best first."""
        return sorted((s for s in snapshots if self._at_or_after(s.revision, s.created_at_ms)), reverse=True)

    def _at_or_after(self, revision: int, time_ms: int) -> bool:
        if self.revision is not None:
            return revision <= self.revision
        return self.time_ms is None or time_ms <= self.time_ms


@dataclass(frozen=True, slots=True)
class Covered:
    """A stretch without a gap: every revision and moment of it can be restored."""

    first_revision: int
    last_revision: int
    first_ms: int
    last_ms: int


class Log:
    """The segments of one cluster. They may overlap: two leaders archived the same entries, or a segment was merged."""

    def __init__(self, segments: Iterable[SegmentName]) -> None:
        self._segments = sorted(segments)
        self._firsts = [segment.first for segment in self._segments]
        #: The greatest last index of this segment and those before it: where a search backwards may end.
        self._reach: list[int] = []
        for segment in self._segments:
            self._reach.append(max(segment.last, self._reach[-1] if self._reach else 0))

    @property
    def segments(self) -> Sequence[SegmentName]:
        return self._segments

    @property
    def last(self) -> int:
        """Index of the last entry archived; 0: none."""
        return self._reach[-1] if self._reach else 0

    def tip(self) -> SegmentName | None:
        """The segment that ends last, by Raft's order (term, then index)."""
        return max(self._segments, key=lambda s: (s.last_term, s.last), default=None)

    def holding(self, index: int) -> list[SegmentName]:
        """Segments that hold the entry: of the latest history first (Raft's term), and there the one that goes
        furthest."""
        found = []
        position = bisect_right(self._firsts, index) - 1
        while position >= 0 and self._reach[position] >= index:
            if self._segments[position].last >= index:
                found.append(self._segments[position])
            position -= 1
        return sorted(found, key=lambda s: (s.last_term, s.last), reverse=True)

    def next_after(self, index: int) -> SegmentName | None:
        """The first segment that begins behind an entry: what is between is missing."""
        position = bisect_right(self._firsts, index)
        return self._segments[position] if position < len(self._segments) else None

    def end_of_run(self, index: int) -> SegmentName | None:
        """Where the log ends that goes on without a gap behind this entry; None: it does not go on at all."""
        end = None
        while (holding := self.holding((end.last if end else index) + 1)) != []:
            end = max(holding, key=lambda s: s.last)
        return end


def covered(snapshots: Iterable[SnapshotName], log: Log) -> list[Covered]:
    """What can be restored, by the names alone; stretches that touch are one."""
    ends = _ends_of_runs(log)
    stretches: list[Covered] = []
    for snapshot in sorted(snapshots, key=lambda s: (s.index, s.created_at_ms)):
        end = next((e for first, e in ends if first <= snapshot.index + 1 <= e.last), None)
        last_revision = max(snapshot.revision, end.revision if end else 0)
        last_ms = max(snapshot.created_at_ms, end.closed_at_ms if end else 0)
        before = stretches[-1] if stretches else None
        if before is not None and snapshot.revision <= before.last_revision:
            stretches[-1] = Covered(
                min(before.first_revision, snapshot.revision),
                max(before.last_revision, last_revision),
                min(before.first_ms, snapshot.created_at_ms),
                max(before.last_ms, last_ms),
            )
        else:
            stretches.append(Covered(snapshot.revision, last_revision, snapshot.created_at_ms, last_ms))
    return stretches


def _ends_of_runs(log: Log) -> list[tuple[int, SegmentName]]:
    """(first index, last segment) of each stretch of the log without a gap."""
    runs: list[tuple[int, SegmentName]] = []
    for segment in log.segments:
        if runs and segment.first <= runs[-1][1].last + 1:
            first, end = runs[-1]
            runs[-1] = (first, max(end, segment, key=lambda s: (s.last, s.last_term)))
        else:
            runs.append((segment.first, segment))
    return runs
