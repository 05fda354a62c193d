"""Processes by name: found again by who they are, stopped in good order, never somebody else's."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.base.errors import ConfigError
from controlplane.local import processes as processes_module
from controlplane.local.processes import ProcessError, Processes
from controlplane.local.procfs import boot_id, stat_of
from tests.unit.local.support import ENVIRONMENT, IGNORING_TERM, SLEEPER, until, zombie


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    before = set(processes_module._children)
    yield Processes(tmp_path / "run", tmp_path / "logs")
    for pid in set(processes_module._children) - before:  # also those whose records a test has spoilt
        child = processes_module._children.pop(pid)
        child.kill()
        child.wait()


def start(processes: Processes, name: str, argv: list[str]) -> int:
    return processes.start(name, argv, env=ENVIRONMENT, cwd=Path("/"))


def again(tmp_path: Path) -> Processes:
    """What a later command has: the records alone."""
    return Processes(tmp_path / "run", tmp_path / "logs")


def record(tmp_path: Path, name: str, **changed: object) -> None:
    path = tmp_path / "run" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_a_process_runs_in_a_session_of_its_own_with_the_environment_given(
    processes: Processes, tmp_path: Path
) -> None:
    pid = start(processes, "a", ["sh", "-c", "env; echo problem >&2; exec sleep 60"])
    assert os.getsid(pid) == pid
    until(lambda: "problem" in processes.log_tail("a"), "output in the log")
    assert not any(line.startswith("HOME=") for line in processes.log_tail("a", 100).splitlines())
    assert processes.log_path("a") == tmp_path / "logs" / "a.log"


def test_a_later_command_finds_it_and_starts_no_second(processes: Processes, tmp_path: Path) -> None:
    pid = start(processes, "a", SLEEPER)
    later = again(tmp_path)
    assert (later.names(), later.pid("a")) == (["a"], pid)
    assert start(later, "a", SLEEPER) == pid
    assert later.pid("b") is None


@pytest.mark.parametrize("changed", [{"start_ticks": 1}, {"boot_id": "another"}])
def test_a_pid_that_is_somebody_elses_by_now_is_left_alone(
    processes: Processes, tmp_path: Path, changed: dict[str, object]
) -> None:
    start(processes, "mine", SLEEPER)
    pid = start(processes, "other", SLEEPER)
    record(tmp_path, "mine", pid=pid, **changed)
    later = again(tmp_path)
    assert later.pid("mine") is None
    assert not later.signal("mine", signal.SIGKILL)
    assert later.stop(["mine"]) == []
    assert later.pid("other") == pid


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "start_ticks": 1, "boot_id": "b"}'])
def test_a_damaged_record_is_of_no_process(processes: Processes, tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.json").write_text(text)
    assert processes.pid("a") is None
    assert processes.stop(["a"]) == []
    assert processes.names() == []


def test_stop_ends_it_and_forgets_it(processes: Processes) -> None:
    pid = start(processes, "a", SLEEPER)
    assert processes.stop(["a", "never-started"]) == []
    assert processes.names() == []
    assert stat_of(pid) is None


def test_what_does_not_stop_in_time_is_killed_and_named(processes: Processes) -> None:
    start(processes, "stubborn", IGNORING_TERM)
    start(processes, "willing", SLEEPER)
    until(lambda: "ready" in processes.log_tail("stubborn"), "the signal handler")
    assert processes.stop(["stubborn", "willing"], timeout_s=0.1) == ["stubborn"]
    assert processes.pid("stubborn") is None


def test_a_paused_process_runs_and_can_be_stopped_without_killing(processes: Processes) -> None:
    pid = start(processes, "a", SLEEPER)
    assert processes.signal("a", signal.SIGSTOP)
    until(lambda: _state(pid) == "T", "the pause")
    assert processes.pid("a") == pid
    assert processes.stop(["a"], timeout_s=5.0) == []


def _state(pid: int) -> str:
    stat = stat_of(pid)
    return stat.state if stat else ""


def test_a_process_that_ended_does_not_run_even_before_anybody_waited_for_it(tmp_path: Path) -> None:
    child = zombie()
    try:
        stat = stat_of(child.pid)
        assert stat is not None
        assert not stat.alive
        (tmp_path / "run").mkdir()
        known = {"pid": child.pid, "start_ticks": stat.start_ticks, "boot_id": boot_id()}
        (tmp_path / "run" / "a.json").write_text(json.dumps(known))
        assert again(tmp_path).pid("a") is None
    finally:
        child.wait()


def test_our_own_ended_child_is_waited_for(processes: Processes) -> None:
    pid = start(processes, "a", ["true"])
    until(lambda: processes.pid("a") is None, "its end")
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_a_name_can_be_started_again_after_its_end_and_the_log_goes_on(processes: Processes) -> None:
    for word in ("one", "two"):
        start(processes, "a", ["echo", word])
        until(lambda: processes.pid("a") is None, "its end")
    assert processes.log_tail("a") == "one\ntwo"


def test_a_signal_to_nobody_says_so(processes: Processes) -> None:
    assert not processes.signal("a", signal.SIGTERM)


def test_waiting_for_an_end_that_does_not_come_is_an_error(processes: Processes) -> None:
    pid = start(processes, "a", SLEEPER)
    with pytest.raises(ProcessError, match=rf"a \(pid {pid}\) does not end"):
        processes.wait_gone("a", timeout_s=0.0)


def test_a_program_that_is_not_there_is_named(processes: Processes) -> None:
    with pytest.raises(ConfigError, match=r"cannot start a: No such file or directory: no-such-program"):
        start(processes, "a", ["no-such-program"])
    assert processes.names() == []


def test_the_tail_of_a_log_is_its_last_lines_whatever_its_size_and_bytes(processes: Processes) -> None:
    assert processes.log_tail("a") == "(no log)"
    log = processes.log_path("a")
    log.parent.mkdir()
    log.write_bytes(b"\xff" * 300_000 + b"\nlast but one\n\xffast\n")
    assert processes.log_tail("a", 2) == "last but one\n�ast"
    assert len(processes.log_tail("a", 3)) < 70_000
    log.write_bytes(b"")
    assert processes.log_tail("a") == ""


def test_start_times_are_the_kernels() -> None:
    own = stat_of(os.getpid())
    child = subprocess.Popen(SLEEPER)
    try:
        childs = stat_of(child.pid)
        assert own is not None
        assert childs is not None
        assert own.alive
        assert own.start_ticks <= childs.start_ticks
    finally:
        child.kill()
        child.wait()
    assert stat_of(child.pid) is None
    assert len(boot_id()) == 36


def test_a_record_of_a_newer_version_is_refused_for_its_process_may_run(processes: Processes, tmp_path: Path) -> None:
    start(processes, "a", SLEEPER)
    record(tmp_path, "a", version=2)
    with pytest.raises(ConfigError, match=r"a\.json: format version 2, this program reads up to 1; use the newer"):
        processes.pid("a")


def test_a_record_from_before_records_had_a_version_is_read(processes: Processes, tmp_path: Path) -> None:
    pid = start(processes, "a", SLEEPER)
    path = tmp_path / "run" / "a.json"
    old = json.loads(path.read_text())
    del old["version"]
    path.write_text(json.dumps(old))
    assert again(tmp_path).pid("a") == pid


#: Its first thread ends at once; another one holds the port for a moment more, as a thread inside the kernel does when
#: its process is killed.
_LATE_THREAD = """
import ctypes, socket, sys, threading, time, os
listening = socket.socket()
listening.bind(("127.0.0.1", 0))
listening.listen()
print(listening.getsockname()[1], flush=True)
threading.Thread(target=lambda: (time.sleep(0.5), os._exit(0))).start()
ctypes.CDLL(None).syscall(60, 0)  # exit(2): this thread alone
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of a system call")
def test_a_process_has_not_ended_while_one_of_its_threads_still_holds_its_port(processes: Processes) -> None:
    pid = start(processes, "a", [sys.executable, "-ISc", _LATE_THREAD])

    def first_thread_has_ended() -> bool:
        stat = stat_of(pid)
        return stat is not None and stat.state == "Z"

    until(first_thread_has_ended, "the end of the first thread")
    assert processes.pid("a") == pid
    processes.wait_gone("a")
    with socket.socket() as successor:
        successor.bind(("127.0.0.1", int(processes.log_tail("a"))))


_KILLED_BEFORE_IT_RECORDS = """
import os, pathlib, signal, sys
from controlplane.local import processes
started = []
popen = processes.subprocess.Popen
class Telling(popen):
    def __init__(self, *args, **named):
        super().__init__(*args, **named)
        print(self.pid, flush=True)
processes.subprocess.Popen = Telling
processes.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
folder = pathlib.Path(sys.argv[1])
argv = ["sh", "-c", f"touch {sys.argv[2]}; exec sleep 60"]
processes.Processes(folder / "run", folder / "logs").start(
    "a", argv, env={"PATH": os.environ["PATH"]}, cwd=folder, held=sys.argv[3] == "held"
)
"""


@pytest.mark.parametrize("held", ["held", "at once"])
def test_whoever_is_killed_between_starting_and_recording_leaves_nobody_behind(tmp_path: Path, held: str) -> None:
    mark = tmp_path / "it-ran"
    starter = subprocess.run(
        [sys.executable, "-c", _KILLED_BEFORE_IT_RECORDS, str(tmp_path), str(mark), held],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert starter.returncode == -signal.SIGKILL, starter.stderr
    pid = int(starter.stdout)
    until(lambda: (stat := stat_of(pid)) is None or not stat.alive, "the process ends by itself")
    assert not mark.exists()
    assert again(tmp_path).pid("a") is None
