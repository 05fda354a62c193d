"""Control groups of the kernel, for processes that shall have less: version 1 or 2, whichever holds the processor.

Owns groups directly under the hierarchy's root, named by their token; a process that heals needs nothing else. Members
go back to the root group, where processes started by hand are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chaos.fault import FaultError

__all__ = ["CpuGroup"]

_PERIOD_US: Final = 100_000
_V1: Final = Path("/sys/fs/cgroup/cpu")
_V2: Final = Path("/sys/fs/cgroup")


class CpuGroup:
    """A group that gets a share of one processor."""

    def __init__(self, token: str) -> None:
        self._v1 = (_V1 / "cpu.cfs_quota_us").exists() or (_V1 / "cgroup.procs").exists()
        self._root = _V1 if self._v1 else _V2
        self._group = self._root / token

    @staticmethod
    def missing() -> str | None:
        """Why there can be none; None: there can."""
        if os.geteuid() != 0:
            return "control groups need root"
        if (_V1 / "cgroup.procs").exists():
            return None if os.access(_V1, os.W_OK) else "control groups are read-only here"
        try:
            controllers = (_V2 / "cgroup.subtree_control").read_text().split()
        except OSError:
            return "this machine has no control groups"
        return None if "cpu" in controllers else "the root control group does not hand on the processor"

    def throttle(self, pids: Sequence[int], percent: int) -> None:
        """These get that much of one processor, together. Raises FaultError."""
        quota = max(1000, _PERIOD_US * percent // 100)
        try:
            self._group.mkdir(exist_ok=True)
            if self._v1:
                (self._group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
                (self._group / "cpu.cfs_quota_us").write_text(str(quota))
            else:
                (self._group / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
            for pid in pids:
                (self._group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise FaultError(f"control group {self._group}: {error.strerror or error}") from error

    def throttled(self) -> int:
        """How many periods ended before the members had what they wanted."""
        try:
            lines = (self._group / "cpu.stat").read_text().splitlines()
        except FileNotFoundError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith("nr_throttled ")), 0)

    def release(self) -> None:
        """Members go back; the group is gone. Repeatable. Raises FaultError."""
        try:
            for pid in (self._group / "cgroup.procs").read_text().split():
                try:
                    (self._root / "cgroup.procs").write_text(pid)
                except ProcessLookupError:
                    pass  # it ended meanwhile
            self._group.rmdir()
        except FileNotFoundError:
            pass  # released before, or never made
        except OSError as error:
            raise FaultError(f"control group {self._group}: {error.strerror or error}") from error
