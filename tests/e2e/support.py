"""The real ``qd`` on a folder of its own, and the question whether anything of it still runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
WEB = REPOSITORY / "examples" / "web.yaml"
QD = Path(sys.executable).with_name("qd")


class Qd:
    """``qd`` with its cluster under ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / ".quarterdeck"
        self.environment = {**os.environ, "QD_FOLDER": str(self.root), "COLUMNS": "200"}
        self.environment.pop("QD_ENDPOINTS", None)

    def run(self, *argv: str, timeout_s: float = 100.0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [str(QD), *argv],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def ok(self, *argv: str, timeout_s: float = 100.0) -> subprocess.CompletedProcess[str]:
        """Run a command that must succeed."""
        done = self.run(*argv, timeout_s=timeout_s)
        assert done.returncode == 0, f"qd {' '.join(argv)} ended {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def interrupted(self, *argv: str, when: Callable[[str], bool], timeout_s: float = 60.0) -> tuple[int, str]:
        """Run a command, send it one Ctrl-C when its standard error so far fulfils the condition; exit code and that
        output."""
        log = self.folder / "interrupted.log"
        with log.open("wb") as output:
            child = subprocess.Popen(
                [str(QD), *argv], cwd=self.folder, env=self.environment, stdout=output, stderr=output
            )
        try:
            wait_until(lambda: when(log.read_text()) or child.poll() is not None, timeout_s)
            assert child.poll() is None, f"it ended before it was interrupted:\n{log.read_text()}"
            child.send_signal(signal.SIGINT)
            return child.wait(timeout_s), log.read_text()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()

    def status(self) -> dict[str, Any]:
        """``qd status -o json``."""
        found: dict[str, Any] = json.loads(self.run("status", "-o", "json").stdout)
        return found

    def processes(self) -> list[str]:
        """Command lines of everything that runs for this folder: it works in it, or was told of it."""
        mine = str(self.folder)
        found = []
        for process in psutil.process_iter(["cmdline", "cwd", "status"]):
            words = process.info["cmdline"] or []
            in_folder = str(process.info["cwd"] or "").startswith(mine)
            if process.info["status"] == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            if in_folder or any(mine in word for word in words):
                found.append(f"{process.pid}: {' '.join(words)[:200]}")
        return found

    def clean_up(self) -> None:
        """Stop what a failed test left."""
        if (self.root / "cluster.json").is_file():
            self.run("local", "down", "--destroy")


def wait_until(holds: Callable[[], bool], timeout_s: float) -> None:
    """Return once it holds; AssertionError if it does not in time."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s"
        time.sleep(0.02)
