"""Reading the log back: segment files to entries, term and vote, and the verdict on what is damaged.

Changes nothing on disk. Must not know what the caller does with the entries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from controlplane.base.errors import ConfigError, CorruptStateError
from controlplane.raft import wal_format as fmt
from controlplane.raft.disk import Disk, read_all
from controlplane.raft.wal_format import Entry, HardState

__all__ = [
    "WAL_DIR",
    "Identity",
    "LogImage",
    "Recovered",
    "RecoveryReport",
    "Segment",
    "identity_on_disk",
    "list_segments",
    "read_log",
]

WAL_DIR = "wal"
SEGMENT_SUFFIX = ".wal"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose log this is. A directory of another member or cluster is refused."""

    cluster_id: int
    member_id: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment file. ``first_index``: index the next entry had when the segment began."""

    sequence: int
    first_index: int

    @property
    def name(self) -> str:
        return segment_name(self.sequence)


def segment_name(sequence: int) -> str:
    return f"{WAL_DIR}/{sequence:016x}{SEGMENT_SUFFIX}"


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What opening the log found, for the log line and the operator."""

    segments: int
    frames: int
    entries: int
    cut_bytes: int = 0
    cut_segment: str = ""
    cut_offset: int = 0
    cut_reason: str = ""

    @property
    def clean(self) -> bool:
        return self.cut_bytes == 0


@dataclass(frozen=True, slots=True)
class Recovered:
    """The log's content at open. ``first_index``: index of ``entries[0]``, or of the next entry if there is none."""

    first_index: int
    entries: list[Entry]
    hard_state: HardState
    report: RecoveryReport


@dataclass(frozen=True, slots=True)
class LogImage:
    """Everything the appending side needs to go on where the files end."""

    segments: list[Segment]
    next_frame: int
    tail: bytes  # the valid bytes of the last segment
    recovered: Recovered


@dataclass(slots=True)
class _Replay:
    """The state that the records build, in order."""

    next_index: int = 0
    entries: list[Entry] = field(default_factory=list)
    hard_state: HardState = field(default_factory=HardState)

    def apply(self, record: fmt.Record) -> None:
        """Raises ValueError when the record cannot follow those before it."""
        if isinstance(record, tuple):
            index = record[1]
            if index != self.next_index:
                raise ValueError(f"entry {index} where entry {self.next_index} belongs")
            self.entries.append(record)
            self.next_index = index + 1
        elif isinstance(record, HardState):
            if record.term < self.hard_state.term:
                raise ValueError(f"term goes back from {self.hard_state.term} to {record.term}")
            self.hard_state = record
        elif isinstance(record, fmt.TruncateRecord):
            if record.from_index > self.next_index:
                raise ValueError(f"truncation at {record.from_index}, behind the end {self.next_index}")
            # The cut may reach below our first entry: into segments that compaction dropped since.
            keep = max(0, len(self.entries) - (self.next_index - record.from_index))
            del self.entries[keep:]
            self.next_index = record.from_index
        elif isinstance(record, fmt.SnapshotRecord):
            self.entries.clear()
            self.next_index = record.index + 1
        else:
            raise ValueError("a segment header inside a segment")


def list_segments(disk: Disk) -> list[int]:
    """Sequence numbers of the segments on disk, ascending.

    Raises:
        CorruptStateError: one in the middle is missing, or a name is none of ours.
    """
    sequences: list[int] = []
    for name in disk.list(WAL_DIR):
        if not name.endswith(SEGMENT_SUFFIX):
            continue
        try:
            sequences.append(int(name.removesuffix(SEGMENT_SUFFIX), 16))
        except ValueError as error:
            raise CorruptStateError(f"{disk.locate(f'{WAL_DIR}/{name}')} is not a log segment") from error
    sequences.sort()
    for before, after in pairwise(sequences):
        if after != before + 1:
            raise CorruptStateError(f"log segment {disk.locate(segment_name(before + 1))} is missing")
    return sequences


def identity_on_disk(disk: Disk) -> Identity | None:
    """Whose log a directory holds, as its first segment says; None if there is none. Raises
    CorruptStateError, or ConfigError when a newer version wrote it."""
    sequences = list_segments(disk)
    if not sequences:
        return None
    name = segment_name(sequences[0])
    scan = fmt.read_frames(read_all(disk, name), sequences[0], None)
    try:
        first = next(fmt.decode_records(scan.frames[0][1])) if scan.frames else None
    except fmt.UnknownRecordError as error:
        raise _newer(disk.locate(name), 0, error) from error
    except (ValueError, StopIteration) as error:
        raise _damaged(disk.locate(name), 0, str(error)) from error
    if not isinstance(first, fmt.SegmentHeader):
        raise _damaged(disk.locate(name), 0, "it does not begin with a segment header")
    return Identity(first.cluster_id, first.member_id)


def read_log(disk: Disk, identity: Identity) -> LogImage:
    """Read and verify the whole log.

    Raises:
        CorruptStateError: damage that no crash explains; names segment and offset.
        ConfigError: no log, another member's log, or one of a newer format.
    """
    sequences = list_segments(disk)
    if not sequences:
        raise ConfigError(f"{disk.locate(WAL_DIR)} holds no log")
    replay = _Replay()
    segments: list[Segment] = []
    frames = 0
    next_frame: int | None = None
    report = RecoveryReport(0, 0, 0)
    tail = b""
    for sequence in sequences:
        path = disk.locate(segment_name(sequence))
        data = read_all(disk, segment_name(sequence))
        scan = fmt.read_frames(data, sequence, next_frame)
        if scan.damage is not None and not (scan.damage.torn and sequence == sequences[-1] and scan.frames):
            raise _damaged(path, scan.damage.offset, scan.damage.reason)
        if not scan.frames:
            raise _damaged(path, 0, "the file is empty")
        segments.append(_replay_segment(path, sequence, identity, scan, replay, is_first=not segments))
        frames += len(scan.frames)
        next_frame, tail = scan.next_number, data[: scan.end]
        if scan.damage is not None:
            report = RecoveryReport(0, 0, 0, len(data) - scan.end, path, scan.end, scan.damage.reason)
    report = RecoveryReport(
        len(segments),
        frames,
        len(replay.entries),
        report.cut_bytes,
        report.cut_segment,
        report.cut_offset,
        report.cut_reason,
    )
    first_index = replay.next_index - len(replay.entries)
    assert next_frame is not None  # every segment has a frame
    return LogImage(segments, next_frame, tail, Recovered(first_index, replay.entries, replay.hard_state, report))


def _replay_segment(
    path: str, sequence: int, identity: Identity, scan: fmt.SegmentScan, replay: _Replay, *, is_first: bool
) -> Segment:
    header: fmt.SegmentHeader | None = None
    at = 0
    try:
        for offset, payload in scan.frames:
            at = offset
            for record in fmt.decode_records(payload):
                if header is not None:
                    replay.apply(record)
                    continue
                if not isinstance(record, fmt.SegmentHeader):
                    raise ValueError("the first record is not a segment header")
                header = record
                _check_header(path, header, identity)
                if header.sequence != sequence:
                    raise ValueError(f"its header says segment {header.sequence}")
                if is_first:
                    replay.next_index = header.first_index
                elif header.first_index != replay.next_index:
                    raise ValueError(f"it begins at entry {header.first_index}, expected {replay.next_index}")
    except fmt.UnknownRecordError as error:
        raise _newer(path, at, error) from error
    except ValueError as error:
        raise _damaged(path, at, str(error)) from error
    assert header is not None  # a frame has at least one record, or ValueError
    return Segment(sequence, header.first_index)


def _newer(path: str, offset: int, error: fmt.UnknownRecordError) -> ConfigError:
    return ConfigError(f"log segment {path}, at offset {offset}, {error}; start the newer version that wrote it")


def _check_header(path: str, header: fmt.SegmentHeader, identity: Identity) -> None:
    if (header.cluster_id, header.member_id) != (identity.cluster_id, identity.member_id):
        raise ConfigError(
            f"{path} belongs to member {header.member_id:x} of cluster {header.cluster_id:x}, this replica is member "
            f"{identity.member_id:x} of cluster {identity.cluster_id:x}; check the data directory and the names"
        )


def _damaged(path: str, offset: int, reason: str) -> CorruptStateError:
    return CorruptStateError(
        f"log segment {path} is damaged at offset {offset}: {reason}; nothing of it is served. "
        "Replace this member: remove it from the cluster and add it again with an empty directory"
    )
