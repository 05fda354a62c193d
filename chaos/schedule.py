"""Random faults of an experiment, drawn beforehand from a seed: when, which, at what, for how long. Pure.

Only the victims are chosen later, by what the cluster is then; with numbers of the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chaos.fault import JSON
from controlplane.base.rand import Rand

__all__ = ["Choice", "Drawn", "Schedule", "draw"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One kind of fault that may be drawn. ``weight``: how often, next to the others'. ``for_s``: shortest and longest
    duration. ``optional``: where it cannot be made it is left out, and told."""

    fault: str
    weight: float = 1.0
    target: str = ""
    mode: str | None = None
    value: int = 0
    for_s: tuple[float, float] = (1.0, 3.0)
    params: Mapping[str, JSON] = field(default_factory=dict)
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """``duration_s``: for how long faults begin. ``every_s``: shortest and longest time from one fault's beginning to
    the next one's. ``at_most``: faults in force at one time; what would be one too many is left out."""

    duration_s: float
    every_s: tuple[float, float]
    at_most: int
    faults: Sequence[Choice]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One fault of a drawn schedule; ``at_s`` from its beginning. ``number`` from 1."""

    number: int
    at_s: float
    for_s: float
    choice: Choice


def draw(schedule: Schedule, choices: Sequence[Choice], rand: Rand) -> list[Drawn]:
    """The faults in order of time. ``choices``: those of the schedule that can be made here. No two of those in force
    at one time are of the same kind on the same target."""
    found: list[Drawn] = []
    total = sum(choice.weight for choice in choices)
    at_s = _between(schedule.every_s, rand)
    while total > 0 and round(at_s, 2) < schedule.duration_s:
        point = rand.random() * total
        chosen = choices[-1]
        for choice in choices:
            point -= choice.weight
            if point < 0:
                chosen = choice
                break
        drawn = Drawn(len(found) + 1, round(at_s, 2), round(_between(chosen.for_s, rand), 2), chosen)
        in_force = [other for other in found if other.at_s + other.for_s > drawn.at_s]
        same = any((other.choice.fault, other.choice.target) == (chosen.fault, chosen.target) for other in in_force)
        if len(in_force) < schedule.at_most and not same:
            found.append(drawn)
        at_s += _between(schedule.every_s, rand)
    return found


def _between(bounds: tuple[float, float], rand: Rand) -> float:
    return bounds[0] + rand.random() * (bounds[1] - bounds[0])
