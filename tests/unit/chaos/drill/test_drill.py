"""The drill's own word: what falls short is named and does not keep the others from being practised."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest

from chaos.drill import __main__ as command
from chaos.drill.__main__ import _beside, _drill, _missing_etcd
from chaos.drill.drills import DRILLS, inside, outside
from chaos.drill.fleet import Done, DrillFailedError, Fleet
from chaos.drill.load import Load
from chaos.drill.row import Mark, Row, print_table, verdict_of
from chaos.drill.ticks import lost_s
from controlplane.base.errors import ConfigError

NOBODY = cast(Fleet, None)


async def practise(name: str, error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> Row:
    async def drill(fleet: Fleet, row: Row, folder: Path) -> None:
        row.point = "the snapshot"
        if error is not None:
            raise error

    monkeypatch.setitem(DRILLS, name, drill)
    rows: list[Row] = []
    await _drill(rows, name, NOBODY, 7, Path())
    return rows[0]


async def test_a_drill_that_falls_short_fails_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (DrillFailedError("3 objects differ"), ConfigError("no room")):
        row = await practise("all replicas lost", error, monkeypatch)
        assert (row.verdict, row.notes) == ("FAIL", [str(error)])
    assert (await practise("all replicas lost", None, monkeypatch)).verdict == "PASS"


async def test_a_defect_of_the_drill_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        await practise("all replicas lost", ZeroDivisionError(), monkeypatch)


def test_the_table_has_a_line_a_drill(capsys: pytest.CaptureFixture[str]) -> None:
    lost = Row("all replicas lost", 20_000, 0.75, 1.5, 2.25, restarts=0, point="the snapshot", verdict=Mark.PASS)
    print_table([lost, Row("swapped live", 300, gap_s=0.125)])
    lines = [re.split(r" {2,}", line.rstrip()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["DRILL", "KEYS", "RESTORED TO", "RECOVERY POINT", "RECOVERY TIME", "COMMAND", "WRITE GAP", "PODS RESTARTED",
         "VERDICT"],
        ["all replicas lost", "20000", "the snapshot", "0.75 s", "1.50 s", "2.25 s", "-", "0", "PASS"],
        ["swapped live", "300", "-", "-", "-", "-", "0.12 s", "-", "-"],
    ]  # fmt: skip


def row(drill: str, verdict: Mark, *notes: str) -> Row:
    return Row(drill, 300, verdict=verdict, notes=list(notes))


@pytest.mark.parametrize(
    ("rows", "beside", "said", "code"),
    [
        ([row("a", Mark.PASS), row("etcd", Mark.PASS)], True, "PASS", 0),
        ([row("a", Mark.PASS)], False, "PASS (not compared with etcd: not asked for)", 0),
        (
            [row("a", Mark.PASS), row("etcd", Mark.NOT_COMPARED, "etcd not on PATH")], True,
            "INCONCLUSIVE: every drill passed, but NOT COMPARED with etcd: etcd not on PATH", 4,
        ),
        ([row("a", Mark.PASS)], True, "INCONCLUSIVE: every drill passed, but NOT COMPARED with etcd: ", 4),
        ([row("a", Mark.FAIL), row("etcd", Mark.NOT_COMPARED, "gone")], True, "FAIL (a)", 1),
        ([row("a", Mark.PASS), row("b", Mark.UNENDED)], False, "FAIL (b)", 1),
    ],
)  # fmt: skip
def test_what_was_not_compared_does_not_pass(rows: list[Row], beside: bool, said: str, code: int) -> None:
    assert verdict_of(rows, beside=beside, etcd="etcd") == (said, code)


async def test_without_etcd_ours_is_lost_and_restored_and_etcds_line_says_why_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    asked: list[str] = []

    async def beside(rows: list[Row], kinds: tuple[str, ...], keys: int, _port: int) -> None:
        asked.extend(kinds)
        rows.append(Row("all lost, quarterdeck", keys))

    monkeypatch.setattr(command, "beside_etcd", beside)
    rows: list[Row] = []
    await _beside(rows, 300, 1, _missing_etcd())
    assert asked == ["quarterdeck"]
    assert [(row.drill, row.verdict) for row in rows] == [
        ("all lost, quarterdeck", Mark.PASS), ("all lost, etcd", Mark.NOT_COMPARED),
    ]  # fmt: skip
    said, _ = verdict_of(rows, beside=True, etcd="all lost, etcd")
    assert said.endswith("etcd and etcdctl not on PATH (Debian: etcd-server, etcd-client)")


async def test_what_falls_short_beside_etcd_is_a_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def beside(rows: list[Row], _kinds: tuple[str, ...], keys: int, _port: int) -> None:
        rows.append(Row("all lost, quarterdeck", keys))
        raise DrillFailedError("299 of 300 keys")

    monkeypatch.setattr(command, "beside_etcd", beside)
    rows: list[Row] = []
    await _beside(rows, 300, 1, "")
    assert [(row.verdict, row.notes) for row in rows] == [(Mark.FAIL, ["299 of 300 keys"])]


@pytest.mark.parametrize(("found", "lost"), [(2, 0.0), (1, 1.0), (0, 3.0), (None, 4.0)])
def test_a_recovery_point_is_the_age_of_the_first_write_that_is_gone(found: int | None, lost: float) -> None:
    assert lost_s({0: 6.0, 1: 7.0, 2: 9.0}, found, 10.0) == lost


class OnlyPods(Fleet):
    """What runs here, and what the API knows."""

    def __init__(self, running: dict[str, list[int]], restarts: dict[str, int]) -> None:
        self._running = running
        self._restarts = restarts

    def processes(self) -> dict[str, list[int]]:
        return self._running

    async def ok(self, *argv: str) -> Done:
        pods = [
            {"metadata": {"uid": uid}, "status": {"containerStatuses": [{"restartCount": count}]}}
            for uid, count in self._restarts.items()
        ]
        return Done(0, json.dumps({"items": pods}), "", 0.0)


async def test_a_pod_counts_as_restarted_if_its_processes_or_the_api_say_so() -> None:
    before = {"a": [1], "b": [2, 3]}
    assert await OnlyPods({"a": [1], "b": [2, 3], "new": [9]}, {"a": 0, "b": 0, "new": 1}).restarts(before) == 0
    assert await OnlyPods({"a": [4], "b": [2, 3]}, {"a": 0, "b": 0}).restarts(before) == 1, "other processes"
    assert await OnlyPods({"b": [2, 3]}, {"a": 0, "b": 0}).restarts(before) == 1, "none at all"
    assert await OnlyPods({"a": [1], "b": [2, 3]}, {"a": 0, "b": 1}).restarts(before) == 1, "started again"
    assert await OnlyPods({"a": [1], "b": [2, 3]}, {"a": 0}).restarts(before) == 1, "not in the API"


def test_every_drill_says_what_it_is_about() -> None:
    assert all(drill.__doc__ for drill in DRILLS.values())
    assert not Load(["127.0.0.1:1"]).told


def difference(kind: str, namespace: str, name: str, *paths: str) -> dict[str, Any]:
    fields = [{"path": path, "snapshot": 1, "live": 2} for path in paths]
    return {"change": "changed", "kind": kind, "namespace": namespace, "name": name, "fields": fields}


def test_every_object_of_a_namespace_is_compared_and_every_one_elsewhere() -> None:
    mine = [
        difference("Namespace", "", "team"), difference("ConfigMap", "team", "settings"),
        difference("Pod", "team", "alone", "spec.nodeName", "metadata.labels"), difference("Service", "team", "shop"),
        difference("Deployment", "team", "shop"),
    ]  # fmt: skip
    made_again = [
        difference("ReplicaSet", "team", "shop-5d8c"), difference("Pod", "team", "shop-5d8c-x2z"),
        difference("Pod", "team", "beside", "spec.nodeName"),
    ]  # fmt: skip
    others = [
        difference("Namespace", "", "others"), difference("ConfigMap", "others", "comes"),
        difference("Key", "", "drill/first-write"), difference("Pod", "default", "web-1"),
    ]  # fmt: skip
    assert inside([*mine, *made_again, *others], "team") == mine
    assert outside([*mine, *made_again, *others], "team") == others
