"""Processes by name: start detached, record pid and start time, signal only what was started here.

A record outlives this program, so a later command finds the processes again; the start time guards against a pid
that the system has given to somebody else since.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from controlplane.base.errors import ConfigError, QuarterdeckError

__all__ = ["ProcessError", "Processes"]


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
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def log_path(self, name: str) -> Path:
        """Where a process's output goes."""
        return self._log_dir / f"{name}.log"

    def start(self, name: str, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> int:
        """Start a process in its own session; return its pid. A running one of that name is left as it is."""
        running = self.pid(name)
        if running is not None:
            return running
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._log_dir.mkdir(parents=True, exist_ok=True)
        try:
            with self.log_path(name).open("ab") as log:
                child = subprocess.Popen(
                    list(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(env),
                    cwd=cwd,
                    start_new_session=True,
                )
        except OSError as error:
            raise ConfigError(f"cannot start {name}: {error.strerror}: {error.filename}") from error
        self._children[name] = child
        record = {"pid": child.pid, "started_at": psutil.Process(child.pid).create_time(), "argv": list(argv)}
        temporary = self._record(name).with_suffix(".tmp")
        temporary.write_text(json.dumps(record))
        os.replace(temporary, self._record(name))
        return child.pid

    def pid(self, name: str) -> int | None:
        """The pid of a running process, or None."""
        process = self._process(name)
        return None if process is None else process.pid

    def names(self) -> list[str]:
        """Names with a record, running or not."""
        return sorted(path.stem for path in self._run_dir.glob("*.json"))

    def signal(self, name: str, signum: signal.Signals) -> bool:
        """Send a signal to the process; False if it is not running."""
        process = self._process(name)
        if process is None:
            return False
        try:
            process.send_signal(signum)
        except psutil.NoSuchProcess:
            return False
        self._reap(name)
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

    def log_tail(self, name: str, lines: int = 8) -> str:
        """The last lines of its log."""
        try:
            return "\n".join(self.log_path(name).read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "(no log)"

    def _record(self, name: str) -> Path:
        return self._run_dir / f"{name}.json"

    def _reap(self, name: str) -> None:
        child = self._children.get(name)
        if child is not None and child.poll() is not None:
            del self._children[name]

    def _process(self, name: str) -> psutil.Process | None:
        self._reap(name)
        try:
            record = json.loads(self._record(name).read_text())
            process = psutil.Process(record["pid"])
            if abs(process.create_time() - record["started_at"]) > 0.05 or process.status() == psutil.STATUS_ZOMBIE:
                return None
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None
        return process
