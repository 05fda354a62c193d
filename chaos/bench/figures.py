"""What a benchmark measures, and the tables it makes. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from chaos.bench.targets import Target

__all__ = ["Figure", "Figures", "percentile", "table"]


@dataclass
class Figure:
    """One measured quantity, one value per round for ours and for the peer.

    Attributes:
        unit: shown behind the numbers.
        higher_is_better: throughput is, latency is not.
    """

    name: str
    unit: str
    higher_is_better: bool
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """Ours / the peer's, of the medians."""
        if not self.ours or not self.peer or statistics.median(self.peer) == 0:
            return None
        return statistics.median(self.ours) / statistics.median(self.peer)


class Figures:
    """All figures of a run, in the order in which they were first noted."""

    def __init__(self) -> None:
        self._figures: dict[str, Figure] = {}

    def note(self, kind_is_ours: bool, name: str, value: float, unit: str, *, higher_is_better: bool) -> None:
        figure = self._figures.setdefault(name, Figure(name, unit, higher_is_better))
        (figure.ours if kind_is_ours else figure.peer).append(value)

    def __iter__(self) -> Iterator[Figure]:
        return iter(self._figures.values())


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of the values do not exceed. Nearest rank."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def table(figures: Iterable[Figure], targets: Mapping[str, Target]) -> str:
    """Markdown: medians, the range of the rounds, the ratio; with targets, those and whether each is met."""
    head = ["what", "quarterdeck", "etcd", "ours / etcd", "better", *(["target", "met"] if targets else []), "n"]
    rows = [head, ["---"] * len(head)]
    for f in figures:
        ratio = "-" if f.ratio is None else f"{f.ratio:.2f}"
        better = "more" if f.higher_is_better else "less"
        n = f"{len(f.ours)}, {len(f.peer)}" if len(f.ours) != len(f.peer) else str(len(f.ours))
        wanted = _wanted(f, targets.get(f.name)) if targets else []
        rows.append([f.name, _cell(f.ours, f.unit), _cell(f.peer, f.unit), ratio, better, *wanted, n])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _wanted(figure: Figure, target: Target | None) -> list[str]:
    if target is None:
        return ["", ""]
    return [target.text, {True: "yes", False: "**no**", None: ""}[target.met(figure.ours, figure.ratio)]]


def _cell(values: Sequence[float], unit: str) -> str:
    if not values:
        return "-"
    middle = f"{_number(statistics.median(values))} {unit}"
    if len(values) == 1:
        return middle
    return f"{middle} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"
