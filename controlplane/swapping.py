"""A recovered state takes the old one's place in a data directory, and a stop at any moment can be taken back.

Owns the order of the moves, the mark that keeps a replica from starting between them, and how they are undone. Knows
nothing of what is moved. The directory's lock is held by the caller.

    recovery.tmp/             what was prepared, whole and synced before the first move
    CORRUPT                   there as long as old and new may be mixed (`quarantine`)
    before-recovery-STAMP/    what was there before
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from controlplane import quarantine
from controlplane.base import failpoints
from controlplane.base.errors import StorageError

__all__ = ["WORKSPACE", "backup_of", "begin", "finish", "undo"]

WORKSPACE: Final = "recovery.tmp"
#: Of the mark; the backup's name comes behind it.
_REASON: Final = "a recovery was cut short here; run qd recover again, which first puts back what there was, from "


def backup_of(data_dir: Path, stamp: str) -> Path:
    """Where the old state is kept."""
    return data_dir / f"before-recovery-{stamp}"


def begin(data_dir: Path, names: tuple[str, ...], backup: Path) -> None:
    """Put what the workspace holds under ``names`` in the place of what the directory holds under them, which goes to
    ``backup``. From here to :func:`finish` no replica starts on it.

    Raises:
        StorageError: the disk refused; :func:`undo` puts back what was moved.
    """
    try:
        # The way back takes what is missing here for moved to its place.
        _sync(data_dir / WORKSPACE)
        backup.mkdir(mode=0o700)
        _sync(data_dir)
        quarantine.impose(data_dir, _REASON + backup.name)
        for name in names:
            if (data_dir / name).exists():
                os.rename(data_dir / name, backup / name)
                failpoints.hit("recover.old.after")
            _sync(backup)
            _sync(data_dir)
            os.rename(data_dir / WORKSPACE / name, data_dir / name)
            failpoints.hit("recover.new.after")
            _sync(data_dir / WORKSPACE)
            _sync(data_dir)
    except OSError as error:
        raise StorageError(f"cannot rewrite {data_dir}: {error}", errno=error.errno or 0) from error


def finish(data_dir: Path) -> None:
    """The new state is the one to start from. Durable when this returns. Raises StorageError."""
    try:
        quarantine.lift(data_dir)
        failpoints.hit("recover.lift.after")
        shutil.rmtree(data_dir / WORKSPACE)
        _sync(data_dir)
    except OSError as error:
        raise StorageError(f"cannot finish the recovery of {data_dir}: {error}", errno=error.errno or 0) from error


def undo(data_dir: Path, names: tuple[str, ...]) -> bool:
    """Put back what moves that were cut short took away; whether there were any. Stopped itself, it goes on when it is
    called again.

    Raises:
        CorruptStateError: the directory is marked for another reason: its state is not to be trusted.
        StorageError: the disk refused.
    """
    why = quarantine.reason(data_dir) or ""
    if not why.startswith(_REASON):
        quarantine.check(data_dir)
        return False
    backup = data_dir / why.removeprefix(_REASON)
    try:
        for name in names:
            prepared = data_dir / WORKSPACE / name
            if not prepared.exists():  # it was moved to its place
                os.rename(data_dir / name, prepared)
            if (backup / name).exists():
                os.rename(backup / name, data_dir / name)
            failpoints.hit("recover.undo.after")
        _sync(data_dir / WORKSPACE)
        _sync(backup)
        _sync(data_dir)
        quarantine.lift(data_dir)
        backup.rmdir()
    except OSError as error:
        raise StorageError(f"cannot put {data_dir} back as it was: {error}", errno=error.errno or 0) from error
    return True


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
