"""One run as one HTML file that needs nothing else: no script, no font, no picture from anywhere.

Owns what the page says and in which order. Whatever comes from a history, a log or an experiment is escaped, and a
content policy in the page forbids scripts and loading besides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from chaos.availability import Window
from chaos.findings import Finding, Verdict
from chaos.history import History
from chaos.report import plots
from chaos.report.numbers import numbers
from chaos.report.text import repeats
from chaos.verdict import ActReport, Report

__all__ = ["page"]

_MOMENTS_MAX: Final = 6
_LINES_MAX: Final = 80
_LINE_CHARS_MAX: Final = 600
_BEFORE_S: Final = 0.5
_AFTER_S: Final = 3.0


def page(
    history: History,
    report: Report,
    *,
    experiment: Mapping[str, Any] | None = None,
    logs: Mapping[str, str] | None = None,
) -> str:
    """The HTML text. ``experiment``: what ``experiment.json`` holds; ``logs``: name -> the end of a process's log."""
    experiment = experiment or {}
    window = _window(history)
    environment = Environment(
        loader=PackageLoader("chaos.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    names = list(dict.fromkeys(act.act for act in report.acts))
    return environment.get_template("page.html.j2").render(
        title=str(
            experiment.get("title") or (report.acts[0].title if len(names) == 1 else "") or ", ".join(names) or "a run"
        ),
        description=str(experiment.get("description") or ""),
        verdict=report.verdict.value,
        facts=_facts(history, report, experiment),
        # Drawn here, of numbers and of texts that the drawing escapes.
        timeline=Markup(plots.timeline(history, window)),  # noqa: S704
        latency=Markup(plots.latency(history, window)),  # noqa: S704
        availability=Markup(plots.availability(history, window)),  # noqa: S704
        wrong=_wrong(report),
        whole=[_finding(finding) for finding in report.findings],
        repeats=_repeats(report.acts),
        trials=[_trial(act, window) for act in report.acts],
        logs=_moments(history, window, logs or {}),
    )


def _window(history: History) -> Window:
    """From the first operation or mark to the last."""
    begins = [*(op.call_ns for op in history.ops), *(mark.at_ns for mark in history.marks)]
    ends = [*(op.return_ns for op in history.ops), *(mark.at_ns for mark in history.marks)]
    return Window(min(begins, default=0), max(ends, default=0))


def _facts(history: History, report: Report, experiment: Mapping[str, Any]) -> list[tuple[str, str]]:
    seeds = list(dict.fromkeys(act.seed for act in report.acts if act.seed))
    facts = [
        ("run", f"{history.header.run}, begun {history.header.started_at}"),
        ("experiment", ", ".join(dict.fromkeys(act.act for act in report.acts))),
        ("seed", str(experiment.get("seed", "")) or ", ".join(seeds)),
        ("trials", str(len(report.acts))),
        ("operations", f"{len(history.ops):,}"),
        ("store", f"{history.header.store} at {', '.join(history.header.endpoints)}"),
    ]
    for name in ("commit", "versions", "machine", "cluster"):
        value = experiment.get(name)
        if isinstance(value, Mapping):
            facts.append((name, ", ".join(_fact(str(key), item) for key, item in value.items())))
        elif value:
            facts.append((name, _plain(value)))
    return [(name, value) for name, value in facts if value]


def _fact(name: str, value: object) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{name.removesuffix('_bytes')} {value / 2**30:.1f} GiB"
    return f"{name} {_plain(value)}"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _wrong(report: Report) -> list[dict[str, Any]]:
    """What broke, then what proved nothing, of every trial and of the whole."""
    named = [(f"{_name(act)}: ", finding) for act in report.acts for finding in act.findings]
    named += [("", finding) for finding in report.findings]
    bad = [(before, finding) for before, finding in named if finding.verdict is not Verdict.PASS]
    bad.sort(key=lambda item: item[1].verdict is not Verdict.FAIL)
    return [{**_finding(finding), "rule": before + finding.rule} for before, finding in bad]


def _name(act: ActReport) -> str:
    return act.act if act.n == 1 else f"{act.act} #{act.n}"


def _finding(finding: Finding) -> dict[str, Any]:
    unasked = finding.verdict is Verdict.PASS and not finding.checked
    return {
        "rule": finding.rule,
        "verdict": "n/a" if unasked else finding.verdict.value,
        "checked": f"{finding.checked:,}",
        "note": finding.note,
        "violated": finding.violated,
        "violations": finding.violations,
    }


def _repeats(acts: Sequence[ActReport]) -> dict[str, Any] | None:
    """Of an experiment that was tried more than once."""
    if not any(act.n > 1 for act in acts):
        return None
    headings, rows = repeats(acts)
    return {"headings": ["experiment", *headings[1:]], "rows": rows}


def _trial(act: ActReport, window: Window) -> dict[str, Any]:
    facts = [f"{(act.window.begin_ns - window.begin_ns) / 1e9:.1f} s into the run, for {act.duration_s:.1f} s"]
    facts += [f"seed {act.seed}"] if act.seed else []
    facts += [str(fault["says"]) for fault in act.faults if fault.get("says")]
    return {
        "name": _name(act),
        "verdict": act.verdict.value,
        "facts": "; ".join(facts),
        "numbers": numbers(act),
        "findings": [_finding(finding) for finding in act.findings],
    }


def _moments(history: History, window: Window, logs: Mapping[str, str]) -> list[dict[str, Any]]:
    """Around each fault, what the processes logged."""
    header = history.header
    if not logs or not header.anchor_ns:
        return [{"title": "the end of each log", "logs": _tails(logs)}] if logs else []
    moments = []
    spans = plots.fault_spans(history, window.begin_ns)
    for span in spans[:_MOMENTS_MAX]:
        at_ms = header.anchor_wall_ms + (window.begin_ns - header.anchor_ns) / 1e6 + span.begin_s * 1e3
        at = datetime.fromtimestamp(at_ms / 1e3, UTC)
        first, last = (_stamp(at + timedelta(seconds=s)) for s in (-_BEFORE_S, _AFTER_S))
        found = [
            _log(name, lines) for name, text in logs.items() if (lines := _between(text.splitlines(), first, last))
        ]
        moments.append({"title": f"{span.name}, at {_stamp(at)}", "logs": found or _tails(logs)})
    return moments


def _stamp(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


def _between(lines: Sequence[str], first: str, last: str) -> list[str]:
    """Lines of that time; those without one belong to the line before."""
    found, inside = [], False
    for line in lines:
        if line[:4].isdigit() and line[10:11] == "T":
            inside = first <= line[: len(first)] <= last
        if inside:
            found.append(line)
    return found


def _tails(logs: Mapping[str, str]) -> list[dict[str, Any]]:
    return [_log(name, text.splitlines()[-_LINES_MAX:]) for name, text in logs.items() if text.strip()]


def _log(name: str, lines: Sequence[str]) -> dict[str, Any]:
    shown = [line[:_LINE_CHARS_MAX] for line in lines[:_LINES_MAX]]
    more = [f"… {len(lines) - len(shown)} more lines"] if len(lines) > len(shown) else []
    return {"name": name, "lines": len(lines), "text": "\n".join([*shown, *more])}
