"""What experiments ask, on fakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chaos.probes import PROBES
from controlplane.base.clock import SystemClock
from tests.unit.chaos.faults.rig import ground


class QuickClock(SystemClock):
    """Nobody waits."""

    async def sleep(self, seconds: float) -> None:
        return


class Answering:
    """Replicas that answer with these (revision, hash) in turn, then the last again; None: silent."""

    def __init__(self, **turns: Sequence[tuple[int, str] | None]) -> None:
        self._turns = turns
        self._turn = 0
        self.names = list(turns)

    async def statuses(self) -> dict[str, Any]:
        at, self._turn = self._turn, self._turn + 1
        answers = {name: turns[min(at, len(turns) - 1)] for name, turns in self._turns.items()}
        return {
            name: SimpleNamespace(revision=answer[0], state_hash=answer[1])
            for name, answer in answers.items()
            if answer is not None
        }


@pytest.mark.parametrize(
    ("turns", "agree"),
    [
        ({"r1": [(5, "a")], "r2": [(5, "a")]}, True),
        ({"r1": [(5, "a")], "r2": [(5, "b")]}, False),
        # Under load never at one revision at once, but each passed the other's.
        ({"r1": [(5, "a"), (6, "b")], "r2": [(4, "x"), (5, "a")]}, True),
        ({"r1": [(5, "a"), (6, "b")], "r2": [(4, "x"), (5, "c")]}, False),
        # Never compared, and never asked: nothing is known.
        ({"r1": [(5, "a")], "r2": [(4, "x")]}, False),
        ({"r1": [(5, "a")], "r2": [(5, "a")], "r3": [None]}, False),
    ],
)
async def test_states_agree_if_every_replica_was_compared(
    tmp_path: Path, turns: dict[str, list[tuple[int, str] | None]], agree: bool
) -> None:
    on, _ = ground(tmp_path)
    on.clock = QuickClock()
    on.replicas = cast(Any, Answering(**turns))
    assert await PROBES["states_agree"].ask(SimpleNamespace(ground=on)) is agree
