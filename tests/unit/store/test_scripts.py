"""MVCC, transactions and watches, as scripts in ``data/*.txt`` (language: script.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.store.script import run_script

_SCRIPTS = sorted((Path(__file__).parent / "data").glob("*.txt"))


@pytest.mark.parametrize("path", _SCRIPTS, ids=lambda path: path.stem)
def test_script_shows_what_it_says(path: Path) -> None:
    wanted = path.read_text()
    shown = run_script(wanted)
    if os.environ.get("REWRITE"):
        path.write_text(shown)
    else:
        assert shown == wanted


def test_there_are_scripts() -> None:
    assert {"mvcc", "txn", "watch"} <= {path.stem for path in _SCRIPTS}
