"""The ``process`` runtime: a container is a process group of the host. No root, no images, no isolation.

Owns the processes, their records and their directories. ``image: host`` means "a command of this machine"; every other
image is refused. Each container runs in a session of its own, so nothing sent to the agent's terminal reaches it, and
it outlives the agent: the next agent on the same state directory adopts it by its record.

How nothing is left behind: a run's end is seen through a pidfd of its first process (no polling, no SIGCHLD, and it
works for adopted processes, which are not our children). Then the whole group is killed *before* the leader is reaped,
while its number cannot be reused, and after that every process that carries the container's marker, which finds
daemons that left the group. Only when both are done is the run said to have ended.

Not isolated, and said so in the documentation: the network, the file system and other processes are the host's;
a memory limit is RLIMIT_AS (address space per process), a pod without a CPU request runs niced.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from controlplane.base.aio import wait_event
from controlplane.base.clock import Clock
from controlplane.base.rand import Rand
from controlplane.base.version import version
from node import logs
from node.layout import Layout, read_json, write_json
from node.runtime import procs
from node.runtime.base import (
    ContainerConfig,
    ContainerInfo,
    ContainerRuntimeError,
    CreateError,
    ExecResult,
    ImageError,
    SandboxConfig,
)
from node.runtime.execute import run_command
from node.runtime.record import ContainerRecord

__all__ = ["HOST_IMAGE", "ProcessRuntime"]

log = logging.getLogger("quarterdeck.runtime")

#: The one image this runtime has.
HOST_IMAGE = "host"
#: Exit code of a run whose end nobody saw (Kubernetes' choice).
UNKNOWN_EXIT_CODE = 137
#: What a shell says of a command that cannot be run.
START_ERROR_EXIT_CODE = 128

_SWEEP_ROUNDS_MAX = 10
#: A killed process that will not die (uninterruptible sleep) is waited for this long before saying so.
_KILL_WAIT_S = 5.0


class _Run:
    """One run in memory: its record and, while it lives, the pidfd that tells its end."""

    def __init__(self, record: ContainerRecord, config: ContainerConfig | None = None) -> None:
        self.record = record
        #: None for a run loaded from disk: it was started, or never will be.
        self.config = config
        #: We started it, so we reap it and learn its exit code.
        self.ours = False
        self.ended = asyncio.Event()
        self.pidfd = -1
        if record.finished_at_ms:
            self.ended.set()


class ProcessRuntime:
    """A :class:`~node.runtime.base.Runtime` of plain processes."""

    name = "process"
    version = version()

    def __init__(self, layout: Layout, *, clock: Clock, rand: Rand) -> None:
        self._layout = layout
        self._clock = clock
        self._rand = rand
        self._runs: dict[str, _Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        lost: list[_Run] = []
        for uid in self._layout.pod_uids():
            for run in self._load(uid):
                self._runs[run.record.id] = run
                if run.ended.is_set():
                    continue
                if run.record.pid and procs.is_alive(run.record.identity):
                    self._watch(run)
                    log.info("adopted pod=%s container=%s pid=%d", uid, run.record.name, run.record.pid)
                else:
                    lost.append(run)
        if lost:
            await self._sweep(frozenset(run.record.id for run in lost))
        for run in lost:
            self._set_ended(run, UNKNOWN_EXIT_CODE, 0, "ContainerStatusUnknown", "it ended while no agent watched it")

    def _load(self, uid: str) -> list[_Run]:
        runs = []
        for path in sorted(self._layout.records(uid).glob("[!.]*.json")):
            value = read_json(path)
            record = ContainerRecord.from_json(value) if value is not None else None
            if record is None or record.pod_uid != uid or self._layout.record(uid, record.id) != path:
                log.warning("unreadable record dropped path=%s", path)
                path.unlink()
                continue
            runs.append(_Run(record))
        return runs

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        for run in self._runs.values():
            if run.pidfd >= 0:
                loop.remove_reader(run.pidfd)
                os.close(run.pidfd)
                run.pidfd = -1
        if self._tasks:
            await asyncio.gather(*self._tasks)

    def check_image(self, image: str) -> None:
        if image != HOST_IMAGE:
            raise ImageError(
                "ErrImageNeverPull",
                f"image {image!r}: this node's runtime is 'process', which has no images and runs commands of the host "
                f"only (image: {HOST_IMAGE}); a node with the 'cri' runtime has images",
            )

    async def run_pod_sandbox(self, config: SandboxConfig) -> None:
        try:
            self._layout.records(config.uid).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ContainerRuntimeError("FailedCreatePodSandBox", f"pod directory: {error}") from error

    async def remove_pod_sandbox(self, uid: str) -> None:
        alive = [run.record.name for run in self._runs.values() if run.record.pod_uid == uid and not run.ended.is_set()]
        if alive:
            raise ContainerRuntimeError("FailedKillPod", f"containers still run: {', '.join(alive)}")
        self._runs = {key: run for key, run in self._runs.items() if run.record.pod_uid != uid}
        try:
            await asyncio.to_thread(shutil.rmtree, self._layout.pod(uid), ignore_errors=False)
        except FileNotFoundError:
            pass  # removed before
        except OSError as error:
            raise ContainerRuntimeError("FailedKillPod", f"pod directory: {error}") from error

    async def create_container(self, uid: str, config: ContainerConfig) -> str:
        self.check_image(config.image)
        if not config.argv:
            raise CreateError("CreateContainerError", "no command: the image 'host' has none of its own")
        own_dir = self._layout.container_dir(uid, config.name)
        log_path = self._layout.log(uid, config.name, config.attempt)
        try:
            own_dir.mkdir(parents=True, exist_ok=True)
            log_path.parent.mkdir(parents=True, exist_ok=True)
            for inside, target in config.links.items():
                _link(own_dir, inside, target)
        except OSError as error:
            raise CreateError("CreateContainerError", f"container directory: {error}") from error
        cwd = Path(config.working_dir) if config.working_dir else own_dir
        if not cwd.is_dir():
            raise CreateError(
                "CreateContainerError",
                f"workingDir {config.working_dir!r}: no such directory on this host (the process runtime has no image)",
            )
        record = ContainerRecord(
            id=self._rand.token(16).hex(),
            pod_uid=uid,
            name=config.name,
            attempt=config.attempt,
            image=config.image,
            log_path=str(log_path),
            cwd=str(cwd),
            stop_signal=config.stop_signal,
            created_at_ms=self._clock.wall_ms(),
        )
        run = _Run(record, config)
        try:
            self._save(run)
        except OSError as error:
            raise CreateError("CreateContainerError", f"container record: {error}") from error
        self._runs[record.id] = run
        return record.id

    async def start_container(self, container_id: str) -> ContainerInfo:
        run = self._run(container_id)
        config, record = run.config, run.record
        if config is None or record.pid:
            raise ContainerRuntimeError("RunContainerError", f"container {container_id} was started before")
        try:
            pid = _spawn(record, config)
        except OSError as error:
            what = f"{config.argv[0]!r}: {error.strerror or error}"
            self._set_ended(run, START_ERROR_EXIT_CODE, 0, "StartError", f"cannot run {what} (looked for on this host)")
            return run.record.info
        procs.limit(
            pid,
            memory_bytes_max=config.memory_bytes_max,
            open_files_max=config.open_files_max,
            nice=config.nice,
        )
        run.ours = True
        identity = procs.identity_of(pid)
        run.record = dataclasses.replace(
            record,
            pid=pid,
            pgid=pid,
            start_ticks=identity.start_ticks if identity else 0,
            boot_id=identity.boot_id if identity else "",
            started_at_ms=self._clock.wall_ms(),
        )
        self._watch(run)
        try:
            self._save(run)
        except OSError as error:
            # Without its record a later agent would not find it; it may not run.
            procs.kill_group(pid, signal.SIGKILL)
            raise CreateError("RunContainerError", f"container record: {error}") from error
        return run.record.info

    async def stop_container(self, container_id: str, grace_s: float) -> None:
        run = self._run(container_id)
        if not run.record.pid and not run.ended.is_set():
            self._set_ended(run, UNKNOWN_EXIT_CODE, 0, "Error", "stopped before it was started")
        if grace_s > 0 and self._signal(run, signal.Signals[run.record.stop_signal]):
            await wait_event(run.ended, self._clock, grace_s)
        while self._signal(run, signal.SIGKILL) and not await wait_event(run.ended, self._clock, _KILL_WAIT_S):
            log.warning("does not die pod=%s container=%s pid=%d", run.record.pod_uid, run.record.name, run.record.pid)
        await run.ended.wait()

    async def remove_container(self, container_id: str) -> None:
        run = self._run(container_id)
        if not run.ended.is_set():
            raise ContainerRuntimeError("RemoveContainerError", f"container {run.record.name} still runs")
        del self._runs[container_id]
        self._layout.record(run.record.pod_uid, container_id).unlink(missing_ok=True)
        for path in logs.generations(Path(run.record.log_path)):
            path.unlink(missing_ok=True)

    async def wait(self, container_id: str) -> ContainerInfo:
        run = self._run(container_id)
        await run.ended.wait()
        return run.record.info

    def status(self, container_id: str) -> ContainerInfo:
        return self._run(container_id).record.info

    def list_containers(self) -> Sequence[ContainerInfo]:
        return [run.record.info for run in self._runs.values()]

    async def exec_sync(self, container_id: str, argv: Sequence[str], timeout_s: float) -> ExecResult:
        record = self._run(container_id).record
        # Its environment is read back from the process itself, so that adopted containers have it too.
        env = procs.environment_of(record.pid) if record.pid else {}
        if not env:
            raise ContainerRuntimeError("ExecError", f"container {record.name} is not running")
        return await run_command(argv, env=env, cwd=record.cwd, timeout_s=timeout_s, clock=self._clock)

    async def rotate_logs(self, bytes_max: int, files_max: int) -> None:
        for run in list(self._runs.values()):
            if not run.ended.is_set():
                path = Path(run.record.log_path)
                await asyncio.to_thread(logs.rotate, path, bytes_max=bytes_max, files_max=files_max)

    # -- inside --------------------------------------------------------------------------------------------------

    def _run(self, container_id: str) -> _Run:
        try:
            return self._runs[container_id]
        except KeyError:
            raise ContainerRuntimeError("ContainerNotFound", f"no container {container_id}") from None

    def _save(self, run: _Run) -> None:
        write_json(self._layout.record(run.record.pod_uid, run.record.id), run.record.to_json())

    def _signal(self, run: _Run, signum: signal.Signals) -> bool:
        """Signal the group of a run; False if its first process has ended. While the pidfd is not readable the
        leader is not reaped, so the group's number is its own."""
        if run.ended.is_set() or run.pidfd < 0 or not run.record.pgid:
            return False
        return procs.kill_group(run.record.pgid, signum)

    def _watch(self, run: _Run) -> None:
        try:
            run.pidfd = os.pidfd_open(run.record.pid)
        except ProcessLookupError:  # adopted, and ended just now
            self._finish_soon(run)
            return
        asyncio.get_running_loop().add_reader(run.pidfd, self._on_exit, run)

    def _on_exit(self, run: _Run) -> None:
        asyncio.get_running_loop().remove_reader(run.pidfd)
        os.close(run.pidfd)
        run.pidfd = -1
        self._finish_soon(run)

    def _finish_soon(self, run: _Run) -> None:
        task = asyncio.get_running_loop().create_task(self._finish(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, run: _Run) -> None:
        record = run.record
        outcome = None
        if run.ours:
            procs.kill_group(record.pgid, signal.SIGKILL)
            outcome = procs.reap(record.pid)
        await self._sweep(frozenset((record.id,)))
        if outcome is None:
            why = "it was started by an earlier agent, so its exit code is not known"
            self._set_ended(run, UNKNOWN_EXIT_CODE, 0, "ContainerStatusUnknown", why)
            return
        exit_code, signum = outcome
        message = f"killed by {signal.Signals(signum).name}" if signum else ""
        self._set_ended(run, exit_code, signum, "Completed" if exit_code == 0 else "Error", message)

    async def _sweep(self, container_ids: frozenset[str]) -> None:
        """Kill what carries these markers, until nothing does: a process may fork while it is looked for."""
        for _ in range(_SWEEP_ROUNDS_MAX):
            if not await asyncio.to_thread(procs.kill_marked, container_ids):
                return
            await asyncio.sleep(0.01)
        log.error("processes keep appearing containers=%s", ",".join(sorted(container_ids)))

    def _set_ended(self, run: _Run, exit_code: int, signum: int, reason: str, message: str) -> None:
        run.record = dataclasses.replace(
            run.record,
            finished_at_ms=self._clock.wall_ms(),
            exit_code=exit_code,
            signal=signum,
            reason=reason,
            message=message,
        )
        try:
            self._save(run)
        except OSError as error:
            # Known in memory; a later agent would find the process gone and say "unknown".
            log.error("record not written pod=%s container=%s error=%s", run.record.pod_uid, run.record.name, error)
        run.ended.set()


def _spawn(record: ContainerRecord, config: ContainerConfig) -> int:
    env = {**config.env, procs.MARKER: record.id}
    with open(record.log_path, "ab") as output:
        return procs.spawn(config.argv, env=env, cwd=record.cwd, stdout=output.fileno())


def _link(own_dir: Path, inside: str, target: Path) -> None:
    link = own_dir / inside
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    link.symlink_to(target)
