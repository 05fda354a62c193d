"""The logs beside a run's faults: those of trials that failed first, no line of another time, what is left out said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from chaos.availability import Window
from chaos.records import Header, History, Mark
from chaos.report.moments import moments
from chaos.verdict import judge_history
from tests.unit.chaos.stories import SECOND
from tests.unit.chaos.test_verdict import UNTOUCHED, played

#: 2023-11-14T22:13:20Z, at nanosecond 0 of the history.
WALL_MS = 1_700_000_000_000


def trials(count: int, failed: int) -> History:
    """So many trials, ten seconds apart, of which one (from 1) restarted a pod. Each strikes after a second."""
    one = played().history()
    marks: list[Mark] = []
    for n in range(1, count + 1):
        at = n * 10 * SECOND
        marks += [
            Mark("leader-kill", n, "begin", at, {}),
            Mark("leader-kill", n, "fault", at + SECOND, {"id": n, "fault": "kill", "victims": [f"r{n}"]}),
            Mark("leader-kill", n, "recovered", at + 2 * SECOND, {}),
            Mark("leader-kill", n, "observed", at + 3 * SECOND, {**UNTOUCHED, "pods_restarted": int(n == failed)}),
        ]
    header = replace(one.header, anchor_ns=1, anchor_wall_ms=WALL_MS)
    return History(header, [], [], [], [*marks, Mark("run", 1, "run-ended", (count + 1) * 10 * SECOND)])


def shown(history: History, logs: dict[str, str], **limit: Any) -> dict[str, Any]:
    begin = min(mark.at_ns for mark in history.marks)
    found = moments(history, judge_history(history), Window(begin, begin), logs, **limit)
    assert found is not None
    return found


def log(*seconds: int) -> str:
    return "\n".join(f"2023-11-14T22:{13 + (20 + s) // 60:02d}:{(20 + s) % 60:02d}.200Z I line of {s}" for s in seconds)


def test_the_trial_that_failed_comes_first_whichever_it_was() -> None:
    found = shown(trials(20, failed=17), {"r1": log(11, 171, 201)})
    first = found["moments"][0]
    assert first["title"].startswith("leader-kill #17: kill r17, at 2023-11-14T22:16:11")
    assert first["verdict"] == "FAIL"
    assert first["logs"][0]["text"].endswith("line of 171")
    assert len(found["moments"]) == 20
    assert "left out" not in found["note"]


def test_where_no_line_falls_into_the_moment_that_is_said_and_no_other_line_shown() -> None:
    (moment,) = shown(trials(1, failed=1), {"r1": log(100, 101)})["moments"]
    assert moment["logs"] == []
    assert "No process logged a line from 2023-11-14T22:13:30.500Z to 2023-11-14T22:13:34.000Z" in moment["note"]


def test_what_does_not_fit_is_counted() -> None:
    found = shown(trials(10, failed=9), {"r1": log(*range(200))}, chars_max=500)
    assert found["moments"][0]["verdict"] == "FAIL"
    assert 1 <= len(found["moments"]) < 10
    assert f"{10 - len(found['moments'])} of 10 faults are left out" in found["note"]


def test_the_first_fault_is_shown_however_small_the_page() -> None:
    found = shown(trials(10, failed=9), {"r1": log(*range(200))}, chars_max=1)
    assert [moment["verdict"] for moment in found["moments"]] == ["FAIL"]


def test_a_history_that_does_not_say_what_time_it_was_gets_the_end_of_each_log_and_says_why() -> None:
    history = trials(2, failed=1)
    history = replace(history, header=Header("run", "/p/", "now", ["e1"]))
    found = shown(history, {"r1": log(1)})
    assert "does not say what time it was" in found["note"]
    assert [moment["title"] for moment in found["moments"]] == ["the end of each log"]


def test_without_logs_there_is_nothing_to_show() -> None:
    history = trials(1, failed=1)
    assert moments(history, judge_history(history), Window(0, 0), {}) is None
