"""What a replica was told when its data directory was made: who it is, and who the members are, for as long as neither
the log nor a snapshot says so.

Owns the file ``founding`` beside the log. Start-up settings are read once; then the data directory knows better.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from controlplane.base.errors import CorruptStateError
from controlplane.raft.disk import Disk, read_all
from controlplane.raft.membership import Membership

__all__ = ["Founding", "read_founding", "write_founding"]

_NAME = "founding"
_TEMP = "founding.tmp"
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
        file.append(_CRC.pack(zlib.crc32(data)) + data)
        file.sync()
    finally:
        file.close()
    disk.rename(_TEMP, _NAME)
    disk.fsync_dir("")


def read_founding(disk: Disk) -> Founding | None:
    """None in a directory made by version 0.1, or seeded from a snapshot.

    Raises:
        CorruptStateError: the file is damaged.
    """
    if not disk.exists(_NAME):
        return None
    whole = read_all(disk, _NAME)
    data = whole[_CRC.size :]
    if len(data) <= _IDS.size or _CRC.unpack(whole[: _CRC.size])[0] != zlib.crc32(data):
        raise CorruptStateError(f"{disk.locate(_NAME)} is damaged. Replace this member")
    cluster_id, member_id = _IDS.unpack(data[: _IDS.size])
    return Founding(cluster_id, member_id, Membership.decode(data[_IDS.size :]))
