"""Which process a pid is, beyond the number: /proc's start time and boot. Reads only.

A pid is given to somebody else after its process ends. Pid, start time in ticks since boot and boot id together name
one process for good, whatever happens to the wall clock.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ProcessStat", "began_s", "boot_id", "catches", "stat_of"]


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """``state`` is proc(5)'s letter (Z: ended, not yet waited for; T: stopped), of its first thread; ``start_ticks`` is
    since boot."""

    state: str
    start_ticks: int
    threads: int = 1

    @property
    def alive(self) -> bool:
        """Whether it has not ended. A stopped process lives; so does one whose first thread has ended while another,
        still inside the kernel, holds its files and ports: whoever starts a successor then finds the ports in use."""
        return self.state not in {"Z", "X"} or self.threads > 1


def boot_id() -> str:
    """The id of this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def began_s(pid: int) -> float:
    """When a process began, by the wall clock in seconds, to about a hundredth; infinite: there is no such process."""
    stat = stat_of(pid)
    if stat is None:
        return float("inf")
    lines = Path("/proc/stat").read_text().splitlines()
    booted_s = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
    return booted_s + stat.start_ticks / os.sysconf("SC_CLK_TCK")


def catches(pid: int, signum: int) -> bool:
    """Whether a process has a handler for a signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    mask = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(mask, 16) >> (signum - 1) & 1)


def stat_of(pid: int) -> ProcessStat | None:
    """Fields 3, 20 and 22 of /proc/PID/stat; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name, field 2, is in parentheses and may hold anything, also spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return ProcessStat(fields[0], int(fields[19]), int(fields[17]))
