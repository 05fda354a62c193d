"""``qd certs`` in a folder of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from controlplane.base.pki import read_certificate
from controlplane.cli.main import cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pki"


def certs(folder: Path, *argv: str) -> Result:
    return CliRunner().invoke(cli, ["certs", "--pki", str(folder), *argv])


def serial(folder: Path, name: str) -> int:
    return read_certificate((folder / name).read_bytes()).serial


def test_a_cluster_is_certified_from_nothing(folder: Path) -> None:
    assert "user admin" in certs(folder, "init").output
    assert certs(folder, "issue", "member", "r1", "-a", "10.0.0.1", "-a", "r1.example").exit_code == 0
    assert certs(folder, "issue", "node", "node-1").exit_code == 0
    assert certs(folder, "issue", "user", "alice", "-g", "dev", "--days", "7").exit_code == 0
    shown = certs(folder, "show")
    assert shown.exit_code == 0
    lines = {line.split()[1]: line for line in shown.output.splitlines()[2:]}
    assert "r1,localhost,r1.example,10.0.0.1" in lines["r1"]
    assert "node-1,localhost,127.0.0.1" in lines["node-1"]
    assert " 7d" in lines["alice"]
    assert " dev " in lines["alice"]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(key.stat().st_mode & 0o777 == 0o600 for key in folder.rglob("*.key"))


def test_what_is_listed_is_listed_for_programs_too(folder: Path) -> None:
    certs(folder, "init")
    certs(folder, "issue", "user", "alice", "-g", "dev", "--days", "7")
    shown = certs(folder, "show", "-o", "json")
    assert shown.exit_code == 0
    found = {row["who"]: row for row in json.loads(shown.stdout)}
    assert set(found) == {"authority", "user admin", "user alice"}
    alice = found["user alice"]
    assert alice["groups"] == ["dev"]
    assert 6 * 86_400 < alice["seconds_left"] <= 7 * 86_400
    assert alice["serial"] == f"{serial(folder, 'users/alice.crt'):x}"
    assert alice["file"] == str(folder / "users/alice.crt")


def test_renewal_keeps_who_it_is_and_changes_the_rest(folder: Path) -> None:
    certs(folder, "init")
    certs(folder, "issue", "member", "r1", "-a", "10.0.0.1")
    before, admin = serial(folder, "members/r1.crt"), serial(folder, "admin.crt")
    key = (folder / "members/r1.key").read_bytes()
    renewed = certs(folder, "renew", "r1")
    assert "r1,localhost,10.0.0.1" in renewed.output
    assert serial(folder, "members/r1.crt") != before
    assert (folder / "members/r1.key").read_bytes() != key
    assert serial(folder, "admin.crt") == admin
    certs(folder, "renew")
    assert serial(folder, "admin.crt") != admin


def test_what_cannot_be_done_says_what_to_do(folder: Path) -> None:
    assert "qd certs init" in certs(folder, "issue", "node", "node-1").output
    assert certs(folder, "show").exit_code == 1
    certs(folder, "init")
    ca = serial(folder, "ca.crt")
    again = certs(folder, "init")
    assert again.exit_code == 2
    assert "--force" in again.output
    assert serial(folder, "ca.crt") == ca
    assert certs(folder, "init", "--force").exit_code == 0
    assert serial(folder, "ca.crt") != ca
    assert "no certificate of r9" in certs(folder, "renew", "r9").output
    assert "the cluster's own" in certs(folder, "issue", "user", "system:member:r1").output
