"""`make bench` as a command: what it measures, writes and leaves behind. How fast anything is, is not looked at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.support import REPOSITORY, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.needs("etcd", "etcd-server"),
    pytest.mark.needs("etcdctl", "etcd-client"),
]

PORT_BASE = 30700
BENCH = [sys.executable, "-m", "chaos.bench", "--port-base", str(PORT_BASE), "--rounds", "1", "--seconds", "1"]


def nothing_runs() -> None:
    """No process was told of the ports."""
    wait_until(lambda: subprocess.run(["pgrep", "-f", "127.0.0.1:3[01]7[0-9][0-9]"], check=False).returncode == 1, 10)


def test_a_case_is_measured_on_both_and_written_down(tmp_path: Path) -> None:
    out = tmp_path / "benchmarks.md"
    done = subprocess.run(
        [*BENCH, "--only", "mixed", "--out", str(out)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "[1/2, about" in done.stderr
    row = next(line for line in out.read_text().splitlines() if "clients: throughput" in line)
    ours, etcd = (float(cell.split()[0].replace(",", "")) for cell in row.split("|")[2:4])
    assert min(ours, etcd) > 10
    nothing_runs()


def test_ctrl_c_writes_what_there_is_and_leaves_nothing_running(tmp_path: Path) -> None:
    out, log = tmp_path / "benchmarks.md", tmp_path / "log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*BENCH, "--only", "mixed", "--only", "gaps", "--out", str(out)], cwd=REPOSITORY, stderr=output,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    try:
        wait_until(lambda: "write gap, kill -9" in log.read_text() or child.poll() is not None, 100)
        os.kill(child.pid, signal.SIGINT)
        assert child.wait(60) == 130, log.read_text()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    text = out.read_text()
    assert "- the rest: the run was interrupted" in text
    assert "clients: throughput" in text
    nothing_runs()
