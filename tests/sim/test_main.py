"""What a run of many seeds says of one that failed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.sim import __main__ as main
from tests.sim.violation import ViolationError


@pytest.mark.parametrize(
    ("without", "replay"),
    [
        ((), "make sim SEED=7"),
        (("flap", "crash"), ".venv/bin/python -m tests.sim --seed 7 --without flap,crash"),
    ],
)
def test_a_failure_names_its_seed_the_commit_and_the_line_that_replays_it(
    monkeypatch: pytest.MonkeyPatch, without: tuple[str, ...], replay: str
) -> None:
    class Wrong:
        def __init__(self, seed: int, *, options: Any) -> None:
            assert seed == 7
            assert not options.faults & set(without)

        def run(self) -> None:
            raise ViolationError("a write is lost")

    monkeypatch.setattr(main, "World", Wrong)
    outcome = main.run(7, without)
    assert outcome.result is None
    assert "a write is lost" in outcome.error
    assert re.search(r"^FAILED seed=7 commit=\w+$", outcome.error, re.MULTILINE)
    assert f"\n  replay: {replay}\n" in outcome.error
