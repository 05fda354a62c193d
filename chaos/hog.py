"""A process that takes memory and keeps it in use, for who breaks a machine by that: the local run, or a chaos agent.

Owns how it is taken and how much may be: never more than half of what is available, for an hour at most. Everything
here blocks: call it aside.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

import psutil

from chaos.fault import FaultError
from controlplane.local.processes import Processes

__all__ = ["HOG", "Hogs"]

MIB: Final = 1 << 20
#: Of what is available, at most so much is taken.
_SHARE_MAX: Final = 0.5
_FILLED_S: Final = 30.0
_POLL_S: Final = 0.1
#: Every page is written to once a second, by one copy inside the interpreter: a loop over half a gigabyte would take
#: a processor as well, and the processor is not what this is about.
HOG: Final = """
import os, sys, time
held = bytearray(int(sys.argv[1]))
ends = time.monotonic() + 3600
turn = 0
while time.monotonic() < ends and os.path.exists(sys.argv[2]):
    turn = (turn + 1) % 256
    held[::4096] = bytes([turn]) * len(range(0, len(held), 4096))
    print("filled", flush=True)
    time.sleep(1)
"""


class Hogs:
    """Those of one folder, by token; another process finds them again. They end when the folder is gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes = Processes(folder, folder)

    @staticmethod
    def refusal(mib: int) -> str | None:
        """Why so much is not taken now; None: it may be."""
        available = int(psutil.virtual_memory().available)
        if mib * MIB <= available * _SHARE_MAX:
            return None
        return f"{mib} MiB of memory: {available // MIB} MiB are available, and at most half of it is taken"

    def take(self, token: str, mib: int) -> None:
        """It is held when this returns.

        Raises:
            FaultError: too much is asked, or it cannot be had.
        """
        if (why := self.refusal(mib)) is not None:
            raise FaultError(why)
        argv = [sys.executable, "-c", HOG, str(mib * MIB), str(self._folder.resolve())]
        self._processes.start(token, argv, env={}, cwd=Path("/"))
        deadline_s = time.monotonic() + _FILLED_S
        while "filled" not in self._processes.log_tail(token):
            if time.monotonic() > deadline_s or self._processes.pid(token) is None:
                raise FaultError(f"{mib} MiB of memory could not be taken: {self._processes.log_tail(token)}")
            time.sleep(_POLL_S)

    def taken(self, token: str) -> int:
        """MiB that it holds now."""
        pid = self._processes.pid(token)
        try:
            return int(psutil.Process(pid).memory_info().rss) // MIB if pid is not None else 0
        except psutil.NoSuchProcess:
            return 0

    def release(self, token: str) -> None:
        """Give it back. Repeatable."""
        self._processes.stop([token])
        self._processes.log_path(token).unlink(missing_ok=True)
