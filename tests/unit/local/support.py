"""Real, short-lived processes for the tests of ``controlplane.local``."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["ENVIRONMENT", "IGNORING_TERM", "SLEEPER", "script", "until", "zombie"]

ENVIRONMENT = {"PATH": os.environ["PATH"]}
SLEEPER = ["sleep", "60"]
#: Says "ready" when SIGTERM no longer ends it.
IGNORING_TERM = [
    sys.executable, "-ISc",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)",
]  # fmt: skip


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what another process does; there is no event for it. Fails after five seconds."""
    deadline = time.monotonic() + 5.0
    while not condition():
        assert time.monotonic() < deadline, f"not within 5 s: {what}"
        time.sleep(0.005)


def script(path: Path, body: str) -> str:
    """An executable shell script; its path."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def zombie() -> subprocess.Popen[bytes]:
    """A process that has ended and was not waited for. Wait for it when done."""
    child = subprocess.Popen(["true"])
    until(lambda: Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z", "a zombie")
    return child
