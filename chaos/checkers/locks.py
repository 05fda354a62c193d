"""What a lock promises: one holder at a time, told apart by fencing tokens.

The token is the lock key's create revision. Two clients may well believe for a moment that they hold the lock (one was
stalled, and its lease ran out); that is counted, and is no fault. A write that compares the token and gets through
after another holder's is one.
"""

from __future__ import annotations

from itertools import pairwise

from chaos.checkers.log import Log, named
from chaos.findings import Finding, judge
from chaos.records import Hold, Op

__all__ = ["check_locks"]


def check_locks(log: Log) -> list[Finding]:
    """Nothing if there were no locks."""
    fenced = [op for op in log.answered if op.part == "lock" and op.compares and op.compares[0][1:2] == ("create",)]
    writes = [op for op in fenced if op.compares[0][2]]
    if not fenced and not log.history.holds:
        return []
    broken = [*_in_turn([op for op in writes if op.succeeded]), *_held(log, writes)]
    refused = sum(1 for op in writes if not op.succeeded)
    note = f"{_overlaps(log.history.holds)} times two believed to hold it, {refused} late writes refused"
    return [judge("locks: one holder at a time, by fencing token", len(writes), broken, note=note)]


def _in_turn(writes: list[Op]) -> list[str]:
    """Tokens never go back: whoever has lost the lock writes no more."""
    broken = []
    newest: dict[str, Op] = {}
    for op in sorted(writes, key=lambda op: op.revision):
        lock = op.compares[0][0]
        before = newest.get(lock)
        if before is not None and int(op.compares[0][2]) < int(before.compares[0][2]):
            broken.append(
                f"{named(op)} wrote at revision {op.revision} under token {op.compares[0][2]}, after {named(before)} "
                f"under {before.compares[0][2]}"
            )
        else:
            newest[lock] = op
    return broken


def _held(log: Log, writes: list[Op]) -> list[str]:
    """Each write got through exactly while its token was the lock's."""
    broken = []
    for op in writes:
        lock, _, token = op.compares[0]
        if not log.certain(lock, op.revision) or not op.succeeded:
            continue
        state = log.before(lock, op.revision)
        if state.create_revision != token:
            holder = f"that of token {state.create_revision}" if state.create_revision else "free"
            broken.append(f"{named(op)} wrote at revision {op.revision} under token {token}; the lock was {holder}")
    return broken


def _overlaps(holds: list[Hold]) -> int:
    by_time = sorted(holds, key=lambda hold: hold.from_ns)
    return sum(1 for first, then in pairwise(by_time) if first.key == then.key and then.from_ns < first.until_ns)
