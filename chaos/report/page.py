"""One run as one HTML file that needs nothing else: no script, no font, no picture from anywhere.

Owns what the page says and in which order. Whatever comes from a history, a log or an experiment is escaped, and a
content policy in the page forbids scripts and loading besides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from chaos.availability import Window
from chaos.bars import held_of_each, word_of
from chaos.findings import Finding, Verdict
from chaos.records import History
from chaos.report import plots
from chaos.report.moments import moments
from chaos.report.numbers import numbers
from chaos.report.text import repeats
from chaos.verdict import ActReport, Report

__all__ = ["page"]


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
    descriptions = _descriptions(experiment)
    return environment.get_template("page.html.j2").render(
        title=str(
            experiment.get("title") or (report.acts[0].title if len(names) == 1 else "") or ", ".join(names) or "a run"
        ),
        description=descriptions.get(names[0], "") if len(names) == 1 else "",
        verdict=report.verdict.value,
        facts=_facts(history, report, experiment),
        # Drawn here, of numbers and of texts that the drawing escapes.
        timeline=Markup(plots.timeline(history, window)),  # noqa: S704
        latency=Markup(plots.latency(history, window)),  # noqa: S704
        availability=Markup(plots.availability(history, window)),  # noqa: S704
        wrong=_wrong(report),
        whole=[_finding(finding) for finding in report.findings],
        repeats=_repeats(report.acts),
        bars=_bars(report.acts),
        # Of several experiments each first trial says what its experiment does; of one, the top of the page.
        trials=[
            _trial(act, window, descriptions.get(act.act, "") if len(names) > 1 and act.n == 1 else "")
            for act in report.acts
        ],
        logs=moments(history, report, window, logs or {}),
    )


def _descriptions(experiment: Mapping[str, Any]) -> dict[str, str]:
    """What each experiment does, in its own words, by name."""
    found = [item for item in experiment.get("experiments") or () if isinstance(item, Mapping)]
    return {str(item.get("name")): str(item.get("description") or "").strip() for item in found}


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


def _bars(acts: Sequence[ActReport]) -> list[dict[str, Any]]:
    """What the design asks of each experiment, and what was measured."""
    return [
        {
            "act": name,
            "number": f"{one.bar.number}, {one.bar.statistic}",
            "trials": one.trials,
            "measured": "-" if one.measured_s is None else f"{one.measured_s:.3f} s",
            "limit": f"{one.bar.limit_s:g} s",
            "word": word_of(one),
        }
        for name, one in held_of_each(acts)
    ]


def _trial(act: ActReport, window: Window, description: str) -> dict[str, Any]:
    facts = [f"{(act.window.begin_ns - window.begin_ns) / 1e9:.1f} s into the run, for {act.duration_s:.1f} s"]
    facts += [f"seed {act.seed}"] if act.seed else []
    facts += [str(fault["says"]) for fault in act.faults if fault.get("says")]
    return {
        "name": _name(act),
        "verdict": act.verdict.value,
        "description": description,
        "facts": "; ".join(facts),
        "numbers": numbers(act),
        "findings": [_finding(finding) for finding in act.findings],
    }
