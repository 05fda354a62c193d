"""A report as text and as JSON. Owns layout; decides nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final

from chaos.bars import Held, held, held_of_each, word_of
from chaos.findings import Finding, Verdict
from chaos.verdict import ActReport, Report
from controlplane.cli.tables import table

__all__ = ["as_dict", "bar_line", "findings_as_dicts", "line", "pods_restarted", "render", "render_repeats", "repeats"]

#: Numbers of an act that repetitions are compared by: (heading, how to take it).
_NUMBERS: Final[Sequence[tuple[str, Callable[[ActReport], float | None]]]] = (
    ("longest write gap s", lambda act: act.served.longest_write_gap_s),
    ("longest read gap s", lambda act: act.served.longest_read_gap_s),
    ("time to new leader s", lambda act: act.observed.get("leader_s")),
    ("terms after the new leader's", lambda act: act.observed.get("elections_after")),
    ("pods Ready elsewhere s", lambda act: act.observed.get("replaced_s")),
    ("all pods Ready s", lambda act: act.observed.get("scaled_s")),
    ("first write after the loss s", lambda act: act.observed.get("first_write_s")),
    ("snapshot s", lambda act: act.observed.get("snapshot_s")),
    ("cluster whole again s", lambda act: act.observed.get("recovered_s")),
    ("operations failed", lambda act: act.served.operations_failed),
    ("operations unknown", lambda act: act.served.operations_unknown),
    ("HTTP attempts failed", lambda act: act.served.http_attempts_failed),
    ("HTTP requests failed", lambda act: act.served.http_requests_failed),
    ("pods restarted", lambda act: pods_restarted(act)),
)


def render(report: Report) -> str:
    """Everything: a table of acts, a line per finding, the verdict."""
    parts = [
        table(
            [
                "ACT", "WRITES", "LONGEST GAP", "OPS FAILED", "HTTP REQUESTS", "ATTEMPTS FAILED", "REQUESTS FAILED",
                "RECOVERY", "PODS RESTARTED", "VERDICT",
            ],
            [_row(act) for act in report.acts],
        )
    ]  # fmt: skip
    for name in dict.fromkeys(act.act for act in report.acts):
        same = [act for act in report.acts if act.act == name]
        parts.append("")
        if len(same) > 1:
            # Of many repetitions the table shows the numbers; what held every time is not repeated.
            passed = sum(1 for act in same if act.verdict is Verdict.PASS)
            parts.append(f"{name}: {passed} of {len(same)} PASS")
        parts += [
            line(finding, f"{_name(act)}: ")
            for act in same
            for finding in act.findings
            if len(same) == 1 or finding.verdict is not Verdict.PASS
        ]
        parts += [bar_line(one, f"{name}: ") for one in held(same)]
    parts.append("")
    parts += [line(finding) for finding in report.findings]
    parts += ["", f"verdict: {report.verdict.value}"]
    return "\n".join(parts)


def render_repeats(acts: Sequence[ActReport]) -> str:
    """n, min, median and max of each number, per act."""
    headings, rows = repeats(acts)
    return table([heading.upper() for heading in headings], rows)


def repeats(acts: Sequence[ActReport]) -> tuple[list[str], list[list[str]]]:
    """The same as headings and rows."""
    rows: list[list[str]] = []
    for name in dict.fromkeys(act.act for act in acts):
        same = [act for act in acts if act.act == name]
        for heading, take in _NUMBERS:
            values = [float(value) for value in map(take, same) if value is not None]
            if values:
                numbers = (min(values), statistics.median(values), max(values))
                rows.append(
                    [name, heading, str(len(values)), *(f"{number:.3f}".rstrip("0").rstrip(".") for number in numbers)]
                )
    return ["act", "number", "n", "min", "median", "max"], rows


def as_dict(report: Report) -> dict[str, Any]:
    """The report as JSON-able values."""
    return {
        "run": report.run,
        "verdict": report.verdict.value,
        "acts": [
            {
                "act": act.act,
                "n": act.n,
                "verdict": act.verdict.value,
                "title": act.title,
                "seed": act.seed,
                "duration_s": act.duration_s,
                "budgets": asdict(act.budgets),
                "faults": [dict(fault) for fault in act.faults],
                "served": asdict(act.served),
                "observed": dict(act.observed),
                "availability_per_second": [second.availability for second in act.seconds],
                "writes_per_second": [second.writes_acknowledged for second in act.seconds],
                "findings": findings_as_dicts(act.findings),
            }
            for act in report.acts
        ],
        "bars": [
            {"act": name, **asdict(one.bar), "measured_s": one.measured_s, "trials": one.trials, "met": one.met}
            for name, one in held_of_each(report.acts)
        ],
        "findings": findings_as_dicts(report.findings),
    }


def findings_as_dicts(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings as JSON-able values."""
    return [{**asdict(finding), "verdict": finding.verdict.value} for finding in findings]


def _name(act: ActReport) -> str:
    return act.act if act.n == 1 else f"{act.act} #{act.n}"


def _row(act: ActReport) -> list[str]:
    served = act.served
    restarted = pods_restarted(act)
    return [
        _name(act),
        str(served.writes_acknowledged),
        f"{served.longest_write_gap_s:.3f} s",
        str(served.operations_failed + served.operations_unknown),
        str(served.http_requests),
        str(served.http_attempts_failed),
        str(served.http_requests_failed),
        _recovery(act),
        "-" if restarted is None else str(restarted),
        act.verdict.value,
    ]


#: What recovery means for each act: (key of the observed number, how to say it).
_RECOVERIES: Final = (
    ("leader_s", "new leader {:.2f} s"),
    ("replaced_s", "pods elsewhere {:.2f} s"),
    ("scaled_s", "all Ready {:.2f} s"),
    ("first_write_s", "restored {:.2f} s"),
)


def _recovery(act: ActReport) -> str:
    return next((text.format(act.observed[key]) for key, text in _RECOVERIES if act.observed.get(key)), "-")


def pods_restarted(act: ActReport) -> int | None:
    """Pods that stopped without need, restarted or replaced; None: nobody looked."""
    if "pods_restarted" not in act.observed:
        return None
    return int(act.observed["pods_restarted"]) + int(act.observed["pods_replaced_without_need"])


def bar_line(one: Held, before: str = "") -> str:
    """A bar of the design and what was measured, as a line of text beside the findings; it decides nothing."""
    bar = one.bar
    measured = "-" if one.measured_s is None else f"{one.measured_s:.3f} s"
    said = f"of {one.trials} trials" if one.trials != 1 else "of one trial"
    return (
        f"{f'bar {word_of(one)}':<12} {before}{bar.number}, {bar.statistic} {said}: {measured}, want {bar.limit_s:g} s"
    )


def line(finding: Finding, before: str = "") -> str:
    """A finding as a line of text, and one more for each violation that is shown."""
    # A rule of which this run had no case (no refused write, no restore) neither held nor broke.
    said = "n/a" if finding.verdict is Verdict.PASS and not finding.checked else finding.verdict.value
    text = f"{said:<12} {before}{finding.rule} ({finding.checked} checked)"
    if finding.note:
        text += f"; {finding.note}"
    if finding.violated > len(finding.violations):
        text += f"; {finding.violated} violations, the first:"
    return "\n".join([text, *(f"{'':13}{violation}" for violation in finding.violations)])
