"""Hours of runs leave a bounded trace."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

from chaos.cli_soak import Memory, cut_logs, keep_newest, memory, told
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
