"""What a run's folder gets: three files that say the same, and nothing in them that could act."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from chaos.history import Recorder
from chaos.records import Header, History, Mark
from chaos.report import bars_met, junit, matrix, write_all
from chaos.verdict import ActReport, Report, judge_history
from controlplane.base.clock import ManualClock
from controlplane.base.errors import ConfigError
from tests.unit.chaos.stories import SECOND
from tests.unit.chaos.test_verdict import played, tried

EVIL = "<script>alert('x')</script> $\\frac{1}{2}$ \x00"


def record(path: Path, history: History) -> None:
    with Recorder(path, Header("run", history.header.prefix, "2026-01-01T00:00:00Z", ["e1"]), ManualClock(1.0)) as file:
        for op in history.ops:
            file.op(op)
        for event in history.events:
            file.event(event)
        for listing in history.listings:
            file.listing(listing)
        for mark in history.marks:
            file._put("mark", mark)
        for at_s, leader, roles in ((1, "r1", {"r2": "follower"}), (2, "r2", {EVIL: "follower"})):
            seen = {"leader": leader, "term": at_s, "roles": {leader: "leader", **roles}}
            file._put("mark", Mark("isolate", 1, "seen", at_s * SECOND + at_s, seen))


def evil_run(folder: Path) -> None:
    history = tried(pods_restarted=2).history()
    history.marks = [
        replace(mark, detail={**mark.detail, "title": EVIL, "says": EVIL, "fault": EVIL, "victims": [EVIL]})
        for mark in history.marks
    ]
    history.ops[4] = replace(history.ops[4], outcome="fail", error=EVIL)
    history.ops[7] = replace(history.ops[7], key=EVIL)
    record(folder / "history.jsonl", history)
    (folder / "experiment.json").write_text(
        json.dumps({"title": EVIL, "seed": 7, "commit": EVIL, "machine": {"cpu": EVIL}})
    )
    (folder / "logs").mkdir()
    wall = "2023-11-14T22:13:20"
    (folder / "logs" / "r1.log").write_text(f"{wall}.500Z I x {EVIL}\nTraceback\n{wall}.900Z I x later\n")


def test_a_run_gets_json_junit_and_html(tmp_path: Path) -> None:
    record(tmp_path / "history.jsonl", tried().history())
    assert [path.name for path in write_all(tmp_path)] == ["report.json", "junit.xml", "report.html"]
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "PASS"
    html = (tmp_path / "report.html").read_text()
    assert "no acknowledged write lost" in html
    assert html.count("<svg") == 3
    assert "var(--leader)" in html


def test_nothing_in_a_page_comes_from_elsewhere_or_runs(tmp_path: Path) -> None:
    evil_run(tmp_path)
    write_all(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    for word in ("src=", "@import", "url(http", "<link", "javascript:"):
        assert word not in html, word
    ET.parse(tmp_path / "junit.xml")


def test_the_page_says_what_the_experiment_does_in_its_own_words(tmp_path: Path) -> None:
    record(tmp_path / "history.jsonl", tried().history())
    experiments = [{"name": "isolate", "title": "Isolate", "description": "The leader is <alone>."}, {"name": "other"}]
    (tmp_path / "experiment.json").write_text(json.dumps({"title": "Isolate", "experiments": experiments}))
    write_all(tmp_path)
    assert "<p>The leader is &lt;alone&gt;.</p>" in (tmp_path / "report.html").read_text()


def test_every_invariant_of_every_trial_is_a_test_case() -> None:
    suites = ET.fromstring(junit(judge_history(tried(pods_restarted=2).history())).encode())
    by_name = {suite.get("name"): suite for suite in suites}
    trial = by_name["isolate"]
    assert trial.get("failures") == "1"
    (failure,) = trial.iter("failure")
    assert failure.text == "2 restarted"
    assert int(by_name["the whole history"].get("tests", "0")) > 5
    properties = {p.get("name"): p.get("value") for p in trial.iter("property")}
    assert properties == {"seed": "7", "title": "Isolate"}


def test_what_is_inconclusive_is_an_error_in_junit() -> None:
    assert 'type="INCONCLUSIVE"' in junit(judge_history(tried(fault=False).history()))


def test_a_history_without_operations_still_gets_a_page(tmp_path: Path) -> None:
    with Recorder(tmp_path / "history.jsonl", Header("run", "/p/", "now", ["e1"]), ManualClock()):
        pass
    write_all(tmp_path)
    assert "INCONCLUSIVE" in (tmp_path / "report.html").read_text()


def test_a_folder_without_a_history_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        write_all(tmp_path)


def test_the_matrix_has_a_line_per_experiment() -> None:
    reports = [judge_history(made.history()) for made in (tried(), tried(pods_restarted=1), played("node-kill"))]
    lines = matrix(reports).splitlines()
    assert len(lines) == 3
    assert "FAIL 1/2" in lines[1]
    assert "0 of 126" in lines[1]
    assert "2.500 / 2.500 " in lines[2]
    assert lines[2].endswith("replaced 3 met")


def test_the_matrix_fits_a_wide_terminal_and_its_note_counts_the_bars() -> None:
    acts = [*_acts("snapshot-during-kill", 100.0, 20), *_acts("leader-kill", 0.2, 20), *_acts("node-kill", 0.2, 20)]
    report = Report("run", acts, [])
    assert max(map(len, matrix([report]).splitlines())) <= 160
    assert "write gap 0.1 missed / 0.3 met" in matrix([report])
    assert "1 of 2 met" in bars_met([report])  # node-kill has no time of its pods here: not measured


def _acts(name: str, gap_s: float, count: int) -> list[ActReport]:
    (made,) = judge_history(tried().history()).acts
    served = replace(made.served, longest_write_gap_s=gap_s, http_requests=99_999)
    return [replace(made, act=name, n=n, served=served, observed={"leader_s": 10.0}) for n in range(1, count + 1)]


def test_the_page_has_bars_beside_budgets(tmp_path: Path) -> None:
    record(tmp_path / "history.jsonl", played("node-kill").history())
    write_all(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "3.000 s met" in html
    assert "Beside the bars of the design" in html
    (bar,) = json.loads((tmp_path / "report.json").read_text())["bars"]
    assert bar == {
        "act": "node-kill", "number": "replaced", "statistic": "worst", "limit_s": 3.0, "measured_s": 2.5, "trials": 1,
        "met": True,
    }  # fmt: skip
