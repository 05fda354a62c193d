"""Linearizability by search: what it accepts, what it refuses, and when it says that it does not know."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.wgl import Answer, RegisterOp, linearizable


def write(value: int, call: float, end: float = float("inf")) -> RegisterOp:
    return RegisterOp("write", value, call, end)


def read(value: int | None, call: float, end: float) -> RegisterOp:
    return RegisterOp("read", value, call, end)


def test_a_read_sees_the_write_before_it() -> None:
    assert linearizable([write(1, 0, 1), read(1, 2, 3)]) is Answer.YES
    assert linearizable([write(1, 0, 1), read(None, 2, 3)]) is Answer.NO


def test_concurrent_operations_may_come_in_either_order() -> None:
    assert linearizable([write(1, 0, 4), read(None, 1, 2), read(1, 2.5, 3)]) is Answer.YES
    assert linearizable([write(1, 0, 4), read(1, 1, 2), read(None, 2.5, 3)]) is Answer.NO


def test_a_write_of_unknown_fate_may_happen_late_or_never() -> None:
    assert linearizable([write(1, 0), read(None, 1, 2), read(1, 8, 9)]) is Answer.YES
    assert linearizable([write(1, 0), read(None, 1, 2)]) is Answer.YES
    assert linearizable([write(1, 0), read(1, 1, 2), read(None, 8, 9)]) is Answer.NO


def test_a_swap_is_judged_by_what_it_found() -> None:
    history = [write(1, 0, 1), RegisterOp("swap", 2, 2, 3, expected=1), read(2, 4, 5)]
    assert linearizable(history) is Answer.YES
    refused = [write(1, 0, 1), RegisterOp("swap", 2, 2, 3, expected=1, ok=False)]
    assert linearizable(refused) is Answer.NO
    assert linearizable([write(1, 0, 1), RegisterOp("swap", 3, 2, 3, expected=9)]) is Answer.NO


def test_too_much_work_is_no_verdict() -> None:
    history = [write(n, 0, 100) for n in range(14)] + [read(99, 101, 102)]
    assert linearizable(history, steps_max=1_000) is Answer.UNKNOWN


def brute_force(history: Sequence[RegisterOp]) -> bool:
    def fits(order: Sequence[RegisterOp]) -> bool:
        value: object = None
        for n, op in enumerate(order):
            if any(later.end < op.call for later in order[n + 1 :]):
                return False
            if op.kind == "write":
                value = op.value
            elif value != op.value:
                return False
        return True

    return any(fits(order) for order in itertools.permutations(history))


@given(
    st.lists(
        st.tuples(st.sampled_from(["read", "write"]), st.integers(0, 2), st.integers(0, 9), st.integers(0, 4)),
        max_size=5,
    )
)
@settings(max_examples=200, deadline=None)
def test_it_agrees_with_trying_every_order(rows: list[tuple[str, int, int, int]]) -> None:
    history = [RegisterOp(kind, value, call, call + long) for kind, value, call, long in rows]  # type: ignore[arg-type]
    assert linearizable(history) is (Answer.YES if brute_force(history) else Answer.NO)
