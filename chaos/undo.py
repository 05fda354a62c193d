"""The undo list: what was broken and is not healed, on disk before it is broken.

Owns one file of the cluster's folder, ``chaos/undo.json`` (format version 1), replaced atomically and synced with its
directory before :meth:`UndoList.add` returns: a runner that dies at any moment leaves a list that says everything
there is to undo, and perhaps a step that was not yet needed. Healing such a step finds nothing to do.

Also owns ``chaos/lock``: one run, or one healing, at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from chaos.fault import Strike, Undo
from controlplane.base.errors import ConfigError

__all__ = ["FORMAT_VERSION", "Entry", "UndoList", "only_one"]

FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One strike that is not healed. ``by``: the run that made it."""

    id: int
    by: str
    strike: Strike


class UndoList:
    """The list of one cluster's folder.

    Raises:
        ConfigError: the file is there and cannot be read, or is of another format version.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "undo.json"
        self._entries = self._load()
        self._last = max((entry.id for entry in self._entries), default=0)

    @property
    def entries(self) -> list[Entry]:
        """What is to be undone, in the order in which to undo it: the newest first."""
        return list(reversed(self._entries))

    def add(self, by: str, strike: Strike) -> Entry:
        """A strike is about to be made. On disk when this returns."""
        self._last += 1
        entry = Entry(self._last, by, strike)
        self._save([*self._entries, entry])
        return entry

    def remove(self, entry: Entry) -> None:
        """It is healed."""
        self._save([other for other in self._entries if other.id != entry.id])

    def _save(self, entries: list[Entry]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump({"version": FORMAT_VERSION, "entries": [asdict(entry) for entry in entries]}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self._entries = entries

    def _load(self) -> list[Entry]:
        try:
            raw = json.loads(self.path.read_text(encoding="utf-8"))
            if raw["version"] != FORMAT_VERSION:
                raise ConfigError(
                    f"{self.path}: format version {raw['version']}, this program reads {FORMAT_VERSION}; heal the "
                    "cluster with the program that broke it"
                )
            return [_entry(entry) for entry in raw["entries"]]
        except FileNotFoundError:
            return []
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{self.path} cannot be read ({error}): what is to be undone is not known") from error


def _entry(raw: dict[str, Any]) -> Entry:
    strike = dict(raw["strike"])
    strike["undo"] = tuple(Undo(**undo) for undo in strike["undo"])
    for name in ("victims", "excused"):
        strike[name] = tuple(strike.get(name, ()))
    return Entry(int(raw["id"]), str(raw["by"]), Strike(**strike))


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: nobody else breaks or heals this cluster meanwhile. Freed by the end of the process.

    Raises:
        ConfigError: somebody holds it; names the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise ConfigError(
                f"another chaos run is at work on this cluster (process {file.read().strip()})"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
