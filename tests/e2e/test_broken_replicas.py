"""Experiments can fail: replicas broken on purpose are found out, each by the experiment and the rule meant for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.findings import Verdict
from chaos.runner import Run
from tests.broken import BUILDS, play

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


async def played(name: str, root: Path, *, port_base: int, hosts: str) -> tuple[Run, list[str]]:
    said: list[str] = []
    found = await play(BUILDS[name], root / ".quarterdeck", port_base=port_base, hosts=hosts, say=said.append)
    assert found.verdict is Verdict.FAIL, "\n".join(said)
    return found, said


def broken_rules(found: Run) -> set[str]:
    rules = [*found.report.findings, *(finding for act in found.report.acts for finding in act.findings)]
    return {finding.rule for finding in rules if finding.verdict is Verdict.FAIL}


async def test_a_log_that_lies_about_what_is_on_disk_loses_acknowledged_writes_in_a_power_cut(tmp_path: Path) -> None:
    found, said = await played("forgets-the-tail", tmp_path, port_base=13_150, hosts="loopback")
    # Either what was acknowledged is gone, or a replica finds that it should have it, and stops.
    stopped = any("not healed" in line for line in said)
    assert stopped or BUILDS["forgets-the-tail"].because in broken_rules(found), "\n".join(said)


async def test_reads_that_ask_nobody_go_back_in_time_when_a_leader_is_isolated(tmp_path: Path) -> None:
    # Behind relays, so that anybody can cut its links.
    found, said = await played("stale-reads", tmp_path, port_base=13_250, hosts="links")
    assert BUILDS["stale-reads"].because in broken_rules(found), "\n".join(said)
