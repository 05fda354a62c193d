"""The drill in short: every disaster on one fleet; and a drill that is interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

_DRILL = [sys.executable, "-m", "chaos.drill", "--fleet-keys", "300", "--without-etcd"]


def _started(tmp_path: Path, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*_DRILL, *argv], env={**os.environ, "TMPDIR": str(tmp_path)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _left(tmp_path: Path) -> list[str]:
    """Whatever still runs in or for the drill's folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = [str(process.info["cwd"] or ""), *(process.info["cmdline"] or [])]
        if process.pid != os.getpid() and any(str(tmp_path) in word for word in words):
            found.append(" ".join(words)[:200])
    return found


def test_a_fleet_comes_back_from_every_disaster(tmp_path: Path) -> None:
    drill = _started(tmp_path, "--port-base", "13700")
    out, said = drill.communicate(timeout=220)
    assert drill.returncode == 0, out + said
    lines = [re.split(r" {2,}", line.rstrip()) for line in out.splitlines()]
    headings, rows = lines[0], {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[1:-1]}
    assert list(rows) == ["namespace deleted", "swapped live", "all replicas lost", "newest backup damaged"], out
    for name, row in rows.items():
        assert (row["VERDICT"], row["PODS RESTARTED"]) == ("PASS", "0"), name
        measured = {heading for heading in headings if row[heading].endswith(" s")}
        assert measured >= {"RECOVERY POINT", "RECOVERY TIME", "COMMAND"}, name
    assert "verdict: PASS (not compared with etcd: not asked for)" in out
    assert "0 of those after the swap lost" in said
    assert "the damaged snapshot was named, the one before it and the log were used" in said
    assert "6 objects came back" in said, "a Namespace, two ConfigMaps, a Service, a Deployment, a Pod"
    assert _left(tmp_path) == []


def test_an_interrupted_drill_leaves_nothing_running(tmp_path: Path) -> None:
    drill = _started(tmp_path, "--port-base", "13800", "--only", "all replicas lost")
    deadline_s = time.monotonic() + 60.0
    while not any("controlplane" in line for line in _left(tmp_path)):
        assert time.monotonic() < deadline_s, "nothing was started"
        assert drill.poll() is None
        time.sleep(0.1)
    drill.send_signal(signal.SIGINT)
    drill.communicate(timeout=120)
    assert drill.returncode == 130
    assert _left(tmp_path) == []
