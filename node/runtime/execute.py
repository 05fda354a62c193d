"""Run one command to its end: exec probes and hooks. Owns the command's process group and the start of its output."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence

from controlplane.base.aio import wait_event
from controlplane.base.clock import Clock
from node.runtime import procs
from node.runtime.base import ContainerRuntimeError, ExecResult, ExecTimeoutError

__all__ = ["run_command"]

_OUTPUT_BYTES_MAX = 4096


async def run_command(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: str, timeout_s: float, clock: Clock
) -> ExecResult:
    """Run a command in a group of its own; what is left of the group when it ends or its time is up is killed.

    Raises:
        ExecTimeoutError: it took longer than ``timeout_s`` seconds of ``clock``.
        ContainerRuntimeError: it could not be started.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    output = bytearray()
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)

    def collect() -> None:
        # Read to the end even when enough is kept: a full pipe would block the command.
        try:
            chunk = os.read(read_fd, 65536)
        except BlockingIOError:
            return
        if not chunk:
            loop.remove_reader(read_fd)
        output.extend(chunk[: _OUTPUT_BYTES_MAX - len(output)])

    try:
        try:
            pid = procs.spawn(argv, env=env, cwd=cwd, stdout=write_fd)
        except OSError as error:
            raise ContainerRuntimeError("ExecError", f"cannot run {argv[0]!r}: {error.strerror or error}") from error
        finally:
            os.close(write_fd)
        pidfd = os.pidfd_open(pid)
        loop.add_reader(read_fd, collect)
        loop.add_reader(pidfd, ended.set)
        try:
            in_time = await wait_event(ended, clock, timeout_s)
        finally:
            procs.kill_group(pid, signal.SIGKILL)
            await ended.wait()
            loop.remove_reader(pidfd)
            os.close(pidfd)
            outcome = procs.reap(pid)
            collect()
            loop.remove_reader(read_fd)
    finally:
        os.close(read_fd)
    if not in_time or outcome is None:
        raise ExecTimeoutError("ExecTimeout", f"command {argv[0]!r} did not end within {timeout_s:g} s")
    return ExecResult(exit_code=outcome[0], output=output.decode(errors="replace"))
