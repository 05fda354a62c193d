"""The drill's own word: what falls short is named and does not keep the others from being practised."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from chaos.drill.__main__ import _drill, _print
from chaos.drill.drills import DRILLS, Row, _Load, inside, outside
from chaos.drill.fleet import DrillFailedError, Fleet
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
    lost = Row("all replicas lost", 20_000, 1.5, 2.25, point="the snapshot", verdict="PASS")
    _print([lost, Row("swapped live", 300, gap_s=0.125)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "DRILL",
        "KEYS",
        "FIRST",
        "WRITE",
        "COMMAND",
        "WRITE",
        "GAP",
        "RESTORED",
        "TO",
        "VERDICT",
    ]
    assert "20000  1.50 s" in lines[1]
    assert lines[1].rstrip().endswith("the snapshot  PASS")
    assert lines[2].split()[-2:] == ["-", "-"], "one that did not end is no success"


def test_every_drill_says_what_it_is_about() -> None:
    assert all(drill.__doc__ for drill in DRILLS.values())
    assert not _Load(["127.0.0.1:1"]).told


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
