"""The bytes of the write-ahead log: records, the frames that hold them, and what a damaged frame means.

Pure: bytes in, values out. Knows no files and no Raft rules.

A *record* is one fact (an entry, a term and vote, ...). A *frame* holds all records of one flush and is synced as
one: header, records, one non-zero trailer byte. The header has its own CRC, seeded with the segment's sequence
number, so that a frame is valid only in its place; frames are numbered without gaps across segments.

    frame  = magic 4 | payload length u32 | frame number u64 | payload CRC u32 | header CRC u32 | payload | 0xA5
    record = type u8 | length u32 | body

Since frame n+1 is written only after frame n is synced, a crash can damage the last frame only, and only by
leaving it short or with lost (zero) sectors. Everything else is rot, and is refused: see :func:`read_frames`.
Record types and their bodies are append-only: a released number never changes its meaning.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

__all__ = [
    "FORMAT_VERSION",
    "FRAME_OVERHEAD_BYTES",
    "Damage",
    "Entry",
    "HardState",
    "Record",
    "RecordType",
    "SegmentHeader",
    "SegmentScan",
    "SnapshotRecord",
    "TruncateRecord",
    "UnknownRecordError",
    "decode_records",
    "encode_entry",
    "encode_frame",
    "encode_hard_state",
    "encode_segment_header",
    "encode_snapshot",
    "encode_truncate",
    "read_frames",
]

FORMAT_VERSION = 1

#: (command, index, term): the engine's own shape of a log entry, so that nothing is copied between the two.
Entry = tuple[bytes, int, int]

_MAGIC = b"QDW\xf1"
_HEADER = struct.Struct("<4sIQI")
_CRC = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + _CRC.size
_TRAILER = b"\xa5"
FRAME_OVERHEAD_BYTES = _HEADER_BYTES + len(_TRAILER)
_SECTOR_BYTES = 512

_RECORD = struct.Struct("<BI")
_ENTRY = struct.Struct("<QQ")
_INDEX = struct.Struct("<Q")
_HARD_STATE = struct.Struct("<QQB")
_SEGMENT = struct.Struct("<IQQQQ")
_VERSION = struct.Struct("<I")


class UnknownRecordError(Exception):
    """A frame that is whole holds a record of a type, or a segment of a format, that a newer version writes."""


class RecordType(IntEnum):
    """Append-only numbering."""

    SEGMENT = 1
    ENTRY = 2
    TRUNCATE = 3
    HARD_STATE = 4
    SNAPSHOT = 5


@dataclass(frozen=True, slots=True)
class HardState:
    """What Raft must never forget: the term and the vote in it. The commit index is a hint that speeds up a start."""

    term: int = 0
    voted_for: str | None = None
    commit_index: int = 0


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """First record of a segment. ``first_index``: index the next entry had when the segment began."""

    format_version: int
    cluster_id: int
    member_id: int
    sequence: int
    first_index: int


@dataclass(frozen=True, slots=True)
class TruncateRecord:
    """Entries from ``from_index`` on conflicted with the leader's and are gone."""

    from_index: int


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot ending with entry (``index``, ``term``) replaced the log: it is empty, ``index + 1`` comes next."""

    index: int
    term: int


Record = Entry | SegmentHeader | TruncateRecord | HardState | SnapshotRecord


def _record(kind: RecordType, *parts: bytes) -> bytes:
    return b"".join((_RECORD.pack(kind, sum(map(len, parts))), *parts))


def encode_entry(command: bytes, index: int, term: int) -> bytes:
    return _record(RecordType.ENTRY, _ENTRY.pack(index, term), command)


def encode_truncate(from_index: int) -> bytes:
    return _record(RecordType.TRUNCATE, _INDEX.pack(from_index))


def encode_snapshot(index: int, term: int) -> bytes:
    return _record(RecordType.SNAPSHOT, _ENTRY.pack(index, term))


def encode_hard_state(state: HardState) -> bytes:
    vote = b"" if state.voted_for is None else state.voted_for.encode()
    voted = state.voted_for is not None
    return _record(RecordType.HARD_STATE, _HARD_STATE.pack(state.term, state.commit_index, voted), vote)


def encode_segment_header(header: SegmentHeader) -> bytes:
    body = _SEGMENT.pack(
        header.format_version, header.cluster_id, header.member_id, header.sequence, header.first_index
    )
    return _record(RecordType.SEGMENT, body)


def decode_records(payload: bytes) -> Iterator[Record]:
    """The records of one frame whose checksum was right.

    Raises:
        UnknownRecordError: a newer version wrote it.
        ValueError: the payload is no sequence of records, though its checksum is right: a bug wrote it.
    """
    at = 0
    while at < len(payload):
        try:
            kind, length = _RECORD.unpack_from(payload, at)
            body = payload[at + _RECORD.size : at + _RECORD.size + length]
            if len(body) != length:
                raise ValueError(f"record of {length} bytes in {len(body)}")
            yield _decode(kind, body)
        except (struct.error, UnicodeDecodeError) as error:
            raise ValueError(str(error)) from error
        at += _RECORD.size + length


def _decode(kind: int, body: bytes) -> Record:
    if kind == RecordType.ENTRY:
        index, term = _ENTRY.unpack_from(body)
        return body[_ENTRY.size :], index, term
    if kind == RecordType.HARD_STATE:
        term, commit_index, voted = _HARD_STATE.unpack_from(body)
        return HardState(term, body[_HARD_STATE.size :].decode() if voted else None, commit_index)
    if kind == RecordType.TRUNCATE:
        return TruncateRecord(*_INDEX.unpack(body))
    if kind == RecordType.SNAPSHOT:
        return SnapshotRecord(*_ENTRY.unpack(body))
    if kind == RecordType.SEGMENT:
        # The version comes first, and says what follows: of a newer one nothing else is looked at.
        (version,) = _VERSION.unpack_from(body)
        if version > FORMAT_VERSION:
            raise UnknownRecordError(f"is of log format {version}, this version reads up to {FORMAT_VERSION}")
        return SegmentHeader(*_SEGMENT.unpack(body))
    raise UnknownRecordError(f"has a record of type {kind}, this version knows up to {max(RecordType)}")


def _seed(sequence: int) -> int:
    return zlib.crc32(_INDEX.pack(sequence))


def encode_frame(sequence: int, number: int, records: Iterable[bytes]) -> bytes:
    """One frame: ``number`` in the whole log, inside segment ``sequence``."""
    payload = b"".join(records)
    header = _HEADER.pack(_MAGIC, len(payload), number, zlib.crc32(payload))
    return b"".join((header, _CRC.pack(zlib.crc32(header, _seed(sequence))), payload, _TRAILER))


@dataclass(frozen=True, slots=True)
class Damage:
    """Where a segment stops being readable. ``torn``: a crash explains it, and nothing before it is affected."""

    offset: int
    reason: str
    torn: bool


@dataclass(frozen=True, slots=True)
class SegmentScan:
    """The valid frames of a segment, as (offset, payload); where they end; what is wrong there, if anything."""

    frames: list[tuple[int, bytes]]
    end: int
    next_number: int | None
    damage: Damage | None


def _read_header(data: bytes, at: int, sequence: int) -> tuple[int, int, int] | None:
    """(payload length, number, payload CRC) of the header at ``at``, or None if there is no valid one."""
    if len(data) - at < _HEADER_BYTES:
        return None
    raw = data[at : at + _HEADER.size]
    magic, length, number, payload_crc = _HEADER.unpack(raw)
    (header_crc,) = _CRC.unpack_from(data, at + _HEADER.size)
    if magic != _MAGIC or header_crc != zlib.crc32(raw, _seed(sequence)):
        return None
    return length, number, payload_crc


def _read_payload(data: bytes, at: int, length: int, crc: int) -> bytes | None:
    start = at + _HEADER_BYTES
    payload = data[start : start + length]
    if len(payload) != length or zlib.crc32(payload) != crc or data[start + length : start + length + 1] != _TRAILER:
        return None
    return payload


def read_frames(data: bytes, sequence: int, first_number: int | None) -> SegmentScan:
    """Read a segment's frames from its start to its end or to the first damage.

    Args:
        data: the whole file.
        sequence: the segment's number.
        first_number: number its first frame must have; None accepts any (first segment kept by compaction).
    """
    frames: list[tuple[int, bytes]] = []
    at = 0
    expected = first_number
    while at < len(data):
        header = _read_header(data, at, sequence)
        if header is None or (expected is not None and header[1] != expected):
            return SegmentScan(frames, at, expected, _judge(data, at, sequence, expected))
        length, number, crc = header
        payload = _read_payload(data, at, length, crc)
        if payload is None:
            return SegmentScan(frames, at, expected, _judge(data, at, sequence, expected))
        frames.append((at, payload))
        at += FRAME_OVERHEAD_BYTES + length
        expected = number + 1
    return SegmentScan(frames, at, expected, None)


def _judge(data: bytes, at: int, sequence: int, expected: int | None) -> Damage:
    """Tell a torn last frame, which was never acknowledged, from rot in frames that were."""
    header = _read_header(data, at, sequence)
    if header is not None and expected is not None and header[1] != expected:
        return Damage(at, f"frame {header[1]} where frame {expected} belongs", torn=False)
    if header is not None:
        end = at + FRAME_OVERHEAD_BYTES + header[0]
        if end > len(data):
            return Damage(at, f"the file ends inside a frame: {len(data) - at} of {end - at} bytes", torn=True)
        if end < len(data):
            return Damage(at, "checksum mismatch in a frame that others follow", torn=False)
        if _has_lost_sector(data, at, end, until=end):
            return Damage(at, "sectors of the last frame were never written", torn=True)
        return Damage(at, "checksum mismatch in a completely written frame", torn=False)
    follower = _find_frame(data, at + 1, sequence)
    if follower is not None:
        return Damage(at, f"unreadable frame header, but a valid frame follows at offset {follower}", torn=False)
    if len(data) - at < _HEADER_BYTES:
        return Damage(at, f"the file ends inside a frame header: {len(data) - at} bytes", torn=True)
    if _has_lost_sector(data, at, len(data), until=at + _HEADER_BYTES):
        return Damage(at, "the sector of the last frame's header was never written", torn=True)
    return Damage(at, "unreadable frame header", torn=False)


def _has_lost_sector(data: bytes, start: int, end: int, *, until: int) -> bool:
    """Whether a sector's share of [start, end) that begins before ``until`` is all zero.

    A frame begins and ends with non-zero bytes, so a zero first or last share cannot be its own content.
    """
    at = start
    while at < min(end, until):
        share_end = min(end, (at // _SECTOR_BYTES + 1) * _SECTOR_BYTES)
        if not any(data[at:share_end]):
            return True
        at = share_end
    return False


def _find_frame(data: bytes, start: int, sequence: int) -> int | None:
    at = data.find(_MAGIC, start)
    while at >= 0:
        header = _read_header(data, at, sequence)
        if header is not None and _read_payload(data, at, header[0], header[2]) is not None:
            return at
        at = data.find(_MAGIC, at + 1)
    return None
