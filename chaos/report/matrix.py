"""The closing table of many runs: one line per experiment, and a word about its columns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from chaos.bars import held, held_of_each, word_of
from chaos.findings import Finding, Verdict, worst
from chaos.report.text import pods_restarted
from chaos.verdict import ActReport, Report
from controlplane.cli.tables import table

__all__ = ["bars_met", "lost_writes", "matrix"]

_LOST = "no acknowledged write lost"


def matrix(reports: Iterable[Report]) -> str:
    """Experiment, trials, and the numbers that matter, of runs of any experiments; several runs of one are put
    together. Times are median and worst, in seconds. ``-``: not measured, or no bar. Below 160 columns wide."""
    trials: dict[str, list[ActReport]] = {}
    rules: dict[str, list[Finding]] = {}
    for report in reports:
        for act in report.acts:
            trials.setdefault(act.act, []).append(act)
        for name in {act.act for act in report.acts}:
            rules.setdefault(name, []).extend(report.findings)
    rows = []
    for name, acts in trials.items():
        found = rules.get(name, [])
        verdict = worst([*(act.verdict for act in acts), *(finding.verdict for finding in found)])
        restarted = [count for act in acts if (count := pods_restarted(act)) is not None]
        rows.append(
            [
                name,
                str(len(acts)),
                _times(acts, lambda act: act.served.longest_write_gap_s),
                f"{sum(a.served.http_requests_failed for a in acts)} of {sum(a.served.http_requests for a in acts)}",
                str(sum(restarted)) if restarted else "-",
                _times(acts, lambda act: act.observed.get("replaced_s")),
                _times(acts, lambda act: act.observed.get("leader_s")),
                lost_writes(found),
                _verdict(verdict, acts),
                _bars(acts),
            ]
        )
    return table(
        [
            "EXPERIMENT", "TRIALS", "WRITE GAP S", "VIP FAILED", "PODS RESTARTED", "REPLACED S", "NEW LEADER S",
            "LOST WRITES", "VERDICT", "DESIGN BAR S",
        ],
        rows,
        gap=2,
    )  # fmt: skip


def lost_writes(findings: Sequence[Finding]) -> str:
    """How many acknowledged writes were lost, of how many; ``?`` where that could not be judged."""
    lost = [finding for finding in findings if finding.rule == _LOST]
    if not lost or any(finding.verdict is Verdict.INCONCLUSIVE for finding in lost):
        return "?"
    return f"{sum(finding.violated for finding in lost)} of {sum(finding.checked for finding in lost)}"


def _times(acts: Iterable[ActReport], take: Callable[[ActReport], float | None]) -> str:
    values = [float(value) for act in acts if (value := take(act)) is not None]
    return f"{statistics.median(values):.3f} / {max(values):.3f}" if values else "-"


def _verdict(verdict: Verdict, acts: Sequence[ActReport]) -> str:
    passed = sum(1 for act in acts if act.verdict is Verdict.PASS)
    return verdict.value if passed == len(acts) else f"{verdict.value} {passed}/{len(acts)}"


def _bars(acts: Sequence[ActReport]) -> str:
    """``write gap 0.1 met / 0.3 missed``: median and worst, as the columns have them."""
    said: dict[str, list[str]] = {}
    for one in held(acts):
        said.setdefault(one.bar.number, []).append(f"{one.bar.limit_s:g} {'-' if one.met is None else word_of(one)}")
    return ", ".join(f"{number} {' / '.join(words)}" for number, words in said.items()) or "-"


def bars_met(reports: Iterable[Report]) -> str:
    """A sentence on the columns and the bars of a matrix."""
    acts = [act for report in reports for act in report.acts]
    found = [one for _, one in held_of_each(acts)]
    met, measured = sum(1 for one in found if one.met), sum(1 for one in found if one.met is not None)
    return (
        "write gap, replaced, new leader: median / worst of the trials; VIP failed: requests of the Service that "
        "failed after one retry; verdict n/m: so many of the trials passed; "
        f"design bar: decides nothing, {met} of {measured} met"
    )
