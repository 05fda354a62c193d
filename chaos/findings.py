"""What a judgement is made of: a rule, how often it was checked, what broke it. Values only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

__all__ = ["Finding", "Verdict", "judge", "worst"]

_SHOWN: Final = 5


class Verdict(Enum):
    """PASS only if the rule was really checked; a check that had nothing to look at is INCONCLUSIVE."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule's verdict. ``violations`` are the first few, as text; ``violated`` counts all of them."""

    rule: str
    verdict: Verdict
    checked: int
    violated: int = 0
    violations: tuple[str, ...] = ()
    note: str = ""


def judge(rule: str, checked: int, violations: Iterable[str], *, at_least: int = 1, note: str = "") -> Finding:
    """FAIL if anything broke the rule; else INCONCLUSIVE if it was checked on fewer than ``at_least``; else PASS."""
    broken = tuple(violations)
    if broken:
        return Finding(rule, Verdict.FAIL, checked, len(broken), broken[:_SHOWN], note)
    if checked < at_least:
        why = f"checked on {checked}, want at least {at_least}"
        return Finding(rule, Verdict.INCONCLUSIVE, checked, note=f"{note}; {why}" if note else why)
    return Finding(rule, Verdict.PASS, checked, note=note)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of all together: one FAIL fails all; nothing at all is INCONCLUSIVE."""
    found = set(verdicts)
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS):
        if verdict in found:
            return verdict
    return Verdict.INCONCLUSIVE
