"""What ``make chaos`` does, with a few of its experiments: a cluster is started, each is judged, a table closes it."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.e2e.support import WEB, Qd

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PORT_BASE = 13650
NAMES = ["container-kill", "leader-kill", "leader-stop"]
HEADINGS = [
    "EXPERIMENT", "TRIALS", "WRITE GAP S", "VIP FAILED", "PODS RESTARTED", "REPLACED S", "NEW LEADER S", "LOST WRITES",
    "VERDICT", "DESIGN BAR S",
]  # fmt: skip


def test_a_set_that_holds_ends_0_with_a_table_and_reports_of_each(tmp_path: Path) -> None:
    qd = Qd(tmp_path)
    try:
        done = qd.run(
            "chaos", "all", "--seed", "5", "--port-base", str(PORT_BASE), "--apply", str(WEB),
            *(word for name in NAMES for word in ("--only", name)), timeout_s=220.0,
        )  # fmt: skip
        said = f"{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, said
        assert [f"{name}: PASS" in done.stdout for name in NAMES] == [True] * 3, said
        headings, *rows = done.stdout[done.stdout.index("EXPERIMENT ") :].splitlines()
        assert [name for name in HEADINGS if name not in headings] == []
        verdict, lost = headings.index("VERDICT"), headings.index("LOST WRITES")
        assert [row.split()[:2] for row in rows] == [[name, "1"] for name in NAMES], said
        assert [row[verdict:].split()[0] for row in rows] == ["PASS"] * 3, said
        assert all(row[lost:].startswith("0 of ") for row in rows), said
        assert "design bar: decides nothing" in done.stderr
        for name in NAMES:
            (folder,) = (qd.root / "chaos").glob(f"*-{name}")
            report = json.loads((folder / "report.json").read_text())
            (act,) = report["acts"]
            assert (report["verdict"], act["act"], act["seed"]) == ("PASS", name, "5")
            rules = {found["rule"]: found for found in act["findings"]}
            # Asked of every trial, and of every node: nothing was replaced that was there.
            assert rules["no pod evicted from a node that was there, or came back in time"]["checked"] == 3
            suites = ET.parse(folder / "junit.xml").getroot().findall("testsuite")
            assert [suite.get("name") for suite in suites] == [name, "the whole history"]
            assert {(suite.get("failures"), suite.get("errors")) for suite in suites} == {("0", "0")}
            assert sum(int(suite.get("tests", "0")) for suite in suites) == len(act["findings"]) + len(
                report["findings"]
            )
            assert name in (folder / "report.html").read_text()
    finally:
        qd.clean_up()
    assert qd.processes() == []
