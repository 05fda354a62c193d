"""A data directory that must not be started from."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane import quarantine
from controlplane.base.errors import CorruptStateError


def test_a_marked_directory_says_why_and_stays_marked(tmp_path: Path) -> None:
    quarantine.check(tmp_path)
    quarantine.impose(tmp_path, "the state of member r2 differs")
    for _ in range(2):
        with pytest.raises(CorruptStateError, match=r"CORRUPT: the state of member r2 differs$"):
            quarantine.check(tmp_path)


def test_a_directory_that_is_not_there_yet_is_not_marked(tmp_path: Path) -> None:
    quarantine.check(tmp_path / "new")
