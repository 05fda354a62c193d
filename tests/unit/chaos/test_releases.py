"""Source trees of earlier releases, from real little repositories."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from chaos import releases
from controlplane.base.errors import ConfigError


def repository(folder: Path, *, tag: str = "") -> Path:
    """One commit with a controlplane/ in it, tagged if asked."""
    (folder / "controlplane").mkdir(parents=True)
    (folder / "controlplane" / "app.py").write_text("tagged = True\n")
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    commands = [["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "one"], *([["tag", tag]] if tag else [])]
    for command in commands:
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder


def test_every_release_is_a_commit_of_this_repository(tmp_path: Path) -> None:
    for version in releases.RELEASES:
        tree = releases.source_of(version, tmp_path / version)
        assert (tree / "controlplane" / "app.py").is_file()


def test_a_tag_is_taken_before_the_commit_written_down(tmp_path: Path) -> None:
    origin = repository(tmp_path / "origin", tag="v0.1.0")
    tree = releases.source_of("0.1.0", tmp_path / "tree", repository=origin)
    assert (tree / "controlplane" / "app.py").read_text() == "tagged = True\n"


def test_a_clone_without_the_commit_is_refused_and_told_how_to_have_it(tmp_path: Path) -> None:
    origin = repository(tmp_path / "origin")
    with pytest.raises(ConfigError, match=r"release 0\.1\.0 .* is not in the clone .*git fetch --unshallow --tags"):
        releases.source_of("0.1.0", tmp_path / "tree", repository=origin)
    assert not (tmp_path / "tree").exists()


def test_an_unknown_release_is_told_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no release '9\.9\.9'; there are: 0\.1\.0"):
        releases.source_of("9.9.9", tmp_path)


def test_a_tree_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "controlplane").mkdir()
    assert releases.source_of("0.1.0", tmp_path, repository=tmp_path / "nowhere") == tmp_path
