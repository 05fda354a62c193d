"""One trial of an experiment from its first steady second to its last: what is asked, done, healed and seen, in order.

::

    begin ─ steady, probes ─ method ─ rollbacks, all healed ─ whole again ─ steady, probes ─ observed

Owns that order and the log of activities, which journals are made of. Judges nothing: ``verdict`` does, from the marks.
What the cluster did not do becomes a mark ``deviated``; what cannot be made here a mark ``impossible``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from chaos.during import During, Played
from chaos.experiment import RANDOM_FAULTS, Activity, Experiment
from chaos.fault import DeviationError, FaultError, ImpossibleError
from chaos.load import LoadError
from chaos.probes import PROBES, states_of, within
from chaos.random_faults import play_schedule
from chaos.stage import Census, Stage
from chaos.steps import STEPS
from chaos.whole import NotWholeError, Whole
from controlplane.base.errors import ConfigError, QuarterdeckError, StatusError
from controlplane.local.processes import ProcessError

__all__ = ["TrialLog", "play_trial"]

_EXPECTED: Final = (StatusError, ProcessError, NotWholeError, DeviationError)


@dataclass(slots=True)
class TrialLog:
    """What a journal needs. ``whole``: it was healed; if not, nothing more can be tried on this cluster."""

    n: int
    before: list[Played] = field(default_factory=list)
    run: list[Played] = field(default_factory=list)
    rollbacks: list[Played] = field(default_factory=list)
    #: The steady state while the method was played and healed, each time it was asked.
    during: list[list[Played]] = field(default_factory=list)
    after: list[Played] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    impossible: str = ""
    whole: bool = False


async def play_trial(stage: Stage, experiment: Experiment, whole: Whole, seed: int) -> TrialLog:
    """Play it. However it ends, also when cancelled, what was struck stays on the undo list until it is healed.

    Raises:
        LoadError: the load ended: the run proves nothing.
    """
    return await _Trial(stage, experiment, whole, seed).play()


class _Trial:
    def __init__(self, stage: Stage, experiment: Experiment, whole: Whole, seed: int) -> None:
        self._stage = stage
        self._experiment = experiment
        self._whole = whole
        self._seed = seed
        self._log = TrialLog(stage.n)
        self._background: list[asyncio.Task[None]] = []
        self._begun: list[asyncio.Task[bool]] = []
        self._told: set[str] = set()

    async def play(self) -> TrialLog:
        stage, experiment, settings = self._stage, self._experiment, self._experiment.settings
        stage.mark(
            "begin", title=experiment.title, seed=self._seed, budgets=dict(settings.budgets),
            workload=list(settings.workload), steady_s=settings.steady_s, proves=list(settings.proves),
        )  # fmt: skip
        stage.census = Census(stage.ground)
        await self._steady()
        if not await self._hypothesis(self._log.before):
            stage.mark("deviated", what="steady state", when="before", text="; ".join(self._log.deviations))
            self._log.whole = True  # nothing was broken here
            return self._log
        async with During(stage, experiment.hypothesis) as during:
            await self._guarded(self._method(), "the method")
            await self._guarded(self._play_all(experiment.rollbacks, self._log.rollbacks), "rollbacks")
            whole = await self._heal()
        self._log.during = during.samples
        if during.samples:
            stage.observed["during"] = during.summary()
        if whole:
            await self._after()
        return self._log

    async def _guarded(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Do a part; what comes of it that an experiment may expect becomes a mark."""
        try:
            await work
        except ImpossibleError as error:
            self._impossible(str(error))
        except _EXPECTED as error:
            self._deviate(what, str(error))
        except (ConfigError, FaultError) as error:
            self._told.add(str(error))
            self._impossible(f"not done: {error}")
        finally:
            await self._stop_background()

    # -- parts -------------------------------------------------------------------------------------------------------

    async def _steady(self) -> None:
        await self._stage.ground.clock.sleep(self._experiment.settings.steady_s)
        if self._stage.load is not None:
            self._stage.load.check()

    async def _hypothesis(self, log: list[Played]) -> bool:
        held = True
        for activity in self._experiment.hypothesis:
            played = await self._play(activity, log, raises=False)
            played.tolerated = played.status == "succeeded" and within(played.output, activity.tolerance)
            if not played.tolerated:
                held = False
                self._log.deviations.append(f"{activity.name}: {played.error or played.output!r}")
        return held

    async def _method(self) -> None:
        await self._play_all(self._experiment.method, self._log.run)
        await asyncio.gather(*self._background)

    async def _play_all(self, activities: Sequence[Activity], log: list[Played]) -> None:
        for activity in activities:
            await self._pause(activity.before_s)
            if activity.background:
                self._background.append(asyncio.create_task(self._discard(self._play(activity, log))))
            else:
                await self._play(activity, log)
            await self._pause(activity.after_s)

    @staticmethod
    async def _discard(work: Any) -> None:
        await work

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            await self._stage.ground.clock.sleep(seconds)

    async def _play(self, activity: Activity, log: list[Played], *, raises: bool = True) -> Played:
        clock = self._stage.ground.clock
        played = Played(activity, clock.wall_ms())
        log.append(played)
        try:
            played.output = await self._do(activity)
        except QuarterdeckError as error:
            played.status, played.error = "failed", str(error)
            if raises or isinstance(error, LoadError):
                raise
        except BaseException as error:
            played.status, played.error = "failed", type(error).__name__
            raise
        finally:
            played.end_ms = clock.wall_ms()
        return played

    async def _do(self, activity: Activity) -> Any:
        if activity.func in PROBES:
            answer = await PROBES[activity.func].ask(self._stage, **activity.arguments)
            steady = activity.where.startswith("steady-state-hypothesis")
            if not steady and activity.tolerance is not None and not within(answer, activity.tolerance):
                raise DeviationError(f"{activity.name}: {answer!r}, want {activity.tolerance!r}")
            return answer
        if activity.func == RANDOM_FAULTS:
            schedule = self._experiment.schedule
            assert schedule is not None  # the reader made it of this activity
            return {"struck": await play_schedule(self._stage, schedule, self._seed, self._begun)}
        if activity.func in STEPS:
            return await STEPS[activity.func].do(self._stage, **activity.arguments)
        struck = await self._stage.inject(activity.func.replace("_", "-"), activity.arguments)
        for_s = activity.arguments.get("for_s")
        if for_s is not None:
            await self._stage.ground.clock.sleep(float(for_s))
            await self._stage.heal(struck)
        return {"victims": list(struck.entry.strike.victims), **struck.facts}

    # -- the end -----------------------------------------------------------------------------------------------------

    async def _stop_background(self) -> None:
        tasks: list[asyncio.Task[Any]] = [*self._background, *self._begun]
        self._background, self._begun = [], []
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            # The first one is told by who waited for it; this is for others that failed beside it.
            if isinstance(result, QuarterdeckError) and str(result) not in self._told:
                self._deviate("in the background", str(result))

    def _impossible(self, reason: str) -> None:
        self._log.impossible = reason
        self._told.add(reason)
        self._stage.mark("impossible", reason=reason)
        self._stage.ground.say(f"impossible: {reason}")

    def _deviate(self, what: str, text: str) -> None:
        self._log.deviations.append(f"{what}: {text}")
        self._told.add(text)
        self._stage.mark("deviated", what=what, text=text)
        self._stage.ground.say(f"deviated: {what}: {text}")

    async def _heal(self) -> bool:
        """Everything taken back, and the cluster whole again."""
        stage = self._stage
        try:
            if stage.struck:
                stage.ground.say(f"healing: {'; '.join(s.entry.strike.says for s in reversed(stage.struck))}")
            await stage.heal_all()
            await self._whole.wait()
        except _EXPECTED as error:
            self._deviate("healed and whole again", str(error))
            return False
        except FaultError as error:
            self._deviate("healed", str(error))
            return False
        if stage.last_heal_s:
            stage.observed["converged_s"] = round(stage.now_s() - stage.last_heal_s, 4)
        stage.mark("recovered")
        self._log.whole = True
        if stage.first_fault_s is not None:
            stage.observed["recovered_s"] = round(stage.now_s() - stage.first_fault_s, 4)
        return True

    async def _after(self) -> None:
        stage = self._stage
        await self._steady()
        known = len(self._log.deviations)
        if not await self._hypothesis(self._log.after):
            text = "; ".join(self._log.deviations[known:])
            stage.mark("deviated", what="steady state", when="after", text=text)
        if "term_after" in stage.observed and not stage.ground.cluster.spec.store:
            stage.observed["elections_after"] = stage.lookout.leader()[1] - int(stage.observed["term_after"])
        if not stage.ground.cluster.spec.store:
            stage.observed["states"] = await states_of(stage)
        stage.mark("observed", **stage.observed, **stage.pod_changes())
