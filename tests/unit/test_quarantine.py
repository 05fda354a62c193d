"""A data directory that must not be started from."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane import quarantine
from controlplane.base import failpoints
from controlplane.base.errors import CorruptStateError, StorageError


def test_a_marked_directory_says_why_and_stays_marked(tmp_path: Path) -> None:
    quarantine.check(tmp_path)
    quarantine.impose(tmp_path, "the state of member r2 differs")
    for _ in range(2):
        with pytest.raises(CorruptStateError, match=r"CORRUPT: the state of member r2 differs$"):
            quarantine.check(tmp_path)


def test_a_directory_that_is_not_there_yet_is_not_marked(tmp_path: Path) -> None:
    quarantine.check(tmp_path / "new")


@pytest.mark.parametrize("step", ["quarantine.write.after", "quarantine.sync.after"])
def test_a_mark_that_is_cut_short_is_not_there(tmp_path: Path, step: str) -> None:
    failpoints.arm(f"{step}=error:EIO")
    try:
        with pytest.raises(StorageError):
            quarantine.impose(tmp_path, "the state of member r2 differs")
    finally:
        failpoints.disarm()
    quarantine.check(tmp_path)
    quarantine.impose(tmp_path, "the state of member r2 differs")
    assert quarantine.reason(tmp_path) == "the state of member r2 differs"


def test_a_lifted_mark_is_gone(tmp_path: Path) -> None:
    quarantine.impose(tmp_path, "why")
    quarantine.lift(tmp_path)
    quarantine.check(tmp_path)
