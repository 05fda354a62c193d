"""The random faults of an experiment, played: drawn from a seed, each struck and healed at its time.

Owns what is left out and told (what cannot be made here, what the blast radius or the moment forbids). Knows nothing
of who asks: our runner, or Chaos Toolkit's ``chaos run``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from chaos.fault import ImpossibleError
from chaos.faults import REGISTRY
from chaos.schedule import Choice, Drawn, Schedule, draw
from chaos.stage import BlastRadiusError, Stage
from chaos.targets import TargetError
from controlplane.base.rand import SeededRand

__all__ = ["play_schedule", "possible_choices", "trial_rand"]


def trial_rand(seed: int, name: str, n: int) -> SeededRand:
    """The random source of one trial's choices."""
    return SeededRand(f"{seed}/{name}/{n}")


def possible_choices(stage_missing: Sequence[str], choices: Sequence[Choice]) -> tuple[list[Choice], list[str]]:
    """Those whose fault is not missing, and the names of optional ones that are.

    Raises:
        ImpossibleError: one that is not optional is missing.
    """
    left_out = [choice.fault for choice in choices if choice.fault in stage_missing and choice.optional]
    for choice in choices:
        if choice.fault in stage_missing and not choice.optional:
            raise ImpossibleError(f"{choice.fault}, of the schedule, cannot be made here")
    return [choice for choice in choices if choice.fault not in stage_missing], left_out


async def play_schedule(stage: Stage, schedule: Schedule, seed: int, begun: list[asyncio.Task[bool]]) -> int:
    """All of it, to the last healing; how many faults were struck. ``begun``: faults in force are put here, for the
    caller to end if this is cancelled or fails.

    Raises:
        ImpossibleError: no fault can be made here, or one that is not optional cannot.
        LoadError: the load ended.
        QuarterdeckError: a fault could not be struck or healed.
    """
    missing = [name for name, fault in REGISTRY.items() if stage.ground.missing(fault) is not None]
    choices, left_out = possible_choices(missing, schedule.faults)
    if left_out:
        stage.ground.say(f"left out, as they cannot be made here: {', '.join(left_out)}")
        stage.observed["left_out"] = left_out
    if not choices:
        raise ImpossibleError("no fault of the schedule can be made here")
    clock = stage.ground.clock
    began_s = stage.now_s()
    for drawn in draw(schedule, choices, trial_rand(seed, f"{stage.act}/schedule", stage.n)):
        await clock.sleep(max(0.0, began_s + drawn.at_s - stage.now_s()))
        if stage.load is not None:
            stage.load.check()
        begun.append(asyncio.create_task(_play(stage, drawn, seed)))
    await clock.sleep(max(0.0, began_s + schedule.duration_s - stage.now_s()))
    return sum(await asyncio.gather(*begun))


async def _play(stage: Stage, drawn: Drawn, seed: int) -> bool:
    """One fault; False: the blast radius or the moment forbade it."""
    choice = drawn.choice
    arguments = {"target": choice.target, "mode": choice.mode, "value": choice.value, **choice.params}
    rand = trial_rand(seed, f"{stage.act}/schedule/{drawn.number}", stage.n)
    try:
        struck = await stage.inject(choice.fault, {k: v for k, v in arguments.items() if v}, rand)
    except (BlastRadiusError, TargetError) as error:
        stage.ground.say(f"left out: {choice.fault}: {error}")
        stage.observed["faults_left_out"] = int(stage.observed.get("faults_left_out", 0)) + 1
        return False
    await stage.ground.clock.sleep(drawn.for_s)
    await stage.heal(struck)
    return True
