"""What is broken is on disk first, and stays there until it is healed, also for another process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.fault import Strike, Undo
from chaos.undo import UndoList, only_one
from controlplane.base.errors import ConfigError

KILL = Strike("kill", ("r1",), {}, (Undo("kill", {"start": "r1"}),), False, "kill -9 r1", ("pod/web-1",))
SCALE = Strike("scale", (), {"replicas": 30}, (Undo("scale", {"replicas": 6}),), False, "30 pods")


def test_another_process_reads_what_was_broken_the_newest_first(tmp_path: Path) -> None:
    undo = UndoList(tmp_path / "chaos")
    assert undo.entries == []
    undo.add("a-run", KILL)
    undo.add("a-run", SCALE)
    again = UndoList(tmp_path / "chaos")
    assert [entry.strike for entry in again.entries] == [SCALE, KILL]
    again.remove(again.entries[0])
    assert [entry.strike for entry in UndoList(tmp_path / "chaos").entries] == [KILL]


def test_numbers_are_not_used_again_while_any_is_left(tmp_path: Path) -> None:
    undo = UndoList(tmp_path)
    first, second = undo.add("a", KILL), undo.add("a", SCALE)
    undo.remove(first)
    assert UndoList(tmp_path).add("b", KILL).id > second.id


@pytest.mark.parametrize("text", ["", "{", '{"version": 1}', '{"version": 1, "entries": [{"id": 1}]}'])
def test_a_damaged_list_is_refused_not_taken_for_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "undo.json").write_text(text)
    with pytest.raises(ConfigError, match="what is to be undone is not known"):
        UndoList(tmp_path)


def test_a_list_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "undo.json").write_text(json.dumps({"version": 99, "entries": []}))
    with pytest.raises(ConfigError, match="format version 99"):
        UndoList(tmp_path)


def test_one_at_a_time_and_the_other_is_named(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from chaos.undo import only_one\n"
        "with only_one(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"process {holder.pid}"), only_one(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with only_one(tmp_path):
        pass
