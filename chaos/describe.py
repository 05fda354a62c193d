"""Experiments and faults as text for people: what is in a file, what can be made here, and what would be done now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.experiment import RANDOM_FAULTS, Activity, Experiment
from chaos.fault import ImpossibleError, Strike
from chaos.faults import REGISTRY
from chaos.ground import Ground
from chaos.lookout import Lookout
from chaos.random_faults import possible_choices, trial_rand
from chaos.schedule import Choice, draw
from chaos.stage import Stage
from controlplane.base.errors import ConfigError
from controlplane.cli.tables import table
from controlplane.local.cluster import LocalCluster

__all__ = ["FaultHere", "describe_experiment", "dry_run", "faults_as_table", "faults_here"]


@dataclass(frozen=True, slots=True)
class FaultHere:
    """A fault, and whether it can be made here. ``possible``: None without a cluster to ask; ``missing``: why not."""

    name: str
    aimed_at: str
    possible: bool | None
    missing: str
    what: str


def describe_experiment(experiment: Experiment) -> str:
    """All of it, in the order in which it happens."""
    settings = experiment.settings
    parts = [experiment.title, "", experiment.description, ""]
    parts += _listed("steady state, before and after", [_activity(a) for a in experiment.hypothesis])
    parts += _listed("method", [_activity(a) for a in experiment.method])
    if experiment.schedule is not None:
        schedule = experiment.schedule
        low, high = schedule.every_s
        parts += _listed(
            f"random faults for {schedule.duration_s:g} s, one every {low:g} to {high:g} s, at most "
            f"{schedule.at_most} at a time",
            [_choice(choice) for choice in schedule.faults],
        )
    parts += _listed("rollbacks", [*(_activity(a) for a in experiment.rollbacks), "heal what is not healed"])
    parts += _listed("judged by", [f"{name}: {value}" for name, value in settings.budgets.items()] or ["the defaults"])
    parts.append(f"load: {', '.join(settings.workload)}; steady for {settings.steady_s:g} s before and after")
    parts.append(f"may cost the quorum: {'yes' if settings.allow_quorum_loss else 'no'}")
    if experiment.raw.get("controls"):
        parts.append("its controls are run by Chaos Toolkit's own `chaos run` only")
    return "\n".join(parts)


def _choice(choice: Choice) -> str:
    target = f" of {choice.target}" if choice.target else ""
    weight = f", weight {choice.weight:g}" if choice.weight != 1 else ""
    optional = ", if it can be made" if choice.optional else ""
    low, high = choice.for_s
    return f"{choice.fault}{target} for {low:g} to {high:g} s{_said(choice.params)}{weight}{optional}"


def _listed(heading: str, lines: Sequence[str]) -> list[str]:
    return [f"{heading}:", *(f"  - {line}" for line in lines), ""] if lines else []


def _activity(activity: Activity) -> str:
    pauses = [
        *([f"after {activity.before_s:g} s"] if activity.before_s else []),
        *([f"then {activity.after_s:g} s"] if activity.after_s else []),
        *(["in the background"] if activity.background else []),
    ]
    wants = f" = {activity.tolerance!r}" if activity.tolerance is not None else ""
    more = f" [{', '.join(pauses)}]" if pauses else ""
    # Those of random faults are listed below.
    arguments = {} if activity.func == RANDOM_FAULTS else activity.arguments
    return f"{activity.name}: {activity.func}{_said(arguments)}{wants}{more}"


def _said(values: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{key}: {value}' for key, value in values.items())})" if values else ""


async def faults_here(cluster: LocalCluster | None) -> list[FaultHere]:
    """Every fault; on a cluster also whether it can be made there."""
    if cluster is None:
        return [FaultHere(f.name, f.target, None, "", f.doc) for f in REGISTRY.values()]
    async with Ground.open(cluster, say=lambda _: None, broken=True) as ground:
        missing = [(f, ground.missing(f)) for f in REGISTRY.values()]
    return [FaultHere(f.name, f.target, why is None, why or "", f.doc) for f, why in missing]


def faults_as_table(faults: Sequence[FaultHere]) -> str:
    """One line each."""
    rows = [[f.name, f.aimed_at or "-", f.missing or ("?" if f.possible is None else "yes"), f.what] for f in faults]
    return table(["FAULT", "AIMED AT", "CAN BE MADE HERE", "WHAT IT IS"], rows)


async def dry_run(cluster: LocalCluster, experiment: Experiment, seed: int) -> str:
    """What the first trial would do, with the victims it would choose if the cluster then is as it is now.

    Raises:
        ConfigError: a target does not fit now.
    """
    lines = [f"{experiment.name}: {experiment.title}"]
    async with (
        Ground.open(cluster, say=lambda _: None) as ground,
        Lookout(ground.replicas, ground.clock, lambda *_: None) as lookout,
    ):
        ground.snapshot = Path("the snapshot saved before")
        wanted = await ground.count_wanted()
        stage = Stage(
            ground=ground, lookout=lookout, act=experiment.name, n=1, wanted=wanted, by="dry-run",
            rand=trial_rand(seed, experiment.name, 1), allow_quorum_loss=experiment.settings.allow_quorum_loss,
        )  # fmt: skip
        for activity in experiment.method:
            name = activity.func.replace("_", "-")
            if name not in REGISTRY:
                lines.append(f"  {activity.kind}  {activity.name}")
                continue
            lines += await _planned(stage, name, activity.arguments, activity.name)
        if experiment.schedule is not None:
            missing = [name for name, fault in REGISTRY.items() if ground.missing(fault) is not None]
            choices, left_out = possible_choices(missing, experiment.schedule.faults)
            if left_out:
                lines.append(f"  left out, as they cannot be made here: {', '.join(left_out)}")
            source = trial_rand(seed, f"{experiment.name}/schedule", 1)
            for drawn in draw(experiment.schedule, choices, source):
                choice = drawn.choice
                arguments = {"target": choice.target, "mode": choice.mode, "value": choice.value, **choice.params}
                heading = f"at {drawn.at_s:.2f} s for {drawn.for_s:.2f} s"
                rand = trial_rand(seed, f"{experiment.name}/schedule/{drawn.number}", 1)
                lines += await _planned(stage, choice.fault, {k: v for k, v in arguments.items() if v}, heading, rand)
    return "\n".join(lines)


async def _planned(stage: Stage, name: str, arguments: Mapping[str, Any], heading: str, rand: Any = None) -> list[str]:
    try:
        strike: Strike = await stage.plan(name, arguments, rand)
    except ImpossibleError as error:
        return [f"  fault   {heading}: impossible: {error}"]
    except ConfigError as error:
        return [f"  fault   {heading}: not now: {error}"]
    lines = [f"  fault   {heading}: {strike.says}"]
    if strike.quorum_lost:
        allowed = "which this experiment allows" if stage.allow_quorum_loss else "so it would be refused"
        lines.append(f"          costs the quorum, {allowed}")
    for undo in strike.undo:
        said = ", ".join(f"{key} {value}" for key, value in undo.args.items())
        lines.append(f"          undone by: {undo.fault}: {said}")
    return lines
