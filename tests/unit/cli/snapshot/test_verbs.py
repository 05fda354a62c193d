"""``qd snapshot``: backups saved, listed, looked into, verified and pruned; an error is one line and an exit code."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from controlplane.backup import age
from controlplane.base.errors import Code, StatusError
from controlplane.cli.common import Settings
from controlplane.cli.main import cli
from controlplane.local.cluster import LocalCluster
from controlplane.local.spec import plan
from tests.unit.backup.support import Life, damage


@pytest.fixture
def life(tmp_path: Path) -> Life:
    life = Life(tmp_path / "archive")
    life.put(b"/registry/pods/default/web-1", b"spec")
    life.save()
    life.put(b"later")
    life.archive(3, 3)
    return life


def qd(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["snapshot", *map(str, args)])


def ok(*args: str | Path) -> str:
    result = qd(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def live(life: Life, monkeypatch: pytest.MonkeyPatch) -> Life:
    """Its state is what a running cluster gives."""

    async def give(settings: Settings, path: Path) -> tuple[int, int]:
        return life.store.revision, len(life.snapshot_file(path).read_bytes())

    monkeypatch.setattr(importlib.import_module("controlplane.cli.snapshot.save"), "save_snapshot", give)
    return life


def test_a_place_is_listed_with_what_can_be_restored(life: Life) -> None:
    shown = ok("list", life.root)
    assert "cluster c1\n" in shown
    assert shown.splitlines()[1].startswith("REVISION   CREATED ")
    assert "restorable: revision 2 to 3, 2023-11-14T" in shown
    found = json.loads(ok("list", life.root, "-o", "json"))
    assert [row["revision"] for row in found["snapshots"]] == [2]
    assert found["covered"][0]["last_revision"] == 3


def test_inspect_shows_the_newest_state_of_a_place_or_one_file(life: Life, tmp_path: Path) -> None:
    shown = ok("inspect", life.root)
    assert "revision:    3 (history since 0)" in shown
    assert "and 1 entries of the log behind it" in shown
    assert shown.splitlines()[-2].split() == ["/registry/pods/", "1", "32"]
    assert "revision:    3" in ok("inspect", life.snapshot_file(tmp_path / "one"))
    found = json.loads(ok("inspect", life.root, "-o", "json"))
    assert (found["revision"], found["entries_replayed"], found["cluster_id"]) == (3, 1, "c1")
    assert found["groups"][0] == {"prefix": "/registry/pods/", "keys": 1, "bytes": 32}


def test_verify_says_ok_or_what_is_wrong(life: Life, tmp_path: Path) -> None:
    assert ok("verify", life.root).endswith("1 snapshots and 1 segments of the log are whole\nOK\n")
    file = life.snapshot_file(tmp_path / "one")
    assert ok("verify", file).endswith("OK\n")
    whole = json.loads(ok("verify", file, "-o", "json"))
    assert (whole["revision"], whole["file_bytes"]) == (3, file.stat().st_size)
    assert json.loads(ok("verify", life.root, "-o", "json"))["covered"][0]["last_revision"] == 3
    damage(file)
    result = qd("verify", file)
    assert (result.exit_code, "checksum does not match" in result.stderr) == (1, True)
    damage(life.archive(2, 3))
    result = qd("verify", life.root)
    assert (result.exit_code, "is damaged" in result.stdout, "1 problems" in result.stderr) == (1, True, True)
    result = qd("verify", life.root, "-o", "json")
    (problem,) = json.loads(result.stdout)["problems"]
    assert (result.exit_code, "is damaged" in problem) == (1, True)


def test_prune_says_first_and_then_does(life: Life) -> None:
    life.save()
    (old,) = ok("prune", life.root, "--keep-last", "1", "--dry-run").split()
    assert Path(old).exists()
    result = qd("prune", life.root, "--keep-last", "1")
    assert result.stdout.split() == [old]
    assert "removed 1 snapshots and 1 segments of the log; 1 snapshots stay" in result.stderr
    assert not Path(old).exists()
    assert qd("prune", life.root).exit_code == 2
    assert qd("prune", life.root, "--older-than", "soon").exit_code == 2


def test_saved_among_others_or_as_a_file(live: Life, tmp_path: Path) -> None:
    where = Path(ok("save", live.root).strip())
    assert where.with_name(where.name + ".json").exists()
    assert "REVISION" in ok("list", live.root)
    assert ok("save", f"{tmp_path}/new/").startswith(f"{tmp_path}/new/00000000000000c1/snapshots/")
    assert ok("save", tmp_path / "file.qdsnap") == f"{tmp_path}/file.qdsnap\n"


@pytest.mark.parametrize(
    ("code", "exit_code"), [(Code.PERMISSION_DENIED, 1), (Code.UNAUTHENTICATED, 1), (Code.UNAVAILABLE, 3)]
)
def test_who_is_refused_a_snapshot_is_not_told_that_nobody_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: Code, exit_code: int
) -> None:
    async def refuse(settings: Settings, path: Path) -> tuple[int, int]:
        raise StatusError(code, "because")

    monkeypatch.setattr(importlib.import_module("controlplane.cli.snapshot.save"), "save_snapshot", refuse)
    result = qd("save", tmp_path / "file.qdsnap")
    assert (result.exit_code, "no replica gave a snapshot: because" in result.stderr) == (exit_code, True)


def test_encrypted_to_a_key_it_opens_with_that_key(live: Life, tmp_path: Path) -> None:
    key, file = tmp_path / "key", tmp_path / "file.age"
    recipient = ok("keygen", key).strip()
    ok("save", file, "--recipient", recipient)
    assert age.is_encrypted(file.read_bytes())
    assert file.stat().st_mode & 0o077 == 0
    result = qd("inspect", file)
    assert (result.exit_code, "is encrypted: name the key file" in result.stderr) == (2, True)
    assert "revision:    3" in ok("inspect", file, "--key-file", key)
    assert ok("verify", file, "--key-file", key).endswith("OK\n")
    (tmp_path / "public").write_text(recipient + "\n")
    ok("save", live.root, "--recipients-file", tmp_path / "public")
    assert "encrypted and were not opened" in ok("verify", live.root)
    assert qd("save", file, "--recipient", "age1nonsense").exit_code == 2
    assert qd("keygen", key).exit_code == 2


def test_what_is_to_be_run_on_each_machine_names_the_place_that_was_named(life: Life) -> None:
    """Not the file that was made of it, which is gone when somebody reads this."""
    result = CliRunner().invoke(
        cli, ["--endpoints", "127.0.0.1:1", "snapshot", "restore", str(life.root), "--to-revision", "2"]
    )
    assert result.exit_code == 2, result.output
    assert f"  qd snapshot restore {life.root} --to-revision 2 --name NAME --data-dir DIR" in result.stderr


def test_who_is_asked_before_replicas_are_replaced_reads_the_place_that_was_named(life: Life, tmp_path: Path) -> None:
    folder = tmp_path / ".quarterdeck"
    LocalCluster.create(folder, plan(replicas=1, nodes=0, port_base=30_500))
    restore = ["--folder", str(folder), "snapshot", "restore", str(life.root), "--to-revision", "2"]
    result = CliRunner().invoke(cli, restore, input="n\n")
    assert result.exit_code == 1, result.output
    assert f"Replace the data of 1 replicas by {life.root} --to-revision 2? [y/N]" in result.stderr


def test_a_place_that_is_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = qd("list")
    assert (result.exit_code, "name a directory or URL" in result.stderr) == (2, True)
    result = qd("list", tmp_path)
    assert (result.exit_code, "holds no backups" in result.stderr) == (1, True)
    (tmp_path / "file").touch()
    assert "is a file" in qd("prune", tmp_path / "file", "--keep-last", "1").stderr
    assert "want its id" in qd("list", tmp_path, "--cluster", "home").stderr
