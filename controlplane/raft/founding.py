"""What a replica was told when its data directory was made: who it is, and who the members are, for as long as neither
the log nor a snapshot says so.

Owns the file ``founding`` beside the log. Start-up settings are read once; then the data directory knows better.

    file = magic 8 | format version u32 | CRC u32 | cluster id u64 | member id u64 | Membership (raft.proto)

The CRC is of what follows it. Before format 2 the file began with it: neither magic nor version.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from controlplane.base import failpoints
from controlplane.base.errors import ConfigError, CorruptStateError, StorageError
from controlplane.raft.disk import Disk, read_all
from controlplane.raft.membership import Membership

__all__ = ["FORMAT_VERSION", "Founding", "peek_founding", "read_founding", "write_founding"]

FORMAT_VERSION = 2

_NAME = "founding"
_TEMP = "founding.tmp"
_MAGIC = b"QDFOUND\n"
_VERSION = struct.Struct("<I")
_CRC = struct.Struct("<I")
_IDS = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Founding:
    """A replica's place in its cluster, as of its first start."""

    cluster_id: int
    member_id: int
    membership: Membership


def write_founding(disk: Disk, founding: Founding) -> None:
    """Durable when it returns. Call before the log is created. Raises StorageError."""
    data = _IDS.pack(founding.cluster_id, founding.member_id) + founding.membership.encode()
    if disk.exists(_TEMP):
        disk.remove(_TEMP)
    file = disk.open_append(_TEMP)
    try:
        file.append(_MAGIC + _VERSION.pack(FORMAT_VERSION) + _CRC.pack(zlib.crc32(data)) + data)
        failpoints.hit("founding.write.after")
        file.sync()
    finally:
        file.close()
    failpoints.hit("founding.sync.after")
    disk.rename(_TEMP, _NAME)
    failpoints.hit("founding.rename.after")
    disk.fsync_dir("")
    failpoints.hit("founding.dirsync.after")


def read_founding(disk: Disk) -> Founding | None:
    """None in a directory made by version 0.1, or seeded from a snapshot.

    Raises:
        CorruptStateError: the file is damaged.
        ConfigError: a newer version wrote it.
    """
    if not disk.exists(_NAME):
        return None
    return _decode(read_all(disk, _NAME), disk.locate(_NAME))


def peek_founding(data_dir: Path) -> Founding | None:
    """The same of a directory that is not opened, nor perhaps there. Raises StorageError too."""
    path = data_dir / _NAME
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", errno=error.errno or 0) from error
    return _decode(whole, str(path))


def _decode(whole: bytes, where: str) -> Founding:
    at = 0
    if whole.startswith(_MAGIC) and len(whole) >= len(_MAGIC) + _VERSION.size:
        at = len(_MAGIC) + _VERSION.size
        (version,) = _VERSION.unpack(whole[len(_MAGIC) : at])
        if version > FORMAT_VERSION:
            raise ConfigError(
                f"{where} has format {version}, this version reads up to {FORMAT_VERSION}; start the newer version "
                f"that wrote it"
            )
    data = whole[at + _CRC.size :]
    if len(data) <= _IDS.size or _CRC.unpack(whole[at : at + _CRC.size])[0] != zlib.crc32(data):
        raise CorruptStateError(f"{where} is damaged. Replace this member")
    cluster_id, member_id = _IDS.unpack(data[: _IDS.size])
    return Founding(cluster_id, member_id, Membership.decode(data[_IDS.size :]))
