"""Nothing is started over what chaos has left broken: its list is read as chaos writes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chaos.fault import Strike, Undo
from chaos.undo import UndoList, only_one
from controlplane.base.errors import ConfigError
from controlplane.local.unhealed import refuse_broken

FULL = Strike("disk-full", ("r1",), {}, (Undo("disk-full", {"name": "r1"}),), False, "the disk of r1 is full")


def test_a_cluster_that_chaos_never_met_or_has_healed_may_be_started(tmp_path: Path) -> None:
    refuse_broken(tmp_path)
    undo = UndoList(tmp_path / "chaos")
    undo.remove(undo.add("a-run", FULL))
    refuse_broken(tmp_path)


def test_what_is_left_broken_is_named_with_the_command_that_heals_it(tmp_path: Path) -> None:
    UndoList(tmp_path / "chaos").add("a-run", FULL)
    with pytest.raises(ConfigError, match=r"broken: the disk of r1 is full\. .*: qd chaos heal"):
        refuse_broken(tmp_path)
    (tmp_path / "chaos" / "lock").write_text("123\n")  # of a run that is gone: nobody holds it
    with pytest.raises(ConfigError, match="qd chaos heal"):
        refuse_broken(tmp_path)


def test_a_run_at_work_is_named_not_healed_under_its_hands(tmp_path: Path) -> None:
    UndoList(tmp_path / "chaos").add("a-run", FULL)
    with only_one(tmp_path / "chaos"), pytest.raises(ConfigError, match=rf"at work .*process {os.getpid()}\)"):
        refuse_broken(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "not known"), ('{"version": 1}', "not known"), ('{"version": 9, "entries": []}', "format version 9")],
)
def test_a_list_that_cannot_be_read_is_not_taken_for_empty(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "chaos").mkdir()
    (tmp_path / "chaos" / "undo.json").write_text(text)
    with pytest.raises(ConfigError, match=says):
        refuse_broken(tmp_path)
