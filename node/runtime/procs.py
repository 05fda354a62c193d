"""Processes as Linux shows them: identity that survives pid reuse, groups, markers, rlimits. Effects only, no policy.

A process is named by ``(pid, start time in clock ticks since boot, boot id)``: a pid alone may be somebody else's by
the time it is looked at again. Nothing here asks for privileges, and no child is reaped by anybody but
:func:`reap`, which is why processes are started by :func:`spawn` and not through asyncio's child watchers.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "MARKER",
    "Identity",
    "boot_id",
    "children_hear_signals",
    "environment_of",
    "identity_of",
    "is_alive",
    "kill_group",
    "kill_marked",
    "limit",
    "reap",
    "spawn",
]

#: In the environment of every process of a container; its value is the container's id. It finds what left the
#: process group (daemons that made a session of their own).
MARKER = "QD_CONTAINER_ID"


#: What Python itself ignores; subprocess gives children the default again.
_RESTORED = frozenset({signal.SIGPIPE, signal.SIGXFSZ})


@dataclass(frozen=True, slots=True)
class Identity:
    """A process, unmistakably."""

    pid: int
    start_ticks: int
    boot_id: str


def boot_id() -> str:
    """Names this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identity_of(pid: int) -> Identity | None:
    """The process's identity; None if there is none or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in brackets and may hold anything; after its last bracket: state is field 3.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        return None
    return Identity(pid=pid, start_ticks=int(fields[19]), boot_id=boot_id())


def is_alive(identity: Identity) -> bool:
    """Whether that very process still runs."""
    return identity_of(identity.pid) == identity


def children_hear_signals() -> None:
    """What this process was started to ignore (``nohup``, a shell's ``&``) it goes on ignoring, but its children do
    not: a container must hear its stop signal. Once, in the main thread.

    An ignored signal is inherited through exec, a handled one is not; so each gets a handler that does nothing.
    """
    for signum in signal.valid_signals():
        if signal.getsignal(signum) is signal.SIG_IGN and signum not in _RESTORED:
            signal.signal(signum, _nothing)


def _nothing(_signum: int, _frame: object) -> None:
    """Ignored, but not by the children."""


def spawn(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | str, stdout: int) -> int:
    """Start a process in a session and group of its own; return its pid. The caller reaps it.

    No code runs between fork and exec (no ``preexec_fn``): the agent has threads of gRPC, and a fork that runs Python
    could deadlock on their locks.

    Raises:
        OSError: it could not be started; ``filename`` says what was not found.
    """
    process = subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        env=dict(env),
        cwd=cwd,
        start_new_session=True,
    )
    process.returncode = 0  # reap() waits for it; the Popen object must not
    return process.pid


def limit(pid: int, *, memory_bytes_max: int, open_files_max: int, nice: int) -> None:
    """Set the limits of a process just started. 0 leaves a limit as it is.

    Set from outside just after exec, for the reason given in :func:`spawn`; what the process forks inherits them.
    """
    try:
        if memory_bytes_max:
            resource.prlimit(pid, resource.RLIMIT_AS, (memory_bytes_max, memory_bytes_max))
        if open_files_max:
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            most = open_files_max if hard == resource.RLIM_INFINITY else min(open_files_max, hard)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        if nice:
            os.setpriority(os.PRIO_PGRP, pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)
    except ProcessLookupError:
        pass  # it has ended already; its exit is reported as any other


def kill_group(pgid: int, signum: signal.Signals) -> bool:
    """Signal a process group; False if it is empty. Only for a group whose leader is not yet reaped."""
    try:
        os.killpg(pgid, signum)
    except ProcessLookupError:
        return False
    return True


def reap(pid: int) -> tuple[int, int] | None:
    """``(exit code, signal)`` of our ended child; None if it is not our child (an adopted process)."""
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if result is None:
        return None
    if result.si_code == os.CLD_EXITED:
        return result.si_status, 0
    return 128 + result.si_status, result.si_status


def environment_of(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty if it is gone or not ours to read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0") if entry)
    return {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}


def kill_marked(container_ids: frozenset[str]) -> int:
    """SIGKILL every process whose environment carries one of these ids; how many there were.

    Reads ``/proc`` of all processes: call it off the loop. A process that wiped its environment is not found here.
    """
    wanted = {f"{MARKER}={container_id}".encode() for container_id in container_ids}
    killed = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            descriptor = os.pidfd_open(int(entry.name))
        except (ProcessLookupError, OSError):
            continue  # ended, or a thread's number
        try:
            # The descriptor was opened first, so what is read and what is signalled are one process.
            raw = Path(f"/proc/{entry.name}/environ").read_bytes()
            if not wanted.isdisjoint(raw.split(b"\0")):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                killed += 1
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended meanwhile, or another user's: none of our containers is
        finally:
            os.close(descriptor)
    return killed
