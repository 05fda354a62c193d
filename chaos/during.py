"""The steady state while faults are in force: asked again and again, beside the method.

Before and after, the steady state must hold. During, it need not: a fault may cost what the budgets allow. What it cost
is recorded each time, and summed up for the verdict. Judges nothing and stops nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from chaos.experiment import Activity
from chaos.probes import PROBES, within
from chaos.stage import Stage
from controlplane.base.errors import QuarterdeckError

__all__ = ["During", "Played"]

_EVERY_S: Final = 1.0
#: A probe that has not answered by then is out of its tolerance at that moment.
_ANSWER_S: Final = 2.0


@dataclass(slots=True)
class Played:
    """One activity that was done. Times in wall-clock milliseconds. ``status``: succeeded or failed."""

    activity: Activity
    start_ms: int
    end_ms: int = 0
    status: str = "succeeded"
    output: Any = None
    error: str = ""
    #: For probes of the steady state.
    tolerated: bool | None = None


class During:
    """Use as a context manager around the method. ``samples``: every time all probes were asked."""

    def __init__(self, stage: Stage, probes: Sequence[Activity]) -> None:
        self._stage = replace(stage, at_once=True)
        self._probes = probes
        self.samples: list[list[Played]] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._probes:
            self._task = asyncio.create_task(self._ask_on())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._task is not None:
            self._task.cancel()
            (ended,) = await asyncio.gather(self._task, return_exceptions=True)
            # It ends by being cancelled. Anything else is an error of ours, unless one is on its way already.
            if isinstance(ended, Exception) and exc_info[0] is None:
                raise ended

    async def _ask_on(self) -> None:
        while True:
            # At the same time: one that hangs does not hide the others.
            self.samples.append(list(await asyncio.gather(*(self._ask(probe) for probe in self._probes))))
            await self._stage.ground.clock.sleep(_EVERY_S)

    async def _ask(self, probe: Activity) -> Played:
        clock = self._stage.ground.clock
        played = Played(probe, clock.wall_ms())
        try:
            async with asyncio.timeout(_ANSWER_S):
                played.output = await PROBES[probe.func].ask(self._stage, **probe.arguments)
        except QuarterdeckError as error:
            played.status, played.error = "failed", str(error)
        except TimeoutError:
            played.status, played.error = "failed", f"no answer within {_ANSWER_S:g} s"
        played.end_ms = clock.wall_ms()
        played.tolerated = played.status == "succeeded" and within(played.output, probe.tolerance)
        return played

    def summary(self) -> dict[str, Any]:
        """How often each probe was asked, how often out of its tolerance, and for how long at most: from the first such
        answer to the next good one."""
        return {
            "samples": len(self.samples),
            "probes": {
                probe.name: summed([sample[n] for sample in self.samples]) for n, probe in enumerate(self._probes)
            },
        }


def summed(answers: Sequence[Played]) -> dict[str, Any]:
    """Of one probe, in order of time. Pure."""
    longest_ms = 0
    lost_at_ms: int | None = None
    for played in answers:
        if not played.tolerated and lost_at_ms is None:
            lost_at_ms = played.start_ms
        if lost_at_ms is not None:
            longest_ms = max(longest_ms, played.end_ms - lost_at_ms)
        if played.tolerated:
            lost_at_ms = None
    deviated = sum(1 for played in answers if not played.tolerated)
    return {"asked": len(answers), "deviated": deviated, "longest_s": longest_ms / 1000}
