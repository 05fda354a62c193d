"""What the processes logged around each fault, for the page of a run.

Owns which faults are shown: those of trials that did not pass come first, and what does not fit is counted. Knows
nothing of how a page looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from chaos.availability import Window
from chaos.findings import Verdict
from chaos.records import History
from chaos.report import plots
from chaos.verdict import Report

__all__ = ["moments"]

#: A page is opened in a browser: so much text of logs, and the rest is in the run's folder.
_CHARS_MAX: Final = 1_500_000
_LINES_MAX: Final = 80
_LINE_CHARS_MAX: Final = 600
_BEFORE_S: Final = 0.5
_AFTER_S: Final = 3.0
_ORDER: Final = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)


def moments(
    history: History, report: Report, window: Window, logs: Mapping[str, str], *, chars_max: int = _CHARS_MAX
) -> dict[str, Any] | None:
    """``note`` and ``moments`` (each ``title``, ``verdict``, ``note``, ``logs``) for the page; None: there are no logs.

    ``logs``: name -> the end of a process's log. ``chars_max``: how many characters of logs at most, save that the
    first fault's are always shown.
    """
    if not logs:
        return None
    header = history.header
    if not header.anchor_ns:
        note = (
            "The history does not say what time it was, so that no line can be set beside a fault: the end of each log."
        )
        return {"note": note, "moments": [_moment("the end of each log", "", _tails(logs), "")]}
    split = {name: text.splitlines() for name, text in logs.items()}
    verdicts = {(act.act, act.n): act.verdict for act in report.acts}
    spans = plots.fault_spans(history, window.begin_ns)
    spans.sort(key=lambda span: _ORDER.index(verdicts.get((span.act, span.n), Verdict.INCONCLUSIVE)))
    shown: list[dict[str, Any]] = []
    used = 0
    for span in spans:
        at_ms = header.anchor_wall_ms + (window.begin_ns - header.anchor_ns) / 1e6 + span.begin_s * 1e3
        at = datetime.fromtimestamp(at_ms / 1e3, UTC)
        first, last = (_stamp(at + timedelta(seconds=s)) for s in (-_BEFORE_S, _AFTER_S))
        found = [_log(name, lines) for name, text in split.items() if (lines := _between(text, first, last))]
        used += sum(len(log["text"]) for log in found)
        if shown and used > chars_max:
            break
        verdict = verdicts.get((span.act, span.n))
        trial = span.act if span.n == 1 else f"{span.act} #{span.n}"
        shown.append(
            _moment(
                f"{trial}: {span.name}, at {_stamp(at)}",
                verdict.value if verdict is not None else "",
                found,
                "" if found else f"No process logged a line from {first} to {last}, as far as the logs were kept.",
            )
        )
    note = f"From {_BEFORE_S:g} s before to {_AFTER_S:g} s after each fault; trials that did not pass come first."
    if len(shown) < len(spans):
        left_out = len(spans) - len(shown)
        note += (
            f" {left_out} of {len(spans)} faults are left out; all logs that were kept are in logs/ beside this page."
        )
    return {"note": note, "moments": shown}


def _moment(title: str, verdict: str, logs: Sequence[Mapping[str, Any]], note: str) -> dict[str, Any]:
    return {"title": title, "verdict": verdict, "logs": logs, "note": note}


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
