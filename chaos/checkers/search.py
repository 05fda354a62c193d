"""Shared keys once more, by search: a second opinion that trusts no revision (``chaos.wgl``).

The search explodes on long histories, so each key's is cut into stretches that overlap by half. At the beginning of a
stretch nothing is known of the key, and what was under way then, or is at its end, may take effect or not: a stretch
can only be too lenient. Where a history has no revisions, the search is the only opinion, and takes each key's history
whole.

There is a bound on the work, for each stretch and for all of them. Beyond it the opinion is INCONCLUSIVE, and says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from chaos.checkers.lineage import Lineage
from chaos.checkers.log import named
from chaos.findings import Finding, Verdict, judge
from chaos.records import History, Op
from chaos.wgl import ANY, Answer, RegisterOp, search

__all__ = ["RULE", "check_by_search"]

RULE: Final = "shared keys: some order explains every answer (search)"
_STRETCH: Final = 60
_STEPS_MAX: Final = 200_000
_STEPS_IN_ALL_MAX: Final = 2_000_000
_NEVER: Final = float("inf")


def check_by_search(
    history: History, lineage: Lineage | None = None, *, whole: bool = False, steps_max: int = _STEPS_IN_ALL_MAX
) -> list[Finding]:
    """``whole``: every key's history in one piece, from a key that is not there. Nothing if there are no such keys.
    Before and after a restore are histories of their own: what was given up makes no sense to the other."""
    lineage = lineage or Lineage()
    by_key: defaultdict[str, list[Op]] = defaultdict(list)
    unfit: set[str] = set()
    for op in history.ops:
        if op.part != "txn" or op.serializable or op.outcome == "fail":
            continue
        keys = _keys(op)
        by_key[op.key].append(op)
        if len(keys) > 1:
            unfit |= keys
    if not by_key:
        return []
    tally = _Tally(steps_max)
    for key, ops in sorted(by_key.items()):
        translated = [(found, op) for op in ops if (found := _translated(op)) is not None]
        if key in unfit or len(translated) < len([op for op in ops if op.outcome == "ok" or op.kind != "get"]):
            tally.unfit += 1
            continue
        tally.names = {(found.call, found.end): named(op) for found, op in translated}
        for life in range(len(lineage.restores) + 1):
            mine = [
                found for found, op in translated if op.outcome != "ok" or lineage.life(op.revision) == life
            ]  # fmt: skip
            tally.judge(key, mine, whole=whole)
    return [tally.finding(alone=whole)]


def _keys(op: Op) -> set[str]:
    return {op.key, *(compare[0] for compare in op.compares), *(step[1] for step in (*op.then, *op.otherwise))}


def _translated(op: Op) -> RegisterOp | None:
    """The operation in terms of one register; None if it cannot be put so, or says nothing."""
    end = op.return_ns if op.outcome == "ok" else _NEVER
    if op.kind == "get":
        return RegisterOp("read", op.value, op.call_ns, end) if op.outcome == "ok" else None
    if op.kind == "put":
        return RegisterOp("write", op.value, op.call_ns, end)
    if op.kind == "delete":
        found_nothing = op.outcome == "ok" and op.succeeded is False
        return RegisterOp("read" if found_nothing else "write", None, op.call_ns, end)
    if len(op.compares) != 1 or len(op.then) != 1 or op.then[0][0] != "put":
        return None
    _, what, wanted = op.compares[0]
    if what == "value":
        expected = str(wanted)
    elif what in {"create", "version", "mod"} and wanted == 0:
        expected = None
    else:
        return None
    if op.outcome == "ok" and not op.succeeded and op.otherwise and op.results:
        seen = op.results[0]
        if seen is None or seen[0] != expected:
            return RegisterOp("read", None if seen is None else seen[0], op.call_ns, end)
    went_through = op.succeeded is True or op.outcome != "ok"  # or may have
    return RegisterOp("swap", op.then[0][2], op.call_ns, end, expected=expected, ok=went_through)


@dataclass(slots=True)
class _Tally:
    """What was found so far, and how much work is left."""

    steps_left: int
    checked: int = 0
    #: Answers that show what the key was: without any, every order explains them.
    showing: int = 0
    unfit: int = 0
    given_up: int = 0
    broken: list[str] = field(default_factory=list)
    #: (call, end) of an operation -> how to name it, of the key at hand.
    names: dict[tuple[float, float], str] = field(default_factory=dict)

    def judge(self, key: str, ops: Sequence[RegisterOp], *, whole: bool) -> None:
        ops = sorted(ops, key=lambda op: op.call)
        self.showing += sum(op.kind != "write" and op.end != _NEVER for op in ops)
        if whole and self._one(key, _without_bystanders(ops), None, "its whole history") is not Answer.UNKNOWN:
            self.checked += len(ops)
            return
        if whole:
            self.given_up += 1  # the stretches may still show what is wrong, not that all is well
        for begin, end, stretch in _stretches(ops):
            answer = self._one(key, stretch, ANY, f"the {len(stretch)} operations from {begin:.3f} to {end:.3f} s")
            if answer is Answer.NO:
                return  # what follows would say the same again
            if answer is Answer.UNKNOWN:
                self.given_up += 1
            elif not whole:
                self.checked += len(stretch)

    def _one(self, key: str, ops: Sequence[RegisterOp], initial: object, what: str) -> Answer:
        if self.steps_left <= 0:
            return Answer.UNKNOWN
        answer, steps = search(ops, initial=initial, steps_max=min(_STEPS_MAX, self.steps_left))
        self.steps_left -= steps
        if answer is Answer.NO:
            self.broken.append(f"{key}: no order explains {what}{self._since(ops, initial)}")
        return answer

    def _since(self, ops: Sequence[RegisterOp], initial: object) -> str:
        """Whose answer made it so: the first without which all before it can be explained."""
        ends = sorted(op.end for op in ops if op.end != _NEVER)
        low, high = 0, len(ends) - 1  # known up to the high one there is no order
        while low < high:
            middle = (low + high) // 2
            answer, _ = search(_known_at(ends[middle], ops), initial=initial, steps_max=_STEPS_MAX // 10)
            if answer is Answer.UNKNOWN:
                return ""
            low, high = (low, middle) if answer is Answer.NO else (middle + 1, high)
        culprit = next(op for op in ops if op.end == ends[low])
        return f"; there is one until {self.names.get((culprit.call, culprit.end), 'an operation')} was answered"

    def finding(self, *, alone: bool) -> Finding:
        """``alone``: there is no other opinion, so one that had nothing to judge by is none."""
        note = f"{self.unfit} keys have transactions over several and were left out" if self.unfit else ""
        if self.given_up and not self.broken:
            given_up = f"the bound on the work was reached in {self.given_up} places"
            note = f"{note}; {given_up}" if note else given_up
            return Finding(RULE, Verdict.INCONCLUSIVE, self.checked, note=note)
        if alone and not self.showing and not self.broken:
            return Finding(RULE, Verdict.INCONCLUSIVE, self.checked, note="no answer shows what a key was")
        return judge(RULE, self.checked, self.broken, at_least=0, note=note)


def _without_bystanders(ops: Sequence[RegisterOp]) -> list[RegisterOp]:
    """Without the operations of unknown outcome whose value nobody saw: an order with one of them is an order without
    it too, and each of them would double the work. Not so where a swap was refused and nobody says by which value."""
    if any(op.kind == "swap" and not op.ok for op in ops):
        return list(ops)
    seen = {op.value for op in ops if op.kind == "read"}
    seen |= {op.expected for op in ops if op.kind == "swap" and op.end != _NEVER}
    kept: set[int] = set()
    while True:
        more = {n for n, op in enumerate(ops) if n not in kept and (op.end != _NEVER or op.value in seen)}
        if not more:
            return [op for n, op in enumerate(ops) if n in kept]
        kept |= more
        seen |= {ops[n].expected for n in more if ops[n].kind == "swap"}


def _known_at(at: float, ops: Sequence[RegisterOp]) -> list[RegisterOp]:
    """What was known then: what had not ended may take effect, and what had not begun is not there."""
    known = []
    for op in ops:
        if op.end <= at:
            known.append(op)
        elif op.call <= at and (op.kind == "write" or (op.kind == "swap" and op.ok)):
            known.append(RegisterOp(op.kind, op.value, op.call, _NEVER, op.expected))
    return known


def _stretches(ops: Sequence[RegisterOp]) -> Iterable[tuple[float, float, list[RegisterOp]]]:
    """(begin, end in seconds, operations), of ops in the order of their calls."""
    written = Counter(op.value for op in ops if op.kind != "read")
    shown_by: dict[object, float] = {}
    for op in ops:
        if op.kind == "read":
            shown_by[op.value] = min(shown_by.get(op.value, _NEVER), op.end)
        elif op.kind == "swap" and op.ok and op.end != _NEVER:
            shown_by[op.expected] = min(shown_by.get(op.expected, _NEVER), op.end)

    def over(op: RegisterOp, begin: float) -> bool:
        """Nobody heard what became of it, but its value was shown before: it cannot happen again."""
        return op.end == _NEVER and written[op.value] == 1 and shown_by.get(op.value, _NEVER) < begin

    started: list[RegisterOp] = []  # those before the stretch that may still be under way
    last = 0
    for first in range(0, len(ops), _STRETCH // 2):
        begin = ops[first].call
        until = ops[first + _STRETCH].call if first + _STRETCH < len(ops) else _NEVER
        started = [op for op in (*started, *ops[last:first]) if op.end >= begin and not over(op, begin)]
        last = first
        stretch = []
        for op in (*started, *ops[first : first + _STRETCH]):
            if op.call >= begin and op.end < until:
                stretch.append(op)
            elif op.kind == "write" or (op.kind == "swap" and op.ok):
                stretch.append(RegisterOp(op.kind, op.value, op.call, _NEVER, op.expected))
        yield begin / 1e9, min(until, ops[-1].call) / 1e9, _without_bystanders(stretch)
        if until == _NEVER:
            return
