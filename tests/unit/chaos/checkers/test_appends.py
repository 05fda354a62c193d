"""Lists: every anomaly is told apart from an honest history, without revisions."""

from __future__ import annotations

from dataclasses import replace

from chaos.records import History, Op
from tests.unit.chaos.checkers.contests import BASE, SECOND, Contest, broken, change_op

WHOLE = "lists: no append lost, done twice or seen though refused"
CIRCLE = "lists: transactions fit one order, true to real time"


def appended() -> Contest:
    made = Contest()
    for n in range(10):
        made.append(f"e{n}", "x", *(["y"] if n % 2 else []))
        made.txn([], [("get", "x"), ("get", "y")], part="append")
    return made


def without_revisions(history: History) -> History:
    """Only what lists themselves tell is left."""
    history.told.clear()
    history.ops = [replace(op, revision=0) for op in history.ops]
    return history


def lists(history: History) -> set[str]:
    return {rule for rule in broken(without_revisions(history)) if rule.startswith("lists")}


def put(op: Op, value: str) -> tuple[tuple[str, ...], ...]:
    return tuple((step[0], step[1], value) for step in op.then)


def test_an_honest_history_passes() -> None:
    assert broken(appended().history()) == set()


def test_appends_of_unknown_or_refused_outcome_are_allowed_to_be_so() -> None:
    made = appended()
    made.append("u1", "x", outcome="info")
    made.append("u2", "x", outcome="info", applied=False)
    made.append("u3", "x", outcome="fail", applied=False)
    made.append("e99", "x")
    assert broken(made.history()) == set()


def test_a_lost_update_is_caught() -> None:
    made = appended()
    read = made.txn([], [("get", "x")], part="append")
    made.append("first", "x")
    seen = read.results[0]
    assert seen is not None
    made._apply({BASE + "x": f"{seen[0]} second"})
    second = made._done(
        "txn", "x", "ok", "append", succeeded=True, compares=[(BASE + "x", "mod", seen[2])],
        then=[("put", BASE + "x", f"{seen[0]} second")], results=[None],
    )  # fmt: skip
    assert WHOLE in lists(made.history()), second


def test_an_aborted_read_is_caught() -> None:
    made = appended()
    made.append("ghost", "x", outcome="fail", applied=True)
    made.append("e99", "x")
    assert WHOLE in lists(made.history())


def test_a_duplicate_is_caught() -> None:
    made = appended()
    last = made.append("e99", "x")
    history = made.history()
    twice = f"{last.then[0][2]} e99"
    change_op(history, last, then=put(last, twice))
    assert WHOLE in lists(history)


def test_an_element_that_nobody_appended_is_caught() -> None:
    made = appended()
    made._apply({BASE + "x": "e0 stranger"})
    made.txn([], [("get", "x")], part="append")
    assert WHOLE in lists(made.history())


def test_an_acknowledged_append_missing_at_the_end_is_caught() -> None:
    made = appended()
    history = made.history()
    rows = [
        replace(row, value=row.value.rpartition(" ")[0]) if row.key == BASE + "x" else row
        for row in history.listings[0].rows
    ]
    history.listings[0] = replace(history.listings[0], rows=rows)
    assert WHOLE in lists(history)


def test_a_stale_read_breaks_real_time() -> None:
    made = appended()
    read = made.txn([], [("get", "x"), ("get", "y")], part="append")
    history = made.history()
    x, y = read.results
    assert x is not None
    change_op(history, read, results=[("e0 e1", *x[1:]), y])
    assert lists(history) == {CIRCLE}


def test_a_read_that_sees_half_of_a_transaction_is_a_circle_without_real_time_too() -> None:
    made = appended()
    made.append("both", "x", "y")
    read = made.txn([], [("get", "x"), ("get", "y")], part="append")
    history = made.history()
    x, y = read.results
    assert y is not None
    change_op(history, read, results=[x, (y[0].removesuffix(" both"), *y[1:])])
    # Everything at the same time: real time orders nothing.
    history.ops = [replace(op, call_ns=SECOND, return_ns=9 * SECOND) for op in history.ops]
    assert lists(history) == {CIRCLE}


def test_write_skew_is_a_circle() -> None:
    made = appended()
    x, y = made.txn([], [("get", "x"), ("get", "y")], part="append").results
    a = made.append("a", "x")
    b = made.append("b", "y")
    history = made.history()
    # Each also read the other's list, as it was before the other appended to it.
    change_op(history, a, then=(("get", f"{BASE}y"), *a.then), results=[y, None])
    change_op(history, b, then=(("get", f"{BASE}x"), *b.then), results=[x, None])
    history.ops = [replace(op, call_ns=SECOND, return_ns=9 * SECOND) for op in history.ops]
    assert lists(history) == {CIRCLE}
