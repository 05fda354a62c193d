"""How well clients were served in a stretch of a history: gaps, failures, counts. Pure arithmetic over operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from chaos.records import KEYED, WRITES, Op

__all__ = ["Second", "Served", "Window", "longest_gap_s", "per_second", "served"]

#: What is said to a write on a lease that has run out: an answer, and a true one. No failure of the service: whether
#: the lease ended too early has a rule of its own.
_LEASE_GONE: Final = "requested lease not found"
_LEASING: Final = frozenset({"grant", "keepalive", "revoke"})


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time: ``begin_ns`` <= t <= ``end_ns``."""

    begin_ns: int
    end_ns: int

    def holds(self, at_ns: int) -> bool:
        """Whether the moment is in it."""
        return self.begin_ns <= at_ns <= self.end_ns

    def touches(self, op: Op) -> bool:
        """Whether any of the operation's time is in it."""
        return op.call_ns <= self.end_ns and op.return_ns >= self.begin_ns


@dataclass(frozen=True, slots=True)
class Served:
    """What clients saw in a window. Operations count where they were outstanding, so one that waited through a fault
    counts for it. Gaps in seconds."""

    writes_acknowledged: int
    reads_answered: int
    longest_write_gap_s: float
    longest_read_gap_s: float
    operations_failed: int
    operations_unknown: int
    http_requests: int
    http_attempts_failed: int
    http_requests_failed: int
    #: Grants, renewals and revocations, and those of them that failed or were not answered, and not made good.
    leases_asked: int = 0
    leases_failed: int = 0


def longest_gap_s(moments_ns: Iterable[int], window: Window) -> float:
    """The longest time within the window without one of these moments, its edges included."""
    inside = sorted(at for at in moments_ns if window.holds(at))
    edges = [window.begin_ns, *inside, window.end_ns]
    return max(b - a for a, b in pairwise(edges)) / 1e9


def served(ops: Sequence[Op], window: Window) -> Served:
    """Count what was served in a window."""
    touching = [op for op in ops if window.touches(op)]
    answered = [op for op in touching if op.outcome == "ok" and window.holds(op.return_ns)]
    acked = [op.return_ns for op in answered if op.kind in WRITES]
    read = [op.return_ns for op in answered if op.kind == "get"]
    keyed = [op for op in touching if op.kind in KEYED and _LEASE_GONE not in op.error]
    leases = [op for op in touching if op.kind in _LEASING and _LEASE_GONE not in op.error]
    http = [op for op in touching if op.kind == "http"]
    return Served(
        writes_acknowledged=len(acked),
        reads_answered=len(read),
        longest_write_gap_s=longest_gap_s(acked, window),
        longest_read_gap_s=longest_gap_s(read, window),
        operations_failed=sum(1 for op in keyed if op.outcome == "fail"),
        operations_unknown=sum(1 for op in keyed if op.outcome == "info"),
        http_requests=len(http),
        http_attempts_failed=sum(op.attempts_failed for op in http),
        http_requests_failed=sum(1 for op in http if op.outcome != "ok"),
        leases_asked=len(leases),
        leases_failed=_leases_failed(leases),
    )


def _leases_failed(leases: Iterable[Op]) -> int:
    """Grants, renewals and revocations that failed or were not answered, but for renewals made good: the next one of
    that lease was answered."""
    failed = 0
    open_renewals: dict[int, int] = {}
    for op in sorted(leases, key=lambda op: op.call_ns):
        if op.kind != "keepalive":
            failed += op.outcome != "ok"
        elif op.outcome == "ok":
            open_renewals.pop(op.lease, None)
        else:
            open_renewals[op.lease] = open_renewals.get(op.lease, 0) + 1
    return failed + sum(open_renewals.values())


@dataclass(frozen=True, slots=True)
class Second:
    """One second: what ended in it. ``at_s`` counts from the window's begin."""

    at_s: int
    writes_acknowledged: int = 0
    operations_ok: int = 0
    operations_not_ok: int = 0
    requests_ok: int = 0
    requests_failed: int = 0

    @property
    def availability(self) -> float | None:
        """The part of what ended that was answered; None: nothing ended."""
        ok = self.operations_ok + self.requests_ok
        ended = ok + self.operations_not_ok + self.requests_failed
        return ok / ended if ended else None


def per_second(ops: Iterable[Op], window: Window, *, step_s: int = 1) -> list[Second]:
    """The window in seconds, empty ones included; or in steps of so many seconds each."""
    step_ns = step_s * 1_000_000_000
    counts = [[0] * 5 for _ in range(max(0, window.end_ns - window.begin_ns) // step_ns + 1)]
    for op in ops:
        if not window.holds(op.return_ns):
            continue
        row = counts[(op.return_ns - window.begin_ns) // step_ns]
        ok = op.outcome == "ok"
        if op.kind == "http":
            row[3 if ok else 4] += 1
        elif op.kind in KEYED:
            row[0] += ok and op.kind in WRITES
            row[1 if ok else 2] += 1
    return [Second(n * step_s, *row) for n, row in enumerate(counts)]
