"""Experiments can fail: replicas broken on purpose are found out, each by the experiment and the rule meant for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

import chaos.cli
from chaos.findings import Verdict
from chaos.runner import Run
from controlplane.cli.bring_up import bring_up
from controlplane.cli.main import cli
from controlplane.local.cluster import LocalCluster
from tests.broken import BUILDS, play, start
from tests.e2e.support import WEB

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


def test_reads_that_ask_nobody_go_back_in_time_when_a_leader_is_isolated_and_fail_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Behind relays, so that anybody can cut its links.
    build, root = BUILDS["stale-reads"], tmp_path / ".quarterdeck"
    cluster = start(build, root, port_base=13_250, hosts="links")

    async def broken_still(folder: Path, **wanted: Any) -> LocalCluster:
        found = await bring_up(folder, **wanted)
        found.sources = cluster.sources
        return found

    monkeypatch.setattr(chaos.cli, "bring_up", broken_still)
    names = ["container-kill", build.plays]
    try:
        done = CliRunner().invoke(
            cli, ["--folder", str(root), "chaos", "all", "--hosts=links", "--port-base=13250", "--seed=1",
                  f"--apply={WEB}", *(f"--only={name}" for name in names)],
        )  # fmt: skip
    finally:
        cluster.down()
    # One that fails is enough for the whole set, and is told by every report.
    assert done.exit_code == 1, done.output
    table = done.stdout[done.stdout.index("EXPERIMENT ") :].splitlines()
    assert [line.split()[0] for line in table[1:3]] == names, done.output
    assert " FAIL" in table[2], done.output
    folder = max((root / "chaos").glob(f"*-{build.plays}"))
    report = json.loads((folder / "report.json").read_text())
    assert report["verdict"] == "FAIL"
    assert build.because in {found["rule"] for found in report["findings"] if found["verdict"] == "FAIL"}
    cases = ET.parse(folder / "junit.xml").getroot().iter("testcase")
    assert build.because in {case.get("name") for case in cases if case.find("failure") is not None}
