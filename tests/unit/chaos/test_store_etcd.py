"""A run on an external etcd: what its clients cannot know is told and no violation; everything else is judged alike."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos.findings import Verdict
from chaos.records import History, Op
from chaos.verdict import judge_history
from tests.unit.chaos.stories import Story

OBSERVED = {
    "pods_watched": 6,
    "pods_restarted": 0,
    "pods_replaced_without_need": 0,
    "processes_ended": 0,
    "leader_before": "etcd-1",
    "leader_after": "etcd-2",
    "term_before": 2,
    "term_after": 3,
}


def played(store: str, *, in_doubt: int, **observed: object) -> History:
    """etcd's leader killed under load, with so many writes nobody answered."""
    act = "store-leader-kill"
    story = Story()
    story.mark("begin", act)
    story.steady()
    story.mark("fault", act)
    for number in range(in_doubt):
        at = story.now_ns
        story.ops.append(Op(9_000 + number, "w9", "put", "e1", f"/chaos/run/x{number}", at, at + 1, "info", "v"))
        story.now_ns += 2
    story.mark("recovered", act)
    story.steady()
    story.mark("observed", act, **{**OBSERVED, **observed})
    history = story.history()
    return replace(history, header=replace(history.header, store=store))


def failed(history: History) -> list[str]:
    report = judge_history(history)
    (act,) = report.acts
    return [finding.rule for finding in act.findings if finding.verdict is Verdict.FAIL]


def test_writes_in_doubt_on_etcd_are_told_and_pass() -> None:
    history = played("etcd", in_doubt=3)
    assert failed(history) == []
    (act,) = judge_history(history).acts
    (finding,) = (finding for finding in act.findings if finding.rule == "no operation failed")
    assert finding.note == "3 of unknown outcome"


def test_writes_in_doubt_on_our_own_replicas_are_a_violation() -> None:
    assert failed(played("embedded", in_doubt=3)) == ["no operation failed"]


@pytest.mark.parametrize("observed", [{"leader_after": "etcd-1"}, {"term_after": 2}])
def test_a_store_that_elected_nobody_fails(observed: dict[str, object]) -> None:
    assert failed(played("etcd", in_doubt=0, **observed)) == ["another replica leads"]
