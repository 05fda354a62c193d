"""Control groups: a process that wants more than its share is throttled, and goes back to where it was."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chaos.fault import FaultError
from chaos.groups import CpuGroup
from controlplane.base.errors import ConfigError


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
            with pytest.raises(FaultError, match="throttled already, by qd-test-groups"):
                CpuGroup("qd-test-others").throttle([busy.pid], 50)
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


def test_a_group_has_a_name_that_tells_it_from_others() -> None:
    with pytest.raises(ConfigError, match="begins with qd-"):
        CpuGroup("system.slice")
