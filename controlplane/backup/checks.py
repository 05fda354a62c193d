"""What is looked at before anything is replaced by a backup: is it this cluster's, and is there room."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Final

from controlplane.base.errors import ConfigError, StorageError
from controlplane.base.limits import MIB

__all__ = ["RESERVE_BYTES", "check_cluster", "check_reserve", "check_room"]

#: Left free by whatever a replica writes for its backups: the disk may be the replicas' own.
RESERVE_BYTES: Final = 128 * MIB
#: Left over for whoever else writes to that disk meanwhile.
_SPARE_BYTES: Final = 16 * MIB


def check_cluster(found_id: int, expected_id: int, *, force: bool, what: str = "the snapshot") -> None:
    """Refuse another cluster's state, unless that is what is wanted.

    Raises:
        ConfigError: says both ids and how to insist.
    """
    if found_id != expected_id and not force:
        raise ConfigError(
            f"{what} is of cluster {found_id:x}, this is cluster {expected_id:x}; if you do want its state here, "
            "say --force"
        )


def check_room(folder: Path, need_bytes: int, *, what: str) -> None:
    """Refuse to begin what a disk has no room for.

    Args:
        folder: on that disk; need not exist yet.

    Raises:
        StorageError: says how much is there and how much it takes.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free_bytes = _free_bytes(there)
    if free_bytes < need_bytes + _SPARE_BYTES:
        raise StorageError(
            f"{what} takes {need_bytes} bytes on the disk of {folder}, which has {free_bytes} free (and {_SPARE_BYTES} "
            "must stay). Free some space, or name another folder",
            errno=errno.ENOSPC,
        )


def check_reserve(folder: Path) -> None:
    """Refuse to write where little is left: backups must not be what stops a replica.

    Raises:
        StorageError: less than :data:`RESERVE_BYTES` are free.
    """
    free_bytes = _free_bytes(folder)
    if free_bytes < RESERVE_BYTES:
        raise StorageError(
            f"nothing is written to {folder}: {free_bytes} bytes are free on its disk, and {RESERVE_BYTES} are left to "
            "the replicas",
            errno=errno.ENOSPC,
        )


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageError(
            f"free space of {folder} cannot be read: {error.strerror}", errno=error.errno or 0
        ) from error
