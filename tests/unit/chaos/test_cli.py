"""What a script can rely on: exit codes, JSON on standard output, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from chaos import cli as cli_module
from chaos import experiment
from chaos.findings import Verdict
from chaos.history import Recorder
from chaos.records import Header, History
from chaos.runner import Run
from chaos.steps import catalogue
from chaos.verdict import judge_history
from controlplane.base.clock import ManualClock
from controlplane.cli.main import cli
from tests.unit.chaos.stories import Story, change_row
from tests.unit.chaos.test_verdict import played


def qd(folder: Path, *argv: str) -> Result:
    return CliRunner().invoke(cli, ["--folder", str(folder / ".quarterdeck"), "chaos", *argv])


def write(path: Path, history: History) -> Path:
    """The history as a file."""
    header = Header("test", history.header.prefix, history.header.started_at, ["e1"])
    clock = ManualClock()
    with Recorder(path, header, clock) as recorder:
        for listing in history.listings:
            recorder.listing(listing)
        for op in history.ops:
            recorder.op(op)
        for event in history.events:
            recorder.event(event)
        for mark in history.marks:
            clock.advance(mark.at_ns / 1e9 - clock.monotonic())
            recorder.mark(mark.act, mark.n, mark.name, **mark.detail)
    return path


def test_a_history_that_holds_ends_0(tmp_path: Path) -> None:
    result = qd(tmp_path, "verify", str(write(tmp_path / "h.jsonl", played().history())))
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("verdict: PASS\n")


def test_a_history_that_does_not_ends_1(tmp_path: Path) -> None:
    history = played().history()
    change_row(history, history.of_kind("put")[3].key)
    result = qd(tmp_path, "verify", str(write(tmp_path / "h.jsonl", history)), "-o", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["verdict"] == "FAIL"


def test_a_history_that_proves_nothing_ends_4(tmp_path: Path) -> None:
    result = qd(tmp_path, "verify", str(write(tmp_path / "h.jsonl", Story().history())))
    assert result.exit_code == 4
    assert "verdict: INCONCLUSIVE" in result.stdout


def test_a_file_that_is_no_history_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_text("roses are red\n")
    result = qd(tmp_path, "verify", str(tmp_path / "poem.txt"))
    assert result.exit_code == 2
    assert "poem.txt is not a history" in result.stderr


def test_every_experiment_is_listed_with_what_it_does(tmp_path: Path) -> None:
    lines = qd(tmp_path, "list").stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == experiment.names()
    assert all(len(line.split()) > 4 for line in lines)


def test_experiments_and_faults_are_listed_for_programs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = json.loads(qd(tmp_path, "list", "-o", "json").stdout)
    assert [row["name"] for row in listed] == experiment.names()
    assert "set" in next(row["tags"] for row in listed if row["name"] == "leader-kill")
    faults = {row["name"]: row for row in json.loads(qd(tmp_path, "list", "--faults", "-o", "json").stdout)}
    assert faults["kill"]["aimed_at"] == "leader"
    assert faults["kill"]["possible"] is None  # no cluster here to ask


def test_every_experiment_can_be_described(tmp_path: Path) -> None:
    for name in experiment.names():
        result = qd(tmp_path, "describe", name)
        assert result.exit_code == 0, result.output
        assert "judged by:" in result.stdout


def test_every_fault_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = qd(tmp_path, "list", "--faults")
    assert result.exit_code == 0, result.output
    assert "kill" in result.stdout


def test_an_experiment_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    result = qd(tmp_path, "describe", "leader-kil")
    assert result.exit_code == 2
    assert "did you mean 'leader-kill'?" in result.stderr


def test_the_newest_run_is_reported_again_wherever_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / ".quarterdeck"
    assert "no run has been recorded here" in qd(tmp_path, "report").stderr
    runs = {
        "local": root / "chaos" / "20260101T000000.000000Z-leader-kill",
        "away": root / "remote" / "10.0.0.1-7399" / "chaos" / "20260102T000000.000000Z-leader-kill",
        "farther": root / "remote" / "10.0.0.9-7399" / "chaos" / "20260103T000000.000000Z-leader-kill",
    }
    for folder in runs.values():
        folder.mkdir(parents=True)
        write(folder / "history.jsonl", played().history())
    result = qd(tmp_path, "report")
    assert result.exit_code == 0, result.output
    assert str(runs["farther"] / "report.html") in result.stderr
    result = qd(tmp_path, "report", "--agents", "10.0.0.1:7399,10.0.0.2:7399")
    assert str(runs["away"] / "report.html") in result.stderr
    assert str(runs["local"] / "report.html") in qd(tmp_path, "report", str(runs["local"])).stderr
    assert "no run has been recorded here" in qd(tmp_path, "report", "--agents", "10.0.0.5:7399").stderr
    result = qd(tmp_path, "report", str(root))
    assert (result.exit_code, "is no run's folder" in result.stderr) == (2, True)


async def test_several_experiments_as_json_are_one_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever their verdicts; one experiment alone is one object."""
    reports = {"leader-kill": judge_history(played().history()), "pod-kill": judge_history(Story().history())}

    async def run(_cluster: object, chosen: list[experiment.Experiment], **wanted: object) -> Run:
        assert wanted["seed"] == 7
        return Run(reports[chosen[0].name], tmp_path, 7, "")

    monkeypatch.setattr(cli_module, "run_experiments", run)
    both = [experiment.read(name, catalogue()) for name in reports]
    cluster: Any = None  # the fake runner asks nothing of it
    assert await cli_module._play(cluster, both, 7, 1, 40.0, "json") is Verdict.INCONCLUSIVE
    shown = json.loads(capsys.readouterr().out)
    assert [report["verdict"] for report in shown] == ["PASS", "INCONCLUSIVE"]
    await cli_module._play(cluster, both[:1], 7, 1, 40.0, "json")
    assert json.loads(capsys.readouterr().out)["verdict"] == "PASS"


@pytest.mark.parametrize("argv", [("run", "leader-kill"), ("run", "disaster", "--repeat", "3")])
def test_without_a_cluster_nothing_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = qd(tmp_path, *argv)
    assert result.exit_code == 2
    assert "no local cluster here" in result.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ("run", "poetry"),
        ("run",),
        ("run", "leader-kill", "--all"),
        ("run", "leader-kill", "--repeat", "0"),
        ("run", "leader-kill", "--rate", "0"),
        ("soak", "--hours", "0"),
    ],
)
def test_what_is_not_possible_is_a_usage_error(tmp_path: Path, argv: tuple[str, ...]) -> None:
    assert qd(tmp_path, *argv).exit_code == 2


def test_of_the_set_only_what_is_in_it_before_anything_is_started(tmp_path: Path) -> None:
    result = qd(tmp_path, "all", "--only", "leader-kill", "--only", "agent-pause")
    assert result.exit_code == 2
    assert "--only agent-pause: not in the set; it has: clock-jump, container-kill," in result.output
    assert list(tmp_path.iterdir()) == []
