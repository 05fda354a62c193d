"""Hours of runs leave a bounded trace."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest

from chaos.cli_soak import Memory, cut_logs, keep_newest, memory, stretch_s, told, why
from chaos.findings import Finding, Verdict
from chaos.runner import Run
from chaos.verdict import Report
from tests.unit.chaos.faults.rig import FakeCluster


def test_only_the_newest_runs_are_kept(tmp_path: Path) -> None:
    folders = [tmp_path / f"{n}" for n in range(5)]
    for folder in folders:
        folder.mkdir()
        (folder / "history.jsonl").write_text("{}")
    keep_newest(folders, 2)
    assert [folder.name for folder in folders] == ["3", "4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_a_log_is_cut_under_its_writer(tmp_path: Path) -> None:
    big, small = tmp_path / "big.log", tmp_path / "small.log"
    small.write_text("kept")
    with big.open("ab") as writer:
        writer.write(b"x" * 100)
        writer.flush()
        cut_logs([big, small, tmp_path / "none.log"], 50)
        writer.write(b"after")
    assert big.read_bytes() == b"after"
    assert small.read_text() == "kept"


def test_memory_is_told_of_whoever_runs_and_for_how_long(tmp_path: Path) -> None:
    found = memory(cast(Any, FakeCluster(tmp_path)), time.time() + 600)
    assert list(found) == ["load"]  # this program; nobody of the fake cluster has a pid
    assert found["load"].mib > 1
    assert found["load"].runs_s >= 600
    assert told({"r1": Memory(120, 65.0)}) == "r1 120 MiB (1 min)"


@pytest.mark.parametrize(
    ("left_s", "first", "found_s"),
    [
        (8 * 3600, True, 300),
        (8 * 3600, False, 300),
        (430, False, 430),  # the last one takes the rest with it
        (149, False, 0),  # too little to prove anything
        (-20, False, 0),
        (120, True, 120),
        (18, True, 45),  # the only one: long enough for faults to meet
    ],
)
def test_no_stretch_of_a_soak_is_too_short_for_a_verdict(left_s: float, first: bool, found_s: float) -> None:
    assert stretch_s(left_s, 300, first=first) == found_s


def test_who_asks_for_short_stretches_has_them() -> None:
    assert stretch_s(3600, 15, first=True) == 15
    assert stretch_s(14, 15, first=False) == 0


def test_a_soak_that_ends_says_why_and_where_to_read() -> None:
    findings = [Finding("no pod restarted", Verdict.PASS, 3), Finding("steady load after", Verdict.FAIL, 1, 1, ("x",))]
    run = Run(Report("r", [], findings), Path("runs/1"), 7, "the load ended")
    assert why(run) == [
        "FAIL         steady load after (1 checked)\n             x",
        "cut short: the load ended",
        "report: runs/1/report.html",
    ]
