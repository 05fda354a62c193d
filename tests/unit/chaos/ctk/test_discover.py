"""Chaos Toolkit finds every fault, step and probe, with its arguments, and is refused where there is no cluster."""

from __future__ import annotations

from pathlib import Path

import chaoslib.run  # noqa: F401 - what calls is then taken for Chaos Toolkit
import pytest

from chaos.ctk import actions, discover, probes
from chaos.faults import REGISTRY
from chaos.probes import PROBES
from chaos.steps import STEPS
from controlplane.base.errors import ConfigError


def test_everything_is_discovered() -> None:
    found = {activity["name"]: activity for activity in discover()["activities"]}
    assert set(found) == {name.replace("-", "_") for name in REGISTRY} | set(STEPS) | set(PROBES)
    assert {"name": "target"} in found["kill"]["arguments"]
    assert found["new_leader"]["arguments"] == [{"name": "within_s"}]
    assert all(activity["doc"] for activity in found.values())


def test_functions_are_found_where_experiments_name_them() -> None:
    assert callable(getattr(actions, "kill"))  # noqa: B009 - made from a table
    assert callable(getattr(probes, "leader_known"))  # noqa: B009 - made from a table


def test_without_a_cluster_nothing_is_broken_and_the_run_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QD_FOLDER", str(tmp_path / ".quarterdeck"))
    for name in ("kill", "random_faults", "heal"):
        with pytest.raises(SystemExit, match="no local cluster here"):
            actions.FUNCTIONS[name]()
    with pytest.raises(ConfigError, match="no local cluster here"):
        probes.FUNCTIONS["leader_known"]()
