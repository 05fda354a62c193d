"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.rig import Rig


@pytest.fixture
def rig() -> Rig:
    """A cluster with its first namespaces and nothing else."""
    return Rig()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster of the folder or the environment these tests are run in."""
    monkeypatch.chdir(tmp_path)
    for name in ("QD_ENDPOINTS", "QD_FOLDER", "QD_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
