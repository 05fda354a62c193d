"""Linearizability by search, for short histories of one register: a second opinion that trusts no revision.

The algorithm is Wing and Gong's with Lowe's memory of configurations ("Testing for linearizability", 2017): operations
are taken out of the history one by one, in any order that real time allows, as long as the register agrees; a set of
operations done with a value already tried is not tried again. Exponential at worst, so it has a bound on its work, and
then says that it does not know.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

__all__ = ["ANY", "Answer", "RegisterOp", "linearizable", "search"]

_NEVER: Final = float("inf")


class _Any(Enum):
    ANY = "any"


#: A register of which nothing is known yet: the first to read it, or to find something in it, decides.
ANY: Final = _Any.ANY


class Answer(Enum):
    """UNKNOWN: the search was given up, which is a question, not a pass."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RegisterOp:
    """One operation. A write whose fate is unknown has no end: it may take effect at any time, or never.

    ``value`` is what was written, or read; a swap writes it if the register holds ``expected``, and ``ok`` says whether
    it did. Times are of one clock.
    """

    kind: Literal["read", "write", "swap"]
    value: Hashable
    call: float
    end: float = _NEVER
    expected: Hashable = None
    ok: bool = True


def linearizable(history: Sequence[RegisterOp], *, initial: Hashable = None, steps_max: int = 200_000) -> Answer:
    """Whether some order of the operations, true to real time, explains what every one of them saw.

    Reads of unknown fate should be left out: they say nothing. Takes at most ``steps_max`` configurations.
    """
    return search(history, initial=initial, steps_max=steps_max)[0]


def search(history: Sequence[RegisterOp], *, initial: Hashable = None, steps_max: int = 200_000) -> tuple[Answer, int]:
    """The same, and how many steps it took."""
    ops = sorted(history, key=lambda op: op.call)
    count = len(ops)
    everything = sum(1 << n for n, op in enumerate(ops) if op.end != _NEVER)
    stack: list[tuple[int, Hashable]] = [(0, initial)]
    seen = {(0, initial)}
    steps = 0
    while stack:
        done, value = stack.pop()
        if done & everything == everything:
            return Answer.YES, steps
        # Whoever is next began before the first of the rest ended. All below the lowest that is not done are done.
        first = (~done & (done + 1)).bit_length() - 1
        first_end = _NEVER
        for n in range(first, count):
            op = ops[n]
            if op.call > first_end:
                break
            if op.end < first_end and not done >> n & 1:
                first_end = op.end
        # The last to be put on the stack is tried first: who ended first, which is most often right.
        candidates = []
        for n in range(first, count):
            op = ops[n]
            if op.call > first_end:
                break
            if not done >> n & 1:
                candidates.append((op.end, n))
        candidates.sort(reverse=True)
        for _, n in candidates:
            steps += 1
            agreed, after = _step(ops[n], value)
            configuration = (done | 1 << n, after)
            if agreed and configuration not in seen:
                seen.add(configuration)
                stack.append(configuration)
        if steps > steps_max:
            return Answer.UNKNOWN, steps
    return Answer.NO, steps


def _step(op: RegisterOp, value: Hashable) -> tuple[bool, Hashable]:
    """Whether the register, holding ``value``, would have answered so, and what it holds then."""
    if op.kind == "read":
        return value == op.value or value is ANY, op.value
    if op.kind == "write":
        return True, op.value
    if op.end == _NEVER:  # nobody heard what became of it
        return True, op.value if value == op.expected or value is ANY else value
    if value is ANY:
        return True, op.value if op.ok else value
    return (value == op.expected) == op.ok, op.value if op.ok else value
