"""What chaos has left broken of a local cluster: its undo list, read by who is about to start something.

Owns nothing: ``chaos/undo.py`` writes the file (format version 1) and heals what is in it. Only what a person must know
is read here. To start a replica whose disk or membership is half taken away may be worse than not to: it may have
promised what is not on that disk.
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

from controlplane.base.errors import ConfigError

__all__ = ["refuse_broken"]

_FORMAT_VERSION = 1


def refuse_broken(root: Path) -> None:
    """Return if nothing is left to put back.

    Args:
        root: the cluster's folder.

    Raises:
        ConfigError: something is, a run that breaks things is at work, or the list cannot be read; says what to do.
    """
    left = _left(root / "chaos" / "undo.json")
    if not left:
        return
    if (process := _at_work(root / "chaos" / "lock")) is not None:
        raise ConfigError(
            f"a chaos run is at work on this cluster (process {process}), and has broken: {'; '.join(left)}. "
            "Wait for its end, or stop it: it puts that back"
        )
    raise ConfigError(
        f"a chaos run has left this cluster broken: {'; '.join(left)}. Put it back first, which also starts what does "
        "not run: qd chaos heal"
    )


def _left(path: Path) -> list[str]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["version"] != _FORMAT_VERSION:
            raise ConfigError(
                f"{path}: format version {raw['version']}, this program reads {_FORMAT_VERSION}; heal the cluster with "
                "the program that broke it"
            )
        return [str(entry["strike"]["says"]) for entry in raw["entries"]]
    except FileNotFoundError:
        return []
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): what is to be put back is not known") from error


def _at_work(path: Path) -> str | None:
    """Who holds the lock; None: nobody."""
    try:
        with path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip()
            return None
    except FileNotFoundError:
        return None
