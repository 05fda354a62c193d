"""A replica whose state was found to be wrong does not start again by itself.

Owns the mark in its data directory. The alarm in the log says the same, but a replica may be restarted without its
peers, before it has heard of the alarm; and an operator may clear the alarm.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from controlplane.base.errors import CorruptStateError

__all__ = ["MARK", "check", "impose"]

#: Name of the file that keeps a replica from starting; its text is the reason.
MARK: Final = "CORRUPT"


def impose(data_dir: Path, reason: str) -> None:
    """Keep the replica of this directory from starting again. Durable when this returns."""
    with (data_dir / MARK).open("w") as file:
        file.write(reason + "\n")
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(data_dir, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def check(data_dir: Path) -> None:
    """Raises:
    CorruptStateError: the directory is marked.
    """
    mark = data_dir / MARK
    if mark.exists():
        raise CorruptStateError(f"{mark}: {mark.read_text(errors='replace').strip()}")
