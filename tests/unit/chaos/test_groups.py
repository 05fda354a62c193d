"""Control groups: a process that wants more than its share is throttled, and goes back to where it was."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chaos.groups import CpuGroup


# Where there are none, the fault stops and continues the process instead. In CI it must run.
@pytest.mark.skipif(
    CpuGroup.missing() is not None and "CI" not in os.environ, reason=f"no control groups: {CpuGroup.missing()}"
)
def test_a_busy_process_is_throttled_and_then_let_go() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            where = Path(f"/proc/{busy.pid}/cgroup").read_text()
            group = CpuGroup("qd-test-groups")
            group.throttle([busy.pid], 5)
            group.throttle([busy.pid], 5)  # the same again changes nothing
            deadline = time.monotonic() + 30
            while group.throttled() == 0:
                assert time.monotonic() < deadline, "never throttled"
                time.sleep(0.01)
            assert "qd-test-groups" in Path(f"/proc/{busy.pid}/cgroup").read_text()
            group.release()
            group.release()
            assert Path(f"/proc/{busy.pid}/cgroup").read_text() == where
            assert group.throttled() == 0
        finally:
            busy.kill()
