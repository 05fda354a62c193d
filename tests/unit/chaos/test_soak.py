"""Hours of runs leave a bounded trace."""

from __future__ import annotations

from pathlib import Path

from chaos.cli_soak import cut_logs, keep_newest


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
