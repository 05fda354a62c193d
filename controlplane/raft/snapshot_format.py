"""The snapshot file: its bytes, how they are produced piece by piece, and the check that comes before any use.

Pure apart from reading through a :data:`ReadAt`. Knows nothing of data directories and nothing of what is in the
chunks. The same bytes lie in a data directory, travel between replicas and are what `qd snapshot save` writes.

    file  = magic 8 | format version u32 | header length u32 | SnapshotHeader | chunk* | 0 u32 | SHA-256 of all before
    chunk = compressed length u32 | zstd frame

Chunk boundaries are kept: the reader gets the chunks the writer gave.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import zstandard
from google.protobuf.message import DecodeError

from controlplane.base.errors import ConfigError, CorruptStateError, StorageError
from controlplane.base.limits import MIB
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader

__all__ = [
    "CHUNK_BYTES_MAX",
    "DIGEST_BYTES",
    "FORMAT_VERSION",
    "ReadAt",
    "SnapshotEncoder",
    "SnapshotInfo",
    "encode_snapshot_file",
    "inspect_snapshot_file",
    "read_snapshot_chunks",
    "read_snapshot_file",
    "verify_snapshot",
]

FORMAT_VERSION = 1
_FORMAT_OLDEST = 1
#: One chunk as the state machine gives it; bounds what a reader holds in memory.
CHUNK_BYTES_MAX = 64 * MIB
HEADER_BYTES_MAX = MIB

_MAGIC = b"QDSNAP\r\n"
_U32 = struct.Struct("<I")
_PREFIX = struct.Struct("<8sII")
#: The file ends with them.
DIGEST_BYTES = 32
_READ_BYTES = MIB
_LEVEL = 3

#: (offset, length) -> up to that many bytes; short only at the end of the file.
ReadAt = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """What a verified snapshot says of itself."""

    header: SnapshotHeader
    format_version: int
    chunks: int
    state_bytes: int  # uncompressed
    file_bytes: int
    sha256: str


class SnapshotEncoder:
    """Turns a header and chunks into the file's bytes, in order: :meth:`begin`, :meth:`chunk` ..., :meth:`finish`."""

    def __init__(self, header: SnapshotHeader) -> None:
        self._header = header
        self._digest = hashlib.sha256()
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)

    def begin(self) -> bytes:
        header = self._header.SerializeToString(deterministic=True)
        if len(header) > HEADER_BYTES_MAX:
            raise ValueError(f"snapshot header of {len(header)} bytes, at most {HEADER_BYTES_MAX}")
        return self._hashed(_PREFIX.pack(_MAGIC, FORMAT_VERSION, len(header)) + header)

    def chunk(self, data: bytes) -> bytes:
        """Raises ValueError over CHUNK_BYTES_MAX."""
        if len(data) > CHUNK_BYTES_MAX:
            raise ValueError(f"snapshot chunk of {len(data)} bytes, at most {CHUNK_BYTES_MAX}")
        compressed = self._compressor.compress(data)
        return self._hashed(_U32.pack(len(compressed)) + compressed)

    def finish(self) -> bytes:
        end = self._hashed(_U32.pack(0))
        return end + self._digest.digest()

    def _hashed(self, data: bytes) -> bytes:
        self._digest.update(data)
        return data


def encode_snapshot_file(header: SnapshotHeader, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The file's bytes, one piece per chunk."""
    encoder = SnapshotEncoder(header)
    yield encoder.begin()
    for chunk in chunks:
        yield encoder.chunk(chunk)
    yield encoder.finish()


def verify_snapshot(read: ReadAt, file_bytes: int, where: str) -> SnapshotInfo:
    """Check the whole file: checksum first, then structure and every chunk. Blocks as long as reading it takes.

    Args:
        where: the file, for messages.

    Raises:
        CorruptStateError: it is no snapshot, or not what its writer wrote.
        ConfigError: a newer version wrote it, or one that is too old.
    """
    version, header_bytes = _read_prefix(read, where)
    digest = _check_digest(read, file_bytes, where)
    if version > FORMAT_VERSION:
        raise ConfigError(f"snapshot {where} has format {version}, this version reads up to {FORMAT_VERSION}")
    if version < _FORMAT_OLDEST:
        raise ConfigError(f"snapshot {where} has format {version}, this version reads from {_FORMAT_OLDEST} on")
    header = _read_header(read, header_bytes, where)
    chunks = state_bytes = 0
    for chunk in _chunks(read, _PREFIX.size + header_bytes, file_bytes, where):
        chunks += 1
        state_bytes += len(chunk)
    return SnapshotInfo(header, version, chunks, state_bytes, file_bytes, digest)


def read_snapshot_chunks(read: ReadAt, file_bytes: int, where: str) -> Iterator[bytes]:
    """The chunks of a file that :func:`verify_snapshot` accepted. Raises CorruptStateError if it changed since."""
    _, header_bytes = _read_prefix(read, where)
    return _chunks(read, _PREFIX.size + header_bytes, file_bytes, where)


def _read_prefix(read: ReadAt, where: str) -> tuple[int, int]:
    prefix = read(0, _PREFIX.size)
    if len(prefix) < _PREFIX.size or not prefix.startswith(_MAGIC):
        raise CorruptStateError(f"{where} is not a Quarterdeck snapshot, or its beginning is damaged")
    _, version, header_bytes = _PREFIX.unpack(prefix)
    return version, header_bytes


def _check_digest(read: ReadAt, file_bytes: int, where: str) -> str:
    digest = hashlib.sha256()
    at, end = 0, file_bytes - DIGEST_BYTES
    while at < end:
        part = read(at, min(_READ_BYTES, end - at))
        if not part:
            raise CorruptStateError(f"snapshot {where} ends at {at} of {file_bytes} bytes")
        digest.update(part)
        at += len(part)
    if end <= 0 or read(end, DIGEST_BYTES) != digest.digest():
        raise CorruptStateError(f"snapshot {where} is damaged or incomplete: its checksum does not match")
    return digest.hexdigest()


def _read_header(read: ReadAt, header_bytes: int, where: str) -> SnapshotHeader:
    if header_bytes > HEADER_BYTES_MAX:
        raise CorruptStateError(f"snapshot {where} claims a header of {header_bytes} bytes")
    try:
        return SnapshotHeader.FromString(read(_PREFIX.size, header_bytes))
    except DecodeError as error:
        raise CorruptStateError(f"snapshot {where} has an unreadable header") from error


def _chunks(read: ReadAt, at: int, file_bytes: int, where: str) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor()
    end = file_bytes - DIGEST_BYTES
    while True:
        prefix = read(at, _U32.size)
        if len(prefix) < _U32.size:
            raise CorruptStateError(f"snapshot {where} ends inside a chunk, at {at}")
        (length,) = _U32.unpack(prefix)
        at += _U32.size
        if length == 0:
            if at != end:
                raise CorruptStateError(f"snapshot {where} has {end - at} bytes behind its end mark")
            return
        if at + length > end:
            raise CorruptStateError(f"snapshot {where} has a chunk of {length} bytes at {at}, past its end")
        yield _decompress(decompressor, read(at, length), f"{where} at {at}")
        at += length


def _decompress(decompressor: zstandard.ZstdDecompressor, data: bytes, where: str) -> bytes:
    try:
        # The size stands in the frame, so that nothing is allocated for a frame that lies about it.
        size = zstandard.get_frame_parameters(data).content_size
        if size > CHUNK_BYTES_MAX:
            raise CorruptStateError(f"snapshot {where} claims a chunk of {size} bytes")
        return decompressor.decompress(data, max_output_size=CHUNK_BYTES_MAX)
    except zstandard.ZstdError as error:
        raise CorruptStateError(f"snapshot {where} has an unreadable chunk: {error}") from error


def inspect_snapshot_file(path: str | os.PathLike[str], where: str | None = None) -> SnapshotInfo:
    """Verify a snapshot file anywhere, and say what is in it: `qd snapshot verify`.

    Args:
        where: what it is called in errors, if it is a copy of something; by default ``path``.

    Raises:
        CorruptStateError: it is no snapshot, or damaged.
        ConfigError: it cannot be opened, or a newer version wrote it.
    """
    with _PathReader(path) as reader:
        return verify_snapshot(reader.read, reader.size, where or str(path))


def read_snapshot_file(path: str | os.PathLike[str]) -> tuple[SnapshotInfo, Iterator[bytes]]:
    """Verify a snapshot file anywhere, then its chunks: restore. Raises as :func:`inspect_snapshot_file`."""
    info = inspect_snapshot_file(path)

    def chunks() -> Iterator[bytes]:
        with _PathReader(path) as reader:
            yield from read_snapshot_chunks(reader.read, info.file_bytes, str(path))

    return info, chunks()


class _PathReader:
    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - closed by __exit__
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise ConfigError(f"snapshot {path} cannot be read: {error.strerror or error}") from error

    def read(self, offset: int, length: int) -> bytes:
        try:
            self._file.seek(offset)
            return self._file.read(length)
        except OSError as error:
            raise StorageError(f"cannot read {self._path}: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
