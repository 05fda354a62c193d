"""What the design asks of the numbers (docs/chaos.md has the same list), and whether it was reached. Pure.

A bar decides nothing: PASS and FAIL are the budgets' and the rules', which leave room for a busy machine. Owns the list
of bars and how trials are held against them. Must not know how that is shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from chaos.findings import Verdict
from chaos.verdict import ActReport

__all__ = ["BARS", "Bar", "Held", "bars_of", "held", "held_of_each", "word_of"]

Statistic = Literal["median", "worst"]
#: Numbers that have bars: name -> how to take it from a trial, in seconds; None: not measured.
_NUMBERS: Final[Mapping[str, Callable[[ActReport], float | None]]] = {
    "write gap": lambda act: act.served.longest_write_gap_s,
    "replaced": lambda act: act.observed.get("replaced_s"),
    "first write": lambda act: act.observed.get("first_write_s"),
}


@dataclass(frozen=True, slots=True)
class Bar:
    """At most ``limit_s`` seconds. ``number``: the longest gap between acknowledged writes, the time from the fault
    until the pods are Ready elsewhere, or from the loss of everything to the first write. ``statistic``: of all
    trials."""

    number: str
    statistic: Statistic
    limit_s: float


@dataclass(frozen=True, slots=True)
class Held:
    """Trials held against a bar. ``measured_s`` None: no trial has that number."""

    bar: Bar
    measured_s: float | None
    trials: int

    @property
    def met(self) -> bool | None:
        """None: nothing was measured."""
        return None if self.measured_s is None else self.measured_s <= self.bar.limit_s


#: Experiment -> its bars, of our own store: those of an etcd that is the store are etcd's affair.
BARS: Final[Mapping[str, tuple[Bar, ...]]] = {
    "leader-kill": (Bar("write gap", "median", 0.1), Bar("write gap", "worst", 0.3)),
    "leader-pause": (Bar("write gap", "worst", 1.2),),
    "leader-stop": (Bar("write gap", "worst", 0.03),),
    "leader-move": (Bar("write gap", "worst", 0.05),),
    "node-kill": (Bar("replaced", "worst", 3.0),),
    # Asked for with 20,000 keys of 1 KB, of which a run has written a few hundred: missed here is missed there.
    "disaster": (Bar("first write", "worst", 1.4),),
    "restore-drill": (Bar("first write", "worst", 1.4),),
}


def bars_of(act: ActReport) -> Sequence[Bar]:
    """Those of its experiment."""
    return BARS.get(act.act, ()) if act.store == "embedded" else ()


def held_of_each(acts: Sequence[ActReport]) -> list[tuple[str, Held]]:
    """Every bar of every experiment among the trials, with the experiment's name."""
    names = dict.fromkeys(act.act for act in acts)
    return [(name, one) for name in names for one in held([act for act in acts if act.act == name])]


def held(acts: Iterable[ActReport]) -> list[Held]:
    """Trials of one experiment against its bars. A trial that proved nothing counts for none: its numbers may be those
    of a time in which nobody wrote."""
    trials = list(acts)
    bars = bars_of(trials[0]) if trials else ()
    found = []
    for bar in bars:
        take = _NUMBERS[bar.number]
        told = [act for act in trials if act.verdict is not Verdict.INCONCLUSIVE]
        values = [float(value) for act in told if (value := take(act)) is not None]
        measured = None
        if values:
            measured = statistics.median(values) if bar.statistic == "median" else max(values)
        found.append(Held(bar, measured, len(values)))
    return found


def word_of(one: Held) -> str:
    """``met``, ``missed`` or ``not measured``."""
    return {True: "met", False: "missed", None: "not measured"}[one.met]
