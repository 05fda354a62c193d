"""The files of the archived log: their bytes, and the check that comes before any use. Pure.

    segment = magic 8 | format version u32 | header length u32 | SegmentHeader | zstd frame of the entries | SHA-256
    entries = (length u32 | ArchivedEntry)*

The SHA-256 is of everything before it. A pack is many segments in one file, each as it was, encrypted or not; it has no
checksum of its own, so that damage to one segment costs that one::

    pack = magic 8 | format version u32 | count u32 | (first index u64 | last index u64 | length u32)* | segment*
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Final, NamedTuple

import zstandard
from google.protobuf.message import DecodeError

from controlplane.base.errors import ConfigError, CorruptStateError
from controlplane.base.limits import MIB
from controlplane.pb.quarterdeck.internal.v1.archive_pb2 import ArchivedEntry, SegmentHeader

__all__ = ["BODY_BYTES_MAX", "FORMAT_VERSION", "Part", "decode_segment", "encode_pack", "encode_segment", "find_part"]

FORMAT_VERSION: Final = 1
#: What a reader is ready to hold; the archiver closes a segment long before.
BODY_BYTES_MAX: Final = 64 * MIB
_HEADER_BYTES_MAX: Final = MIB
_MAGIC: Final = b"QDLOGSG\n"
_PREFIX: Final = struct.Struct("<8sII")
_PACK_MAGIC: Final = b"QDLOGPK\n"
_PART: Final = struct.Struct("<QQI")
_U32: Final = struct.Struct("<I")
_DIGEST_BYTES: Final = 32
_LEVEL: Final = 3


def encode_segment(header: SegmentHeader, entries: Sequence[ArchivedEntry]) -> bytes:
    """The bytes of a segment. ``header`` gets its indexes, last term and size from the entries.

    Raises:
        ValueError: no entry, a gap between entries, or too much for one segment.
    """
    if not entries or any(b.index != a.index + 1 for a, b in pairwise(entries)):
        raise ValueError("a segment holds entries without a gap")
    body = b"".join(_U32.pack(len(data)) + data for data in (entry.SerializeToString() for entry in entries))
    if len(body) > BODY_BYTES_MAX:
        raise ValueError(f"segment of {len(body)} bytes, at most {BODY_BYTES_MAX}")
    header.first_index, header.last_index = entries[0].index, entries[-1].index
    header.last_term, header.body_bytes = entries[-1].term, len(body)
    head = header.SerializeToString(deterministic=True)
    data = _PREFIX.pack(_MAGIC, FORMAT_VERSION, len(head)) + head
    data += zstandard.ZstdCompressor(level=_LEVEL).compress(body)
    return data + sha256(data).digest()


def decode_segment(data: bytes, where: str) -> tuple[SegmentHeader, list[ArchivedEntry]]:
    """Check a segment wholly and take it apart.

    Raises:
        CorruptStateError: it is no segment, or not what its writer wrote.
        ConfigError: a newer version wrote it.
    """
    if len(data) < _PREFIX.size + _DIGEST_BYTES or not data.startswith(_MAGIC):
        raise CorruptStateError(f"{where} is no segment of an archived log, or its beginning is damaged")
    _, version, header_bytes = _PREFIX.unpack_from(data)
    content, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if sha256(content).digest() != digest:
        raise CorruptStateError(f"segment {where} is damaged or incomplete: its checksum does not match")
    if version > FORMAT_VERSION:
        raise ConfigError(f"segment {where} has format {version}, this version reads up to {FORMAT_VERSION}")
    try:
        header = SegmentHeader.FromString(content[_PREFIX.size : _PREFIX.size + header_bytes])
        entries = _entries(_body(content[_PREFIX.size + header_bytes :], header, where), where)
    except DecodeError as error:
        raise CorruptStateError(f"segment {where} does not decode: {error}") from error
    indexes = [entry.index for entry in entries]
    if not entries or indexes != list(range(header.first_index, header.last_index + 1)):
        raise CorruptStateError(f"segment {where} does not hold the entries that it names")
    return header, entries


class Part(NamedTuple):
    """One segment of a pack: the entries ``first`` to ``last``; its bytes, perhaps encrypted."""

    first: int
    last: int
    data: bytes


def encode_pack(parts: Sequence[Part]) -> bytes:
    """The bytes of a pack. Raises ValueError: no part, or a gap between two."""
    if not parts or any(b.first != a.last + 1 for a, b in pairwise(parts)):
        raise ValueError("a pack holds segments without a gap")
    index = b"".join(_PART.pack(part.first, part.last, len(part.data)) for part in parts)
    head = _PREFIX.pack(_PACK_MAGIC, FORMAT_VERSION, len(parts)) + index
    return head + b"".join(part.data for part in parts)


def find_part(data: bytes, index: int, where: str) -> bytes:
    """The segment of a pack that holds an entry; not verified.

    Raises:
        CorruptStateError: it is no pack, or does not hold the entry.
        ConfigError: a newer version wrote it.
    """
    if len(data) < _PREFIX.size or not data.startswith(_PACK_MAGIC):
        raise CorruptStateError(f"{where} is no pack of segments, or its beginning is damaged")
    _, version, count = _PREFIX.unpack_from(data)
    if version > FORMAT_VERSION:
        raise ConfigError(f"pack {where} has format {version}, this version reads up to {FORMAT_VERSION}")
    at = _PREFIX.size + count * _PART.size
    if at > len(data):
        raise CorruptStateError(f"pack {where} ends inside its index")
    for first, last, length in _PART.iter_unpack(data[_PREFIX.size : at]):
        if first <= index <= last:
            return data[at : at + length]
        at += length
    raise CorruptStateError(f"pack {where} does not hold entry {index}")


def _body(frame: bytes, header: SegmentHeader, where: str) -> bytes:
    if header.body_bytes > BODY_BYTES_MAX:
        raise CorruptStateError(f"segment {where} claims {header.body_bytes} bytes of entries")
    try:
        if zstandard.get_frame_parameters(frame).content_size != header.body_bytes:
            raise CorruptStateError(f"segment {where} contradicts itself about its size")
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=BODY_BYTES_MAX)
    except zstandard.ZstdError as error:
        raise CorruptStateError(f"segment {where} has unreadable entries: {error}") from error


def _entries(body: bytes, where: str) -> list[ArchivedEntry]:
    entries, at = [], 0
    while at < len(body):
        if at + _U32.size > len(body):
            raise CorruptStateError(f"segment {where} ends inside an entry")
        (length,) = _U32.unpack_from(body, at)
        at += _U32.size
        if at + length > len(body):
            raise CorruptStateError(f"segment {where} ends inside an entry")
        entries.append(ArchivedEntry.FromString(body[at : at + length]))
        at += length
    return entries
