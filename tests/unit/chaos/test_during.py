"""The steady state while a fault lasts: asked again and again, recorded, summed up, and in nobody's way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from chaos import during as module
from chaos.during import During, Played, summed
from chaos.experiment import Activity
from chaos.probes import PROBES, Probe
from chaos.stage import Stage
from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import SeededRand
from tests.unit.chaos.faults.rig import ground

STEADY = Activity("probe", "it serves", "leader_known", {}, "steady-state-hypothesis.probes[0]", tolerance=True)


def answer(at_s: float, tolerated: bool) -> Played:
    return Played(STEADY, int(at_s * 1000), int(at_s * 1000) + 100, tolerated=tolerated)


def test_how_long_it_was_lost_is_from_the_first_bad_answer_to_the_next_good_one() -> None:
    answers = [answer(n, tolerated) for n, tolerated in enumerate([True, False, False, True, False])]
    assert summed(answers) == {"asked": 5, "deviated": 3, "longest_s": 2.1}
    assert summed([answer(0, True)]) == {"asked": 1, "deviated": 0, "longest_s": 0.0}


@pytest.mark.parametrize(("says", "tolerated"), [(True, True), (False, False), (None, False)])
async def test_every_answer_is_recorded_and_a_refusal_is_a_deviation_of_the_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: bool | None, tolerated: bool
) -> None:
    asked: list[bool] = []

    async def ask(stage: Stage) -> bool:
        asked.append(stage.at_once)
        if says is None:
            raise StatusError(Code.UNAVAILABLE, "nobody answers")
        return says

    monkeypatch.setattr(module, "PROBES", {**PROBES, "leader_known": Probe("", ask, {})})
    on, _ = ground(tmp_path)
    stage = Stage(on, cast(Any, None), "mine", 1, SeededRand(1), 6, "run")
    async with During(stage, [STEADY]) as seen:
        for _ in range(5):
            await asyncio.sleep(0)
    assert asked == [True]
    assert [[played.tolerated for played in sample] for sample in seen.samples] == [[tolerated]]
    assert seen.summary()["probes"]["it serves"]["deviated"] == int(not tolerated)
    assert not stage.at_once, "who plays the method waits as ever"


async def test_without_a_hypothesis_nothing_is_asked(tmp_path: Path) -> None:
    on, _ = ground(tmp_path)
    async with During(Stage(on, cast(Any, None), "mine", 1, SeededRand(1), 6, "run"), []) as seen:
        await asyncio.sleep(0)
    assert seen.samples == []


async def test_an_error_of_ours_in_a_probe_is_raised_and_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(stage: Stage) -> bool:
        raise ZeroDivisionError("a mistake in the probe")

    monkeypatch.setattr(module, "PROBES", {**PROBES, "leader_known": Probe("", ask, {})})
    on, _ = ground(tmp_path)
    during = During(Stage(on, cast(Any, None), "mine", 1, SeededRand(1), 6, "run"), [STEADY])
    await during.__aenter__()
    for _ in range(5):
        await asyncio.sleep(0)
    with pytest.raises(ZeroDivisionError):
        await during.__aexit__(None, None, None)
