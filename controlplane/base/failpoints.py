"""Failpoints: named places around every durable step, where a test can make a real process die or its disk refuse.

For tests only. Off unless the process was started with ``QUARTERDECK_FAILPOINTS``, and then it says so loudly; while
off a :func:`hit` costs one comparison. Owns the names and what an armed one does; knows nothing of the code around.

    QUARTERDECK_FAILPOINTS="wal.sync.before=kill@3,snapshot.rename.after=error:EIO"

=================  ====================================================================
``kill``           the process sends itself SIGKILL at the first hit
``kill@3``         at the third
``error:EIO``      StorageError with this errno, at every hit
``error:ENOSPC@2`` at the second only
=================  ====================================================================

A process that runs is armed anew through a file, if :data:`FILE_VARIABLE` named one when it started: it reads the file
then, and at each SIGUSR2. The file holds such a specification; an empty or missing one arms nothing.

Every name is in :data:`FAILPOINTS`, so that the test that kills a process at each of them
(``tests/integration/test_crash_points.py``) covers a new one without being told; those of ``qd recover`` are met beside
it, the scheduler's in the experiment ``scheduler-kill``.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlplane.base.errors import ConfigError, StorageError

__all__ = [
    "FAILPOINTS",
    "FILE_VARIABLE",
    "VARIABLE",
    "arm",
    "arm_from_environment",
    "arm_from_file",
    "disarm",
    "hit",
]

_log = logging.getLogger("quarterdeck.failpoints")

VARIABLE: Final = "QUARTERDECK_FAILPOINTS"
FILE_VARIABLE: Final = "QUARTERDECK_FAILPOINTS_FILE"

#: name -> the moment.
FAILPOINTS: Final[Mapping[str, str]] = {
    "founding.write.after": "at a member's first start: who it is, is written under a temporary name",
    "founding.sync.after": "and synced",
    "founding.rename.after": "and has its name, the directory not synced",
    "founding.dirsync.after": "and is durable; there is no log yet",
    "wal.write.before": "a turn's frame is about to be written to the log",
    "wal.sync.before": "it is written, not synced",
    "wal.sync.after": "it is durable, nobody knows yet",
    "term.vote.before": "a new term or vote is about to be written",
    "term.vote.after": "it is durable, not sent",
    "wal.roll.write.after": "a new segment is written under its temporary name",
    "wal.roll.sync.after": "and synced",
    "wal.roll.rename.after": "and renamed, the directory not synced",
    "wal.roll.dirsync.after": "and its name durable; the old segment still open",
    "wal.open.write.after": "at start: the last segment is written anew under a temporary name",
    "wal.open.sync.after": "and synced",
    "wal.open.rename.after": "and put in the old one's place",
    "wal.open.dirsync.after": "and its name durable",
    "wal.compact.before": "old segments are about to be removed",
    "wal.compact.remove.after": "one is removed, the directory not synced",
    "wal.compact.dirsync.after": "and its removal durable",
    "snapshot.begin.after": "a snapshot's file is begun",
    "snapshot.write.after": "a chunk of it is written",
    "snapshot.sync.before": "it is complete, not synced",
    "snapshot.sync.after": "it is synced under its temporary name",
    "snapshot.rename.after": "it has its name, the directory not synced",
    "snapshot.dirsync.after": "it is durable; the log is not yet compacted",
    "snapshot.prune.remove.after": "an old snapshot is removed",
    "snapshot.receive.begin.after": "the file for a leader's snapshot is begun",
    "snapshot.receive.write.after": "a piece of it is written",
    "snapshot.receive.verify.after": "it is complete and right, not synced",
    "snapshot.receive.sync.after": "it is synced under its temporary name",
    "snapshot.receive.rename.after": "it has its name, the directory not synced",
    "snapshot.receive.dirsync.after": "it is durable, not yet the state",
    "snapshot.install.before": "the state of a received snapshot is built, not yet taken",
    "snapshot.install.state.after": "the state is the snapshot's, the log is still the old one",
    "snapshot.install.log.after": "state and log are the snapshot's in memory, the log on disk is still the old one",
    "raft.ahead.after": "the log is being synced; what a leader has for its followers has left already",
    "raft.send.before": "a turn is durable, its other messages are about to leave",
    "raft.answer.before": "its messages have left, its waiters have not heard",
    "apply.before": "a committed entry is about to be applied",
    "apply.after": "it is applied",
    "quarantine.write.after": "the mark that keeps a directory from being started is written under a temporary name",
    "quarantine.sync.after": "and synced",
    "quarantine.rename.after": "and has its name, the directory not synced",
    "quarantine.dirsync.after": "and is durable; the replica still runs",
    "recover.prepare.after": "`qd recover` has made the new state beside the old one",
    "recover.old.after": "a part of the old state is out of its place (four parts, four hits)",
    "recover.new.after": "a part of the new one is in it",
    "recover.supersede.after": "a survivor that was not chosen is marked",
    "recover.lift.after": "the chosen directory may be started again; what is left over is there",
    "recover.undo.after": "a part of a recovery that was cut short is put back",
    "bind.before": "the scheduler has a node for pods, and is about to write it",
}


@dataclass(slots=True)
class _Armed:
    act: Callable[[str], None]
    at: int  # which hit; 0: every one
    hits: int = 0


_armed: dict[str, _Armed] = {}


def hit(name: str) -> None:
    """Pass a failpoint.

    Raises:
        StorageError: it is armed with an error.
    """
    if _armed:
        _fire(name)


def _fire(name: str) -> None:
    if name not in FAILPOINTS:
        raise ConfigError(f"failpoint {name!r} is not in FAILPOINTS")
    armed = _armed.get(name)
    if armed is None:
        return
    armed.hits += 1
    if armed.at in (0, armed.hits):
        armed.act(name)


def _kill(name: str) -> None:
    _log.critical("failpoint kills this process name=%s", name)
    logging.shutdown()
    os.kill(os.getpid(), signal.SIGKILL)


def _failing(code: int) -> Callable[[str], None]:
    def act(name: str) -> None:
        raise StorageError(f"failpoint {name}: {os.strerror(code)}", errno=code)

    return act


def arm(spec: str) -> None:
    """Arm the failpoints of a specification, instead of those armed until now; empty arms none.

    Raises:
        ConfigError: an unknown name or action; says which there are.
    """
    armed: dict[str, _Armed] = {}
    for part in filter(None, (part.strip() for part in spec.split(","))):
        name, _, action = part.partition("=")
        what, _, count = action.partition("@")
        if name not in FAILPOINTS:
            raise ConfigError(f"{VARIABLE}: no failpoint {name!r}; `qd failpoints` lists them")
        if count and not (count.isdecimal() and int(count) > 0):
            raise ConfigError(f"{VARIABLE}: {part!r}: want @N with N 1 or more")
        if what == "kill":
            armed[name] = _Armed(_kill, int(count or 1))
        elif what.startswith("error:") and isinstance(code := getattr(errno, what.removeprefix("error:"), None), int):
            armed[name] = _Armed(_failing(code), int(count or 0))
        else:
            raise ConfigError(f"{VARIABLE}: {part!r}: want NAME=kill, NAME=kill@N, NAME=error:EIO or NAME=error:EIO@N")
    _armed.clear()
    _armed.update(armed)
    if armed:
        _log.critical("FAILPOINTS ARMED: this process will fail on purpose; for tests only spec=%s", spec)


def arm_from_environment() -> None:
    """Arm what :data:`VARIABLE` says, if it is set. Raises ConfigError as :func:`arm`."""
    arm(os.environ.get(VARIABLE, ""))


def arm_from_file() -> None:
    """Arm what the file named by :data:`FILE_VARIABLE` says, on top of nothing. A file that says nonsense changes
    nothing, and is told of in the log."""
    try:
        text = Path(os.environ[FILE_VARIABLE]).read_text().strip()
    except FileNotFoundError:
        text = ""
    try:
        arm(text)
    except ConfigError as error:
        _log.error("failpoints not armed file=%s reason=%r", os.environ[FILE_VARIABLE], str(error))


def disarm() -> None:
    """Arm none."""
    _armed.clear()
