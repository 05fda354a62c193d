"""Control groups of the kernel, version 1, for processes that shall have less of the processor.

Owns one group per token, made inside the group that each process is in, so that it goes back there and keeps its other
limits; whoever heals finds it by its name. Version 2 is not used: there a process is in one group for everything, and
to move it would take it from its service manager.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chaos.fault import FaultError
from controlplane.base.errors import ConfigError

__all__ = ["PREFIX", "CpuGroup"]

#: How the groups made here are told from everybody else's.
PREFIX: Final = "qd-"

_PERIOD_US: Final = 100_000
_ROOT: Final = Path("/sys/fs/cgroup/cpu")


class CpuGroup:
    """A group that gets a share of one processor. Raises FaultError: the kernel refused.

    Args:
        token: its name, which begins with :data:`PREFIX`.
    """

    def __init__(self, token: str) -> None:
        if not token.startswith(PREFIX):
            raise ConfigError(f"control group {token!r}: want a name that begins with {PREFIX}")
        self._token = token

    @staticmethod
    def missing() -> str | None:
        """Why there can be none; None: there can."""
        if os.geteuid() != 0:
            return "control groups need root"
        if not (_ROOT / "cpu.cfs_quota_us").exists() and not (_ROOT / "cgroup.procs").exists():
            return "this machine has no control groups of version 1 for the processor"
        return None if os.access(_ROOT, os.W_OK) else "control groups are read-only here"

    def throttle(self, pids: Sequence[int], percent: int) -> None:
        """These get that much of one processor; those of one group, together.

        Raises:
            FaultError: the kernel refused, or one is in such a group already: inside it this one could have no more,
                and the outer one could not be removed first.
        """
        quota = max(1000, _PERIOD_US * percent // 100)
        try:
            for pid in pids:
                now = _ROOT / _path_of(pid).lstrip("/")
                if now.name.startswith(PREFIX) and now.name != self._token:
                    raise FaultError(f"process {pid} is throttled already, by {now.name}: heal that first")
                group = now if now.name == self._token else now / self._token
                group.mkdir(exist_ok=True)
                (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota))
                (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise FaultError(f"control group {self._token}: {error.strerror or error}") from error

    def throttled(self) -> int:
        """How many periods ended before the members had what they wanted."""
        lines = [line for group in self._groups() for line in (group / "cpu.stat").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("nr_throttled "))

    def release(self) -> None:
        """Members go back, and the groups are gone. Repeatable."""
        try:
            for group in self._groups():
                for pid in (group / "cgroup.procs").read_text().split():
                    try:
                        (group.parent / "cgroup.procs").write_text(pid)
                    except ProcessLookupError:
                        pass  # it ended meanwhile
                group.rmdir()
        except OSError as error:
            raise FaultError(f"control group {self._token}: {error.strerror or error}") from error

    def _groups(self) -> list[Path]:
        return [Path(folder) / self._token for folder, names, _ in os.walk(_ROOT) if self._token in names]


def _path_of(pid: int) -> str:
    """The group that a process is in now. Raises OSError."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            return path
    return "/"
