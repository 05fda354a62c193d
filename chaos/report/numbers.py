"""The numbers of a trial, each beside its budget and the bar of the design."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from chaos.bars import held, word_of
from chaos.report.text import pods_restarted
from chaos.verdict import ActReport

__all__ = ["Number", "numbers"]

_GAP: Final = "longest gap between acknowledged writes"
_REPLACED: Final = "time until pods were Ready elsewhere"
_FIRST_WRITE: Final = "first write after the loss"
_BARRED: Final = {"write gap": _GAP, "replaced": _REPLACED, "first write": _FIRST_WRITE}


@dataclass(frozen=True, slots=True)
class Number:
    """One number, as text. ``over``: more than the budget. ``bar``: what the design asks of a single trial, and whether
    it was met; empty: nothing."""

    name: str
    value: str
    budget: str
    over: bool
    bar: str = ""


def numbers(act: ActReport) -> list[Number]:
    """Every number there is of the trial, and every budget, also of what was not measured."""
    served, seen, budgets = act.served, act.observed, act.budgets
    leases = budgets.leases_failed if served.leases_asked else None
    rows: list[tuple[str, float | None, float | None, str]] = [
        (_GAP, served.longest_write_gap_s, budgets.write_gap_s, "s"),
        ("longest gap between answered reads", served.longest_read_gap_s, budgets.read_gap_s, "s"),
        ("time to a new leader", seen.get("leader_s"), budgets.leader_s, "s"),
        (_REPLACED, seen.get("replaced_s"), budgets.replaced_s, "s"),
        ("time until all pods were Ready", seen.get("scaled_s"), None, "s"),
        (_FIRST_WRITE, seen.get("first_write_s"), budgets.first_write_s, "s"),
        ("time until all was as it should be", seen.get("converged_s"), budgets.converged_s, "s"),
        ("cluster whole again", seen.get("recovered_s"), None, "s"),
        ("answered of all that was asked, %", _answered(act), None, ""),
        ("answered in the worst second, %", _worst_second(act), None, ""),
        ("writes acknowledged", served.writes_acknowledged, None, ""),
        ("reads answered", served.reads_answered, None, ""),
        ("operations failed", served.operations_failed, budgets.operations_failed, ""),
        ("operations of unknown outcome", served.operations_unknown, budgets.operations_unknown, ""),
        ("lease operations failed", served.leases_failed if served.leases_asked else None, leases, ""),
        ("requests of the Service", served.http_requests, None, ""),
        ("requests failed after one retry", served.http_requests_failed, budgets.requests_failed, ""),
        ("first attempts failed", served.http_attempts_failed, None, ""),
        ("pods restarted or replaced without need", pods_restarted(act), budgets.pods_restarted, ""),
    ]
    bars = {
        _BARRED[one.bar.number]: f"{_text(one.bar.limit_s, 's')} {word_of(one)}"
        for one in held([act])
        if one.bar.statistic == "worst"  # a median is of all trials
    }
    return [
        Number(
            name,
            _text(value, unit),
            _text(budget, unit),
            over=value is not None and budget is not None and value > budget,
            bar=bars.get(name, ""),
        )
        for name, value, budget, unit in rows
        if value is not None or budget is not None
    ]


def _answered(act: ActReport) -> float | None:
    """Availability of the key-value API over the trial, in per cent."""
    ok = act.served.writes_acknowledged + act.served.reads_answered
    asked = ok + act.served.operations_failed + act.served.operations_unknown
    return round(100 * ok / asked, 2) if asked else None


def _worst_second(act: ActReport) -> float | None:
    """Of whole seconds in which anything ended, the least part that was answered, in per cent."""
    known = [second.availability for second in act.seconds if second.availability is not None]
    return round(100 * min(known), 2) if known else None


def _text(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{float(value):.3f} s" if unit else f"{value:,g}"
