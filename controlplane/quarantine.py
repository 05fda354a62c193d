"""A replica whose state is, or may be, wrong does not start by itself.

Owns the mark in its data directory. For a state that differs from the others' the alarm in the log says the same, but a
replica may be restarted without its peers, before it has heard of the alarm; and an operator may clear the alarm.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from controlplane.base import failpoints
from controlplane.base.errors import CorruptStateError

__all__ = ["MARK", "check", "impose", "lift", "reason"]

#: Name of the file that keeps a replica from starting; its text is the reason.
MARK: Final = "CORRUPT"
_TEMP: Final = "CORRUPT.tmp"


def impose(data_dir: Path, why: str) -> None:
    """Keep the replica of this directory from starting again. Durable when this returns; whole or not there."""
    with (data_dir / _TEMP).open("w") as file:
        file.write(why + "\n")
        file.flush()
        failpoints.hit("quarantine.write.after")
        os.fsync(file.fileno())
    failpoints.hit("quarantine.sync.after")
    os.replace(data_dir / _TEMP, data_dir / MARK)
    failpoints.hit("quarantine.rename.after")
    _sync(data_dir)
    failpoints.hit("quarantine.dirsync.after")


def lift(data_dir: Path) -> None:
    """Let it start again. Durable when this returns."""
    (data_dir / MARK).unlink()
    _sync(data_dir)


def reason(data_dir: Path) -> str | None:
    """Why it may not start; None: it may."""
    try:
        return (data_dir / MARK).read_text(errors="replace").strip()
    except FileNotFoundError:
        return None


def check(data_dir: Path) -> None:
    """Raises:
    CorruptStateError: the directory is marked.
    """
    why = reason(data_dir)
    if why is not None:
        raise CorruptStateError(f"{data_dir / MARK}: {why}")


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
