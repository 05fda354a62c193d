"""``qd snapshot`` on a file: looked at, restored into one member's directory, saved."""

from __future__ import annotations

from pathlib import Path

from tests.unit.cli.commands import qd


def test_verify_says_what_is_in_a_file(snapshot_file: Path) -> None:
    result = qd("snapshot", "verify", str(snapshot_file))
    assert result.exit_code == 0
    facts = dict(line.split(None, 1) for line in result.stdout.splitlines()[:-1])
    assert (facts["cluster:"], facts["keys:"], facts["revision:"]) == ("abc", "5", "6")
    assert facts["created:"] == "2023-11-14T22:13:20.000Z"
    assert result.stdout.endswith("\nOK\n")


def test_verify_refuses_damage(snapshot_file: Path) -> None:
    snapshot_file.write_bytes(snapshot_file.read_bytes()[:-1])
    result = qd("snapshot", "verify", str(snapshot_file))
    assert result.exit_code == 1
    assert "OK" not in result.stdout
    assert str(snapshot_file) in result.stderr


def test_restore_seeds_one_members_directory(snapshot_file: Path, tmp_path: Path) -> None:
    words = (
        "snapshot", "restore", str(snapshot_file), "--name", "r1", "--data-dir", str(tmp_path / "r1"),
        "--initial-cluster", "r1=127.0.0.1:1@127.0.0.1:2@127.0.0.1:3", "--cluster-token", "new",
    )  # fmt: skip
    result = qd(*words)
    assert result.exit_code == 0
    assert result.stdout.startswith("r1: 5 keys of revision 6, going on at 1000000006; state hash ")
    again = qd(*words)
    assert again.exit_code == 2
    assert "already holds data" in again.stderr


def test_save_without_a_cluster_wants_a_path() -> None:
    result = qd("snapshot", "save")
    assert result.exit_code == 2
    assert "name a directory or URL" in result.stderr
