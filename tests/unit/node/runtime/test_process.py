"""The process runtime with real processes: groups, ends, leftovers, adoption, limits."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.base.clock import SystemClock
from controlplane.base.rand import SeededRand
from node.layout import Layout, read_json
from node.runtime import procs
from node.runtime.base import (
    ContainerConfig,
    ContainerInfo,
    ContainerRuntimeError,
    ContainerState,
    CreateError,
    ExecTimeoutError,
    ImageError,
    SandboxConfig,
)
from node.runtime.process import ProcessRuntime
from tests.unit.node.support import eventually, python

UID = "uid-a"


async def run(runtime: ProcessRuntime, *argv: str, attempt: int = 0, **fields: object) -> ContainerInfo:
    await runtime.run_pod_sandbox(SandboxConfig(UID, "default", "a", "a", "127.130.1.2"))
    env = {"PATH": os.environ["PATH"], "POD_IP": "127.130.1.2"}
    config = dataclasses.replace(ContainerConfig("main", attempt, "host", argv, env), **fields)  # type: ignore[arg-type]
    return await runtime.start_container(await runtime.create_container(UID, config))


def alive(pid: int) -> bool:
    return procs.identity_of(pid) is not None


def _bytes(path: str) -> bytes:
    return Path(path).read_bytes()


async def said(info: ContainerInfo, wanted: str = "\n") -> str:
    await eventually(lambda: wanted in info.log_path.read_text())
    return info.log_path.read_text()


async def test_a_run_has_its_own_directory_environment_log_and_session(
    process_runtime: ProcessRuntime, layout: Layout
) -> None:
    code = (
        "import os, sys\nprint(os.getcwd(), sorted(os.environ), os.getsid(0) == os.getpid())\n"
        "print('err', file=sys.stderr)"
    )
    info = await run(process_runtime, *python(code))
    ended = await process_runtime.wait(info.id)
    assert (ended.exit_code, ended.reason, ended.state) == (0, "Completed", ContainerState.EXITED)
    text = info.log_path.read_text()
    assert str(layout.container_dir(UID, "main")) in text
    assert "['LC_CTYPE', 'PATH', 'POD_IP', 'QD_CONTAINER_ID'] True" in text
    assert "err\n" in text


async def test_an_exit_code_and_a_signal_are_told(process_runtime: ProcessRuntime) -> None:
    ended = await process_runtime.wait((await run(process_runtime, "sh", "-c", "exit 3")).id)
    assert (ended.exit_code, ended.signal, ended.reason) == (3, 0, "Error")
    ended = await process_runtime.wait((await run(process_runtime, "sh", "-c", "kill -SEGV $$", attempt=1)).id)
    assert (ended.exit_code, ended.signal) == (139, 11)


async def test_a_command_that_does_not_exist_is_a_start_error(process_runtime: ProcessRuntime) -> None:
    info = await run(process_runtime, "no-such-command")
    assert (info.state, info.reason, info.exit_code) == (ContainerState.EXITED, "StartError", 128)
    assert "no-such-command" in info.message


async def test_what_a_container_leaves_behind_is_killed_with_it(process_runtime: ProcessRuntime) -> None:
    # A child in the group, and a daemon that made a session of its own.
    script = "sleep 300 & echo $!; setsid sleep 300 & sleep 0.2; echo $!; exit 0"
    info = await run(process_runtime, "sh", "-c", script)
    await process_runtime.wait(info.id)
    pids = [int(line) for line in info.log_path.read_text().split()]
    assert len(pids) == 2
    await eventually(lambda: not any(alive(pid) for pid in pids))


async def test_stop_asks_and_then_kills_the_whole_group(process_runtime: ProcessRuntime) -> None:
    info = await run(process_runtime, "sh", "-c", "trap 'echo asked' TERM; sleep 300 & echo $!; while :; do wait; done")
    child = int((await said(info)).split()[0])
    await process_runtime.stop_container(info.id, 0.3)
    ended = process_runtime.status(info.id)
    assert (ended.exit_code, ended.signal) == (137, 9)
    assert "asked" in info.log_path.read_text()
    assert not alive(child)
    assert not alive(info.pid)


async def test_stop_is_quick_when_the_container_goes_by_itself(process_runtime: ProcessRuntime) -> None:
    info = await run(process_runtime, "sleep", "300", stop_signal="SIGINT")
    await process_runtime.stop_container(info.id, 60)
    assert process_runtime.status(info.id).signal == signal.SIGINT


def test_a_container_hears_a_stop_signal_that_its_agent_was_started_to_ignore(tmp_path: Path) -> None:
    """As from a shell's `&`, or under nohup."""
    spawning = """
import signal, sys, time
from node.runtime import procs
for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    signal.signal(signum, signal.SIG_IGN)
procs.children_hear_signals()
signal.raise_signal(signal.SIGHUP)  # it goes on ignoring it itself
pid = procs.spawn([sys.executable, "-c", sys.argv[1]], env={}, cwd="/", stdout=1)
"""
    telling = "import signal; print([signal.getsignal(s) == signal.SIG_IGN for s in (2, 3, 1)])"
    done = subprocess.run(
        [sys.executable, "-c", spawning, telling], cwd=Path(__file__).parents[4], stdout=subprocess.PIPE, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"[False, False, False]\n")


async def test_only_the_host_image_is_run(process_runtime: ProcessRuntime) -> None:
    with pytest.raises(ImageError, match=r"'process'.*'cri' runtime has images"):
        process_runtime.check_image("nginx")


async def test_a_working_dir_that_does_not_exist_is_refused(process_runtime: ProcessRuntime) -> None:
    with pytest.raises(CreateError, match="/no/such"):
        await run(process_runtime, "true", working_dir="/no/such")


async def test_limits_are_set(process_runtime: ProcessRuntime) -> None:
    code = (
        "import resource,os,time; time.sleep(0.2)\n"
        "print(resource.getrlimit(resource.RLIMIT_AS)[0], resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.nice(0))"
    )
    base = os.nice(0)
    info = await run(process_runtime, *python(code), memory_bytes_max=2**30, open_files_max=100, nice=3)
    await process_runtime.wait(info.id)
    assert info.log_path.read_text().split() == [str(2**30), "100", str(min(base + 3, 19))]


async def test_a_record_says_how_to_find_its_processes(process_runtime: ProcessRuntime, layout: Layout) -> None:
    info = await run(process_runtime, "sleep", "300")
    record = read_json(layout.record(UID, info.id))
    assert record is not None
    identity = procs.identity_of(info.pid)
    assert identity is not None
    assert (record["pid"], record["pgid"], record["start_ticks"], record["boot_id"], record["finished_at_ms"]) == (
        info.pid,
        info.pid,
        identity.start_ticks,
        identity.boot_id,
        0,
    )
    assert os.getpgid(info.pid) == info.pid


async def test_the_next_runtime_adopts_what_runs_and_sees_its_end(
    process_runtime: ProcessRuntime, layout: Layout
) -> None:
    info = await run(process_runtime, "sleep", "300")
    await process_runtime.close()
    later = ProcessRuntime(layout, clock=SystemClock(), rand=SeededRand(2))
    await later.start()
    assert later.status(info.id).state is ContainerState.RUNNING
    assert later.status(info.id).pid == info.pid
    result = await later.exec_sync(info.id, ["sh", "-c", "echo $POD_IP"], 5)
    assert (result.exit_code, result.output) == (0, "127.130.1.2\n")
    await later.stop_container(info.id, 1)
    ended = later.status(info.id)
    # Our own child still, only to a runtime that does not know: it was not its start.
    assert (ended.exit_code, ended.reason) == (137, "ContainerStatusUnknown")
    assert procs.reap(info.pid) == (143, 15)
    await later.close()
    process_runtime._runs.clear()


async def test_a_process_whose_pid_went_to_somebody_else_is_not_adopted(
    process_runtime: ProcessRuntime, layout: Layout
) -> None:
    info = await run(process_runtime, "sleep", "300")
    await process_runtime.stop_container(info.id, 0)
    path = layout.record(UID, info.id)
    record = read_json(path)
    assert record is not None
    # The record of a run that was going when its agent died; its number now belongs to this very test.
    path.write_text(json.dumps({**record, "pid": os.getpid(), "pgid": os.getpid(), "finished_at_ms": 0}))
    later = ProcessRuntime(layout, clock=SystemClock(), rand=SeededRand(2))
    await later.start()
    assert later.status(info.id).reason == "ContainerStatusUnknown"
    await later.close()


async def test_exec_has_a_time_and_leaves_nothing(process_runtime: ProcessRuntime) -> None:
    info = await run(process_runtime, "sleep", "300")
    with pytest.raises(ExecTimeoutError, match=r"0\.2 s"):
        await process_runtime.exec_sync(info.id, [sys.executable, "-ISc", "import time; time.sleep(60)"], 0.2)
    result = await process_runtime.exec_sync(info.id, ["sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x; exit 4"], 10)
    assert (result.exit_code, len(result.output)) == (4, 4096)
    with pytest.raises(ContainerRuntimeError, match="cannot run"):
        await process_runtime.exec_sync(info.id, ["no-such-command"], 1)


async def test_logs_rotate_under_a_running_process(process_runtime: ProcessRuntime) -> None:
    info = await run(process_runtime, "sh", "-c", "while :; do echo 0123456789012345678901234567890123456789; done")
    await eventually(lambda: info.log_path.stat().st_size > 5000)
    await process_runtime.rotate_logs(4096, 2)
    assert len(_bytes(f"{info.log_path}.1")) > 4096
    await said(info)


async def test_a_pods_room_is_removed_only_when_nothing_runs_in_it(
    process_runtime: ProcessRuntime, layout: Layout
) -> None:
    info = await run(process_runtime, "sleep", "300")
    with pytest.raises(ContainerRuntimeError, match="main"):
        await process_runtime.remove_pod_sandbox(UID)
    await process_runtime.stop_container(info.id, 0)
    await process_runtime.remove_pod_sandbox(UID)
    assert not layout.pod(UID).exists()
    assert process_runtime.list_containers() == []
