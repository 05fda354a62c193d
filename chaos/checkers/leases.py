"""What every lease promises: never early, not much too late, and all its keys at once.

A promise counts from when the request that obtained it was *sent*: whoever was told so many seconds counts from there,
and no replica can have counted from earlier. When a key went is known from the first watcher that was told, which is
never before it went. So what looks early was early; what looks late has some slack for the telling.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from chaos.checkers.log import Log
from chaos.findings import Finding, judge
from chaos.records import WRITES, History, Op

__all__ = ["LATE_S", "check_leases"]

#: Replicas' clocks may run so much faster than the recorder's.
_CLOCK_RATE: Final = 0.002
#: From a lease's end to the entry that says so, and from there to the watcher; on top of a leader change or an outage,
#: which both let a lease begin anew.
LATE_S: Final = 5.0
#: Without an acknowledged write for so long, nothing could expire either.
_OUTAGE_NS: Final = 1_000_000_000


@dataclass(slots=True)
class _Life:
    lease: int
    ttl_s: int
    #: (sent, answered) of the grant and of every renewal that was answered with time.
    promises: list[tuple[int, int]]
    #: When anybody may last have renewed it.
    renewed_ns: int
    revoked: list[Op] = field(default_factory=list)
    #: key -> revision it was attached at.
    keys: dict[str, int] = field(default_factory=dict)


def check_leases(log: Log) -> list[Finding]:
    """Nothing if there were no leases."""
    lives = _lives(log.history)
    if not lives:
        return []
    judged = _Leases(log, lives)
    return [judged.never_early(), judged.not_late(), judged.at_once()]


def _lives(history: History) -> list[_Life]:
    lives: dict[int, _Life] = {}
    for op in sorted(history.ops, key=lambda op: op.call_ns):
        if not op.lease:
            continue
        if op.kind == "grant" and op.outcome == "ok":
            lives[op.lease] = _Life(op.lease, op.ttl_s, [(op.call_ns, op.return_ns)], op.return_ns)
        elif (life := lives.get(op.lease)) is None:
            continue
        elif op.kind == "keepalive":
            if op.outcome == "ok" and op.ttl_s:
                life.promises.append((op.call_ns, op.return_ns))
            if op.outcome == "info" or op.ttl_s:
                life.renewed_ns = max(life.renewed_ns, op.return_ns)
        elif op.kind == "revoke" and op.outcome != "fail":
            life.revoked.append(op)
        elif op.kind == "put" and op.outcome == "ok":
            life.keys[op.key] = op.revision
    return list(lives.values())


class _Leases:
    """All leases, and when keys were seen to go."""

    def __init__(self, log: Log, lives: Sequence[_Life]) -> None:
        history = log.history
        went: defaultdict[str, dict[int, int]] = defaultdict(dict)
        for told in history.told:
            for change in told.changes:
                if change.value is None:
                    seen = went[change.key]
                    at = change.mod_revision
                    seen[at] = min(seen.get(at, told.received_ns), told.received_ns)
        self._went = went
        restored = [mark.at_ns for mark in history.marks if mark.name == "restored"]
        # Of what a restore gave up nothing more is known.
        self._lives = [life for life in lives if not any(self._crosses(life, at_ns) for at_ns in restored)]
        self._changes = leader_changes(history.ops)
        self._outages = list(_outages(history.ops))
        ends = [listing.at_ns for listing in history.listings if listing.reason == "shared"]
        self._end_ns = max(ends, default=0)

    def _gone(self, life: _Life) -> list[tuple[str, int, int]]:
        """(key, revision, when told) of its keys that went."""
        found = []
        for key, put in life.keys.items():
            later = [(revision, at_ns) for revision, at_ns in self._went[key].items() if revision > put]
            if later:
                found.append((key, *min(later)))
        return found

    def _crosses(self, life: _Life, at_ns: int) -> bool:
        gone = self._gone(life)
        return life.promises[0][0] < at_ns and (len(gone) < len(life.keys) or any(told > at_ns for *_, told in gone))

    def never_early(self) -> Finding:
        checked = through = 0
        broken = []
        for life in self._lives:
            for key, revision, told_ns in self._gone(life):
                if any(op.call_ns <= told_ns for op in life.revoked):
                    continue
                checked += 1
                told_of = [sent for sent, answered in life.promises if answered <= told_ns]
                sent_ns = max(told_of, default=life.promises[0][0])
                due_ns = sent_ns + life.ttl_s * (1 - _CLOCK_RATE) * 1e9
                through += any(sent_ns < at_ns < told_ns for at_ns in self._changes)
                if told_ns < due_ns:
                    broken.append(
                        f"lease {life.lease:x}: {key} went at revision {revision}, {(due_ns - told_ns) / 1e9:.3f} s "
                        f"before its {life.ttl_s} s were over"
                    )
        note = f"{through} over a change of leader" if through else ""
        return judge("leases: none ends early", checked, broken, note=note)

    def not_late(self) -> Finding:
        checked = 0
        broken = []
        worst_s = 0.0
        for life in self._lives:
            if not life.keys or not self._end_ns:
                continue
            due_ns = self._due_ns(life)
            gone = self._gone(life)
            told = {key: told_ns for key, _, told_ns in gone}
            for key in life.keys:
                at_ns = told.get(key, self._end_ns)
                if key not in told and due_ns >= self._end_ns:
                    continue  # the run ended before it had to go
                checked += 1
                worst_s = max(worst_s, (at_ns - life.renewed_ns) / 1e9 - life.ttl_s)
                if at_ns > due_ns:
                    what = "went" if key in told else "was still there"
                    broken.append(
                        f"lease {life.lease:x}: {key} {what} {(at_ns - life.renewed_ns) / 1e9:.3f} s after the last "
                        f"renewal, for {life.ttl_s} s"
                    )
        note = f"latest {max(0.0, worst_s):.2f} s after its time" if checked else ""
        return judge("leases: none outlives its time", checked, broken, note=note)

    def _due_ns(self, life: _Life) -> int:
        """When it must have been told gone, at the latest."""
        ttl_ns = int(life.ttl_s * (1 + _CLOCK_RATE) * 1e9)
        slack_ns = int(LATE_S * 1e9)
        due_ns = life.renewed_ns + ttl_ns
        for begin_ns, end_ns in sorted([*((at, at) for at in self._changes), *self._outages]):
            if begin_ns <= due_ns + slack_ns:
                due_ns = max(due_ns, end_ns + ttl_ns)
        return due_ns + slack_ns

    def at_once(self) -> Finding:
        checked = 0
        broken = []
        for life in self._lives:
            gone = self._gone(life)
            revisions = {revision for _, revision, _ in gone}
            if len(gone) < 2:
                continue
            checked += 1
            if len(revisions) > 1:
                broken.append(f"lease {life.lease:x}: its keys went at revisions {sorted(revisions)}")
        return judge("leases: all keys go in one revision", checked, broken)


def leader_changes(ops: Iterable[Op]) -> list[int]:
    """When an answer first showed each new term, in ns."""
    changes: list[int] = []
    term = 0
    for op in sorted((op for op in ops if op.term), key=lambda op: op.return_ns):
        if op.term > term:
            if term:
                changes.append(op.return_ns)
            term = op.term
    return changes


def _outages(ops: Iterable[Op]) -> Iterable[tuple[int, int]]:
    acked = sorted(op.return_ns for op in ops if op.kind in WRITES and op.outcome == "ok")
    for before, after in pairwise(acked):
        if after - before > _OUTAGE_NS:
            yield before, after
