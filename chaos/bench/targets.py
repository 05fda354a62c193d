"""What the design wants of a figure, and whether it got it. Pure.

The names are those under which the cases note their figures.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["ELSEWHERE", "TARGETS", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """``text``: as the table shows it. ``holds``: of our values, one per round or trial, and of the ratio to the
    peer's."""

    text: str
    holds: Callable[[Sequence[float], float | None], bool | None]

    def met(self, ours: Sequence[float], ratio: float | None) -> bool | None:
        """None: nothing was measured that could tell."""
        return self.holds(ours, ratio) if ours else None


def _gap(median_s: float | None, worst_s: float) -> Target:
    text = f"worst <= {worst_s:g} s" if median_s is None else f"median <= {median_s:g} s, worst <= {worst_s:g} s"

    def holds(ours: Sequence[float], _ratio: float | None) -> bool:
        return max(ours) <= worst_s and (median_s is None or statistics.median(ours) <= median_s)

    return Target(text, holds)


def _ratio(text: str, holds: Callable[[float], bool]) -> Target:
    return Target(text, lambda _ours, ratio: None if ratio is None else holds(ratio))


#: Name of the figure -> what it should be.
TARGETS: Final[Mapping[str, Target]] = {
    "writes, 500 clients: throughput": _ratio(">= 1.5 x etcd", lambda ratio: ratio >= 1.5),
    "writes, 500 clients: p99": _ratio("lower than etcd", lambda ratio: ratio < 1),
    "etcdctl check perf, load l: writes": _ratio(">= 1.5 x etcd", lambda ratio: ratio >= 1.5),
    "etcdctl check perf, load l: slowest": _ratio("lower than etcd", lambda ratio: ratio < 1),
    "longest write gap, kill -9 of the leader": _gap(0.1, 0.3),
    "longest write gap, SIGSTOP of the leader": _gap(None, 1.2),
    "longest write gap, SIGTERM of the leader": _gap(None, 0.03),
    "20,000 keys of 1 KB: disks lost, restored, first write": _gap(None, 1.4),
}

#: Targets that have no row, because etcd has nothing to put beside them, and what measures them.
ELSEWHERE: Final = (
    "node killed, pods Ready elsewhere: `make chaos`",
    "set-up done, cluster serving: `make cluster` says it",
    "pods bound a second, agents held: docs/measurements.md",
)
