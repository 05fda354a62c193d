"""The pictures of a report, as SVG text: who led and what was broken, how long answers took, how clients were served.

Colours are put in as marks that the page's style sheet resolves, so one picture reads in light and in dark. Text that
comes from a history is text to matplotlib too, never a formula.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chaos.availability import Window, per_second
from chaos.records import KEYED, History, Mark, Op

__all__ = ["Span", "availability", "fault_spans", "latency", "timeline"]

#: A colour of the drawing -> the page's own.
_COLOURS: Final = {
    "#010101": "var(--ink)",
    "#020202": "var(--faint)",
    "#030303": "var(--leader)",
    "#040404": "var(--follower)",
    "#050505": "var(--bad)",
    "#060606": "var(--write)",
    "#070707": "var(--read)",
    "#080808": "var(--request)",
    "#090909": "var(--fault)",
    "#0a0a0a": "var(--unknown)",
    "#0b0b0b": "var(--paper)",
}
_INK, _FAINT, _LEADER, _FOLLOWER, _BAD, _WRITE, _READ, _REQUEST, _FAULT, _UNKNOWN, _PAPER = _COLOURS
_NO_ROLE: Final = frozenset({"silent", "", "unknown"})
_POINTS_MAX: Final = 1_200
_BARS_MAX: Final = 240
_LABEL_CHARS_MAX: Final = 48
#: Faults are named up to so many; letters of a name that fit across the picture.
_NAMED_MAX: Final = 24
_CHARS_ACROSS: Final = 140
_SETTINGS: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "quarterdeck",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_WIDTH_IN: Final = 10.5


@dataclass(frozen=True, slots=True)
class Span:
    """A fault from its strike until it was healed (or the trial's end), in seconds of the run."""

    name: str
    begin_s: float
    end_s: float
    #: The trial it was struck in.
    act: str = ""
    n: int = 1


def fault_spans(history: History, begin_ns: int) -> list[Span]:
    """Every fault of the run."""
    spans = []
    for mark in history.marks:
        if mark.name != "fault":
            continue
        same = [m for m in history.marks if (m.act, m.n) == (mark.act, mark.n) and m.at_ns >= mark.at_ns]
        number = mark.detail.get("id")
        healed = [m.at_ns for m in same if m.name == "healed" and m.detail.get("id") == number]
        later = healed or [m.at_ns for m in same if m.name == "recovered"] or [m.at_ns for m in same]
        victims = mark.detail.get("victims") or [
            mark.detail[key] for key in ("replica", "member", "node") if key in mark.detail
        ]
        name = str(mark.detail.get("fault", mark.act))
        said = _label(f"{name} {', '.join(map(str, victims))}".strip())
        spans.append(Span(said, (mark.at_ns - begin_ns) / 1e9, (later[0] - begin_ns) / 1e9, mark.act, mark.n))
    return spans


def timeline(history: History, window: Window) -> str:
    """Roles by replica, faults, and what went wrong."""
    spans = fault_spans(history, window.begin_ns)
    seen = [mark for mark in history.marks if mark.name == "seen"]
    names = sorted({name for mark in seen for name in mark.detail.get("roles", {})})
    assigned = _lanes(spans, (window.end_ns - window.begin_ns) / 1e9)
    lanes = max(assigned, default=0) + 1
    with mpl.rc_context(_SETTINGS):
        figure, axes = _figure(0.9 + 0.3 * (len(names) + lanes + 1))
        for row, name in enumerate(names):
            _roles(axes, seen, window, name, len(names) - row)
        for span, lane in zip(spans, assigned, strict=True):
            at = -lane
            axes.barh(
                at,
                max(span.end_s - span.begin_s, 0.05),
                left=span.begin_s,
                height=0.6,
                color=_FAULT,
                alpha=0.5,
                ec=_PAPER,
            )
            if len(spans) <= _NAMED_MAX:
                axes.text(span.begin_s, at, f" {span.name}", va="center", fontsize=8)
        bottom = -lanes
        wrong = [op for op in _asked(history) if op.outcome != "ok" or op.attempts_failed]
        for colour, kind in ((_UNKNOWN, "info"), (_BAD, "fail")):
            at_s = [(op.return_ns - window.begin_ns) / 1e9 for op in wrong if op.outcome == kind][:_POINTS_MAX]
            axes.scatter(at_s, [bottom] * len(at_s), marker="|", s=60, color=colour, linewidths=1)
        retried = [(op.return_ns - window.begin_ns) / 1e9 for op in wrong if op.outcome == "ok"][:_POINTS_MAX]
        axes.scatter(retried, [bottom] * len(retried), marker="|", s=25, color=_REQUEST, linewidths=0.8)
        ticks = [*range(len(names), 0, -1), 0, bottom]
        axes.set_yticks(ticks, [*map(_label, names), "faults", "errors"])
        axes.set_ylim(bottom - 0.7, len(names) + 0.7)
        axes.grid(visible=False, axis="y")
        _seconds(axes, window)
        return _svg(figure, "who led, what was broken, and what went wrong")


def _roles(axes: Axes, seen: Sequence[Mark], window: Window, name: str, row: int) -> None:
    """One replica's bar: what it was, from one sighting to the next; a gap while it did not answer."""
    ends = [*(mark.at_ns for mark in seen[1:]), window.end_ns]
    whole_s = (window.end_ns - window.begin_ns) / 1e9
    bars: list[tuple[str, float, float]] = []
    for mark, end_ns in zip(seen, ends, strict=True):
        role = str(mark.detail.get("roles", {}).get(name, "silent"))
        if role in _NO_ROLE:
            continue
        leads = name == mark.detail.get("leader")
        what = f"term {mark.detail.get('term')}" if leads else ""
        begin_s = max(0.0, (mark.at_ns - window.begin_ns) / 1e9)
        end_s = (min(end_ns, window.end_ns) - window.begin_ns) / 1e9
        if bars and bars[-1][0] == what and bars[-1][2] >= begin_s - 0.001:
            bars[-1] = (what, bars[-1][1], end_s)
        elif end_s > begin_s:
            bars.append((what, begin_s, end_s))
    for what, begin_s, end_s in bars:
        colour, alpha = (_LEADER, 0.9) if what else (_FOLLOWER, 0.5)
        axes.barh(row, end_s - begin_s, left=begin_s, height=0.55, color=colour, alpha=alpha)
        if what and end_s - begin_s > whole_s / 20:
            middle_s = (begin_s + end_s) / 2
            axes.text(middle_s, row, what, ha="center", va="center", fontsize=8, color=_PAPER)


def latency(history: History, window: Window) -> str:
    """How long each operation took, by when it was asked; what was not answered stands out. The slowest and the failed
    are all drawn, of the rest a sample."""
    with mpl.rc_context(_SETTINGS):
        figure, axes = _figure(2.9)
        _shade(axes, history, window)
        groups: Sequence[tuple[str, str, frozenset[str]]] = (
            ("requests", _REQUEST, frozenset({"http"})),
            ("reads", _READ, frozenset({"get"})),
            ("writes", _WRITE, frozenset({"put", "delete", "txn"})),
        )
        for label, colour, kinds in groups:
            mine = _sample([op for op in history.ops if op.kind in kinds and op.outcome == "ok"])
            if mine:
                axes.scatter(*_points(mine, window), s=4, color=colour, label=label, linewidths=0, alpha=0.7)
        for label, colour, outcome in (("failed", _BAD, "fail"), ("unknown", _UNKNOWN, "info")):
            bad = [op for op in _asked(history) if op.outcome == outcome][:_POINTS_MAX]
            if bad:
                axes.scatter(*_points(bad, window), s=18, color=colour, marker="x", label=label, linewidths=1)
        axes.set_yscale("log")
        axes.set_ylabel("answer after, ms")
        axes.yaxis.set_major_formatter("{x:g}")
        if history.ops:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, markerscale=2)
        _seconds(axes, window)
        return _svg(figure, "latency of every operation")


def _asked(history: History) -> list[Op]:
    """Operations whose failure a user would notice: a renewal of a lease that has run out is answered as it must be."""
    return [op for op in history.ops if op.kind in KEYED or op.kind == "http"]


def _sample(ops: Sequence[Op]) -> Sequence[Op]:
    if len(ops) <= _POINTS_MAX:
        return ops
    slowest = sorted(ops, key=lambda op: op.call_ns - op.return_ns)[: _POINTS_MAX // 4]
    every = len(ops) // (_POINTS_MAX * 3 // 4) + 1
    return [*slowest, *ops[::every]]


def _points(ops: Iterable[Op], window: Window) -> tuple[list[float], list[float]]:
    ops = list(ops)
    at_s = [(op.call_ns - window.begin_ns) / 1e9 for op in ops]
    return at_s, [max(op.return_ns - op.call_ns, 1_000) / 1e6 for op in ops]


def availability(history: History, window: Window) -> str:
    """Per second: writes acknowledged, and the part of everything asked that was answered."""
    step_s = int((window.end_ns - window.begin_ns) / 1e9) // _BARS_MAX + 1
    seconds = per_second(history.ops, window, step_s=step_s)
    with mpl.rc_context(_SETTINGS):
        figure, axes = _figure(2.6)
        _shade(axes, history, window)
        at_s = [second.at_s + step_s / 2 for second in seconds]
        written = [second.writes_acknowledged / step_s for second in seconds]
        axes.bar(at_s, written, width=0.9 * step_s, color=_WRITE, alpha=0.55, label="writes acknowledged per second")
        axes.set_ylabel("writes/s")
        right = axes.twinx()
        known = [(x, second.availability) for x, second in zip(at_s, seconds, strict=True)]
        right.plot(
            [x for x, part in known if part is not None],
            [part * 100 for _, part in known if part is not None],
            color=_READ, linewidth=1.6, label="answered, %",
        )  # fmt: skip
        right.set_ylim(-3, 103)
        right.set_ylabel("answered, %")
        right.grid(visible=False)
        handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
        axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        _seconds(axes, window)
        return _svg(figure, "availability per second")


def _shade(axes: Axes, history: History, window: Window) -> None:
    for span in fault_spans(history, window.begin_ns):
        axes.axvspan(span.begin_s, max(span.end_s, span.begin_s + 0.05), color=_FAULT, alpha=0.15, linewidth=0)


def _lanes(spans: Sequence[Span], whole_s: float) -> list[int]:
    """A lane for each, so that those at the same time do not cover each other, nor their names."""
    char_s = whole_s / _CHARS_ACROSS if len(spans) <= _NAMED_MAX else 0.0
    ends: list[float] = []
    lanes = []
    for span in spans:
        lane = next((n for n, end_s in enumerate(ends) if end_s <= span.begin_s), len(ends))
        if lane == len(ends):
            ends.append(0.0)
        ends[lane] = max(span.end_s, span.begin_s + (len(span.name) + 2) * char_s)
        lanes.append(lane)
    return lanes


def _figure(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    return figure, figure.add_subplot()


def _seconds(axes: Axes, window: Window) -> None:
    axes.set_xlim(0, max(1.0, (window.end_ns - window.begin_ns) / 1e9))
    axes.set_xlabel("seconds of the run")


def _label(text: str) -> str:
    """Short, and of characters that can be drawn."""
    printable = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return printable if len(printable) <= _LABEL_CHARS_MAX else printable[: _LABEL_CHARS_MAX - 1] + "…"


def _svg(figure: Figure, title: str) -> str:
    out = io.StringIO()
    with warnings.catch_warnings():
        # Letters that the measuring font lacks are the browser's to draw: text stays text in the picture.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Its own width and height would win over the page's.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    # Ids are per picture in matplotlib, and one page holds several.
    prefix = "".join(word[0] for word in title.split())
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for drawn, shown in _COLOURS.items():
        text = text.replace(drawn, shown)
    return text
