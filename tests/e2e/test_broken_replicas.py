"""Experiments can fail: replicas broken on purpose are found out. The others of tests/broken are run by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.findings import Verdict
from tests.broken import BUILDS, play

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


async def test_a_log_that_lies_about_what_is_on_disk_loses_acknowledged_writes_in_a_power_cut(tmp_path: Path) -> None:
    said: list[str] = []
    found = await play(
        BUILDS["forgets-the-tail"], tmp_path / ".quarterdeck", port_base=13_150, hosts="loopback", say=said.append
    )
    assert found.verdict is Verdict.FAIL, "\n".join(said)
    broken = {f.rule for f in found.report.findings if f.verdict is Verdict.FAIL}
    # Either what was acknowledged is gone, or a replica finds that it should have it, and stops.
    stopped = any("not healed" in line for line in said)
    assert stopped or BUILDS["forgets-the-tail"].because in broken, "\n".join(said)
