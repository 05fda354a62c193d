"""What the design asks, held against trials; it decides nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chaos.bars import BARS, held, word_of
from chaos.experiment import names
from chaos.findings import Finding, Verdict
from chaos.report import render
from chaos.verdict import ActReport, Report, judge_history
from tests.unit.chaos.test_verdict import tried


def trials(name: str, *gaps_s: float) -> list[ActReport]:
    (made,) = judge_history(tried().history()).acts
    return [
        replace(made, act=name, n=n, served=replace(made.served, longest_write_gap_s=gap_s))
        for n, gap_s in enumerate(gaps_s, start=1)
    ]


def test_every_bar_is_of_an_experiment_there_is_and_documented() -> None:
    docs = (Path(__file__).parents[3] / "docs" / "chaos.md").read_text()
    assert set(BARS) <= set(names())
    for name, bars in BARS.items():
        (line,) = [line for line in docs.splitlines() if line.startswith(f"| `{name}` |") and " bar is " in line]
        assert all(f"{bar.number}, {bar.statistic}, {bar.limit_s:g} s" in line for bar in bars)


@pytest.mark.parametrize(
    ("gaps_s", "words"),
    [
        ((0.05, 0.08, 0.2), ["met", "met"]),
        ((0.05, 0.08, 0.31), ["met", "missed"]),
        ((0.05, 0.11, 0.2), ["missed", "met"]),
        ((0.1,), ["met", "met"]),
        ((0.3,), ["missed", "met"]),
    ],
)
def test_median_and_worst_are_held_apart(gaps_s: tuple[float, ...], words: list[str]) -> None:
    assert [word_of(one) for one in held(trials("leader-kill", *gaps_s))] == words


def test_a_trial_that_proved_nothing_counts_for_nothing() -> None:
    good, bad = trials("leader-pause", 0.7, 9.0)
    bad = replace(bad, findings=[Finding("a fault was injected", Verdict.INCONCLUSIVE, 0)])
    (one,) = held([good, bad])
    assert (one.measured_s, one.trials, one.met) == (0.7, 1, True)
    (one,) = held([bad])
    assert (one.measured_s, one.trials, word_of(one)) == (None, 0, "not measured")


def test_a_trial_that_failed_counts() -> None:
    (act,) = trials("leader-pause", 9.0)
    (one,) = held([replace(act, findings=[Finding("no pod restarted", Verdict.FAIL, 1, 1)])])
    assert word_of(one) == "missed"


def test_what_etcd_serves_has_no_bars_of_ours() -> None:
    assert held([replace(act, store="etcd") for act in trials("leader-kill", 5.0)]) == []
    assert held(trials("minority-loss", 5.0)) == held([]) == []


def test_a_missed_bar_fails_nothing_and_is_told() -> None:
    report = Report("run", trials("leader-stop", 0.05), [Finding("the history is complete", Verdict.PASS, 1)])
    assert report.verdict is Verdict.PASS
    assert "bar missed   leader-stop: write gap, worst of one trial: 0.050 s, want 0.03 s" in render(report)
