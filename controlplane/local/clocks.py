"""Clocks of their own for processes of one machine, through libfaketime: a file each, which says how wrong it is.

A process is under libfaketime if its file was there when it started; from then on what the file says holds within a
second, whatever it is changed to. With ``monotonic`` the clock that never jumps jumps with it, as it does when a
machine is frozen and thawed; without, it is left alone, as when an administrator sets the time.

Owns the files and the environment; starts nothing. Sees one defect of libfaketime: under it a thread that sleeps
(``time.sleep``) gets an error, and with ``monotonic`` a timed wait of a thread never ends, so it is for replicas and
agents, which do neither.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = ["Clocks", "library"]

_LIBRARIES: Final = tuple(
    Path(folder) / "faketime" / "libfaketimeMT.so.1"
    for folder in (
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/local/lib",
    )
)
_MONOTONIC_TOO: Final = ".monotonic"
_UNTIL_STARTED: Final = ".until-started"


def library() -> Path | None:
    """Where libfaketime is; None: it is not installed (Debian: package faketime)."""
    return next((path for path in _LIBRARIES if path.exists()), None)


class Clocks:
    """The files of one cluster."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def set(self, name: str, *, offset_s: float = 0.0, rate: float = 1.0, monotonic: bool = False) -> None:
        """How wrong the clock of a process is: so far off, and running at that rate."""
        self._folder.mkdir(parents=True, exist_ok=True)
        marker = self._folder / f"{name}{_MONOTONIC_TOO}"
        if monotonic:
            marker.touch()
        else:
            marker.unlink(missing_ok=True)
        text = f"{offset_s:+.3f}s" if rate == 1.0 else f"{offset_s:+.3f}s x{rate:g}"
        temporary = self._folder / f"{name}.tmp"
        temporary.write_text(f"{text}\n")
        os.replace(temporary, self._file(name))
        (self._folder / f"{name}{_UNTIL_STARTED}").unlink(missing_ok=True)

    def right(self, name: str) -> None:
        """The clock is right from now on; the process stays under libfaketime, and its successor is not."""
        self.set(name)
        (self._folder / f"{name}{_UNTIL_STARTED}").touch()

    def clear(self, name: str) -> None:
        """From its next start on the process has the machine's clock."""
        self._file(name).unlink(missing_ok=True)
        for marker in (_MONOTONIC_TOO, _UNTIL_STARTED):
            (self._folder / f"{name}{marker}").unlink(missing_ok=True)

    def environment(self, name: str) -> Mapping[str, str]:
        """What a process is started with: nothing, if there is no file for it."""
        found = library()
        if found is None or not self._file(name).exists() or (self._folder / f"{name}{_UNTIL_STARTED}").exists():
            return {}
        environment = {
            "LD_PRELOAD": str(found), "FAKETIME_TIMESTAMP_FILE": str(self._file(name).resolve()),
            "FAKETIME_CACHE_DURATION": "1",
        }  # fmt: skip
        if not (self._folder / f"{name}{_MONOTONIC_TOO}").exists():
            environment["FAKETIME_DONT_FAKE_MONOTONIC"] = environment["DONT_FAKE_MONOTONIC"] = "1"
            # Its repair of timed waits on the monotonic clock makes them last a second if that clock is left alone;
            # Python's threads wait so for the interpreter's lock.
            environment["FAKETIME_FORCE_MONOTONIC_FIX"] = "0"
        return environment

    @staticmethod
    def faked(pid: int) -> str:
        """Under what a running process is: ``wall``, ``monotonic``, or nothing."""
        try:
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            return ""
        if not any(word.startswith(b"FAKETIME_TIMESTAMP_FILE=") for word in words):
            return ""
        return "wall" if b"DONT_FAKE_MONOTONIC=1" in words else "monotonic"

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.clock"
