"""Processes by name: start detached, record pid and start time, signal only what was started here.

A record outlives this program, so a later command finds the processes again; start time and boot guard against a pid
that the system has given to somebody else since (``procfs``). Nothing runs without a record: a process begins with a
shell that waits for a word, which comes when the record is written, and ends when the word cannot come any more. So
whenever this program is killed, what it started is on record or ends. Format version 1; records of version
0.1 do not say it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from controlplane.base.errors import ConfigError, QuarterdeckError
from controlplane.local.procfs import boot_id, stat_of

__all__ = ["ProcessError", "Processes"]


#: What this program started and has not waited for, by pid. Of the program, not of one Processes: whoever looks next
#: waits for what has ended, and what outlives us is meant to.
_children: dict[int, subprocess.Popen[bytes]] = {}
#: Of a record. One of a newer version is refused: to take its process for one that does not run would start a second.
_FORMAT_VERSION = 1
#: What is read of a log for its last lines, whatever its size.
_TAIL_BYTES_MAX = 64 * 1024
#: The shell, which becomes the program: same pid, same start time.
_WHEN_RECORDED = ("/bin/sh", "-c", 'read -r word && exec "$@" </dev/null', "sh")
_WHEN_RECORDED_AND_HELD = ("/bin/sh", "-c", 'read -r word && exec "$@"', "sh")


class ProcessError(QuarterdeckError):
    """A process did not start, or ended when it should not have. The message ends with its last log lines."""


class Processes:
    """The processes recorded in one folder.

    Args:
        run_dir: where the records are kept.
        log_dir: where standard output and error of each process go, appended.
    """

    def __init__(self, run_dir: Path, log_dir: Path) -> None:
        self._run_dir = run_dir
        self._log_dir = log_dir

    def log_path(self, name: str) -> Path:
        """Where a process's output goes."""
        return self._log_dir / f"{name}.log"

    def start(self, name: str, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, held: bool = False) -> int:
        """Start a process in its own session; return its pid. A running one of that name is left as it is. One that is
        ``held`` waits, if its program does that, for a line on its standard input (:meth:`release`)."""
        running = self.pid(name)
        if running is not None:
            return running
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._log_dir.mkdir(parents=True, exist_ok=True)
        if shutil.which(argv[0], path=env.get("PATH", os.defpath)) is None:
            raise ConfigError(f"cannot start {name}: {os.strerror(errno.ENOENT)}: {argv[0]}")
        first = _WHEN_RECORDED_AND_HELD if held else _WHEN_RECORDED
        try:
            with self.log_path(name).open("ab") as log:
                child = subprocess.Popen(
                    [*first, *argv],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(env),
                    cwd=cwd,
                    start_new_session=True,
                )
        except OSError as error:
            raise ConfigError(f"cannot start {name}: {error.strerror}: {error.filename}") from error
        _children[child.pid] = child
        stat = stat_of(child.pid)
        assert stat is not None  # even if it has ended: it is our child, and not waited for yet
        record = {
            "version": _FORMAT_VERSION,
            "pid": child.pid,
            "start_ticks": stat.start_ticks,
            "boot_id": boot_id(),
            "argv": list(argv),
        }
        temporary = self._record(name).with_suffix(".tmp")
        temporary.write_text(json.dumps(record))
        os.replace(temporary, self._record(name))
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # ended meanwhile: for others to notice
            child.stdin.write(b"recorded\n")
            child.stdin.flush()
        if not held:
            _close(child)
        return child.pid

    def release(self, name: str) -> None:
        """Let a process that was started ``held`` go on. One that has ended meanwhile is for others to notice."""
        child = _children.get(self.pid(name) or 0)
        if child is not None and child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(b"start\n")
            _close(child)

    def pid(self, name: str) -> int | None:
        """The pid of a running process, or None. One that is stopped (SIGSTOP) runs; one that has ended does not.

        Raises:
            ConfigError: a newer version wrote the record.
        """
        try:
            record = json.loads(self._record(name).read_text())
            version = int(record.get("version", 1))
            if version > _FORMAT_VERSION:
                raise ConfigError(
                    f"{self._record(name)}: format version {version}, this program reads up to {_FORMAT_VERSION}; use "
                    f"the newer program that started {name}"
                )
            pid, start_ticks, boot = int(record["pid"]), record["start_ticks"], record["boot_id"]
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError):
            return None  # cut short by a crash of the machine, which no process outlived
        stat = stat_of(pid)
        runs = stat is not None and stat.alive and stat.start_ticks == start_ticks and boot == boot_id()
        # Looked at first and waited for second: who ends in between is waited for at the next look.
        child = _children.get(pid)
        if child is not None and child.poll() is not None:
            del _children[pid]
            _close(child)
            return None
        return pid if runs else None

    def names(self) -> list[str]:
        """Names with a record, running or not."""
        return sorted(path.stem for path in self._run_dir.glob("*.json"))

    def signal(self, name: str, signum: signal.Signals) -> bool:
        """Send a signal to the process; False if it is not running."""
        pid = self.pid(name)
        if pid is None:
            return False
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            return False  # it ended between the look and the signal
        return True

    def stop(self, names: Sequence[str], *, timeout_s: float = 10.0) -> list[str]:
        """SIGTERM all, wait, SIGKILL what is left. Returns the names that had to be killed."""
        for name in names:
            # A stopped (SIGSTOP) process cannot act on SIGTERM until it goes on.
            if self.signal(name, signal.SIGTERM):
                self.signal(name, signal.SIGCONT)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and any(self.pid(name) for name in names):
            time.sleep(0.02)
        killed = [name for name in names if self.signal(name, signal.SIGKILL)]
        for name in names:
            self.wait_gone(name)
            self._record(name).unlink(missing_ok=True)
        return killed

    def wait_gone(self, name: str, *, timeout_s: float = 5.0) -> None:
        """Return once the process has ended (after SIGKILL: at once).

        Raises:
            ProcessError: it is still there.
        """
        deadline = time.monotonic() + timeout_s
        while self.pid(name) is not None:
            if time.monotonic() > deadline:
                raise ProcessError(f"{name} (pid {self.pid(name)}) does not end")
            time.sleep(0.01)

    def log_tail(self, name: str, lines: int = 8, bytes_max: int = _TAIL_BYTES_MAX) -> str:
        """The last lines of its log, of so many bytes at most."""
        try:
            with self.log_path(name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - bytes_max))
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])

    def _record(self, name: str) -> Path:
        return self._run_dir / f"{name}.json"


def _close(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # what is left in it, for a process that has ended
            child.stdin.close()
        child.stdin = None
