"""docs/chaos.md names every experiment and every fault there is."""

from __future__ import annotations

from pathlib import Path

from chaos.experiment import names
from chaos.faults import REGISTRY
from chaos.steps import catalogue

DOCS = (Path(__file__).parents[3] / "docs" / "chaos.md").read_text()


def test_every_experiment_and_fault_is_documented() -> None:
    wanted = [*names(), *REGISTRY]
    assert [name for name in wanted if f"| `{name}` |" not in DOCS] == []


def test_the_catalogue_has_them_all() -> None:
    assert {name.replace("-", "_") for name in REGISTRY} < set(catalogue().actions)
