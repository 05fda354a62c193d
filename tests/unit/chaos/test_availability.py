"""Gaps and counts, at their edges."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chaos.availability import Window, longest_gap_s, per_second, served
from chaos.records import Op
from tests.unit.chaos.stories import SECOND, Story

WINDOW = Window(10 * SECOND, 20 * SECOND)


def test_the_longest_gap_lies_between_two_moments() -> None:
    assert longest_gap_s([11 * SECOND, 12 * SECOND, 17 * SECOND, 19 * SECOND], WINDOW) == 5.0


def test_a_gap_reaches_to_the_edges_of_the_window() -> None:
    assert longest_gap_s([14 * SECOND], WINDOW) == 6.0
    assert longest_gap_s([16 * SECOND], WINDOW) == 6.0


def test_nothing_at_all_is_a_gap_of_the_whole_window() -> None:
    assert longest_gap_s([], WINDOW) == 10.0
    assert longest_gap_s([5 * SECOND, 25 * SECOND], WINDOW) == 10.0


@given(st.lists(st.integers(0, 30 * SECOND)))
def test_one_more_moment_never_makes_the_gap_longer(moments: list[int]) -> None:
    for n in range(len(moments)):
        assert longest_gap_s(moments[: n + 1], WINDOW) <= longest_gap_s(moments[:n], WINDOW)


def test_an_operation_counts_where_it_was_outstanding() -> None:
    slow = Op(1, "w1", "put", "e", "k", 19 * SECOND, 22 * SECOND, "info", "v")
    assert served([slow], WINDOW).operations_unknown == 1
    assert served([slow], Window(20 * SECOND, 21 * SECOND)).operations_unknown == 1
    assert served([slow], Window(23 * SECOND, 24 * SECOND)).operations_unknown == 0


def test_an_acknowledgement_counts_when_it_comes() -> None:
    slow = Op(1, "w1", "put", "e", "k", 19 * SECOND, 22 * SECOND, "ok", "v", revision=5)
    assert served([slow], WINDOW).writes_acknowledged == 0
    assert served([slow], Window(21 * SECOND, 23 * SECOND)).writes_acknowledged == 1


def test_requests_and_attempts_are_counted_apart() -> None:
    made = Story()
    for attempts_failed in (0, 1, 2, 0):
        made.http(attempts_failed=attempts_failed)
    made.put(outcome="fail", applied=False)
    found = served(made.ops, Window(0, made.now_ns))
    assert (found.http_requests, found.http_attempts_failed, found.http_requests_failed) == (4, 3, 1)
    assert (found.operations_failed, found.operations_unknown) == (1, 0)


def test_each_second_says_what_ended_in_it() -> None:
    made = Story()
    begin = made.now_ns
    for _ in range(50):
        made.put()
    made.put(outcome="fail", applied=False)
    made.now_ns = begin + 2 * SECOND
    made.http(attempts_failed=2)
    made.http()
    first, second, third = per_second(made.ops, Window(begin, made.now_ns))
    assert (first.writes_acknowledged, first.operations_not_ok, first.availability) == (50, 1, 50 / 51)
    assert (second.writes_acknowledged, second.availability) == (0, None)
    assert (third.requests_ok, third.requests_failed, third.availability) == (1, 1, 0.5)
    (both, last) = per_second(made.ops, Window(begin, made.now_ns), step_s=2)
    assert (both.at_s, last.at_s, both.writes_acknowledged) == (0, 2, 50)


def test_a_write_on_a_lease_that_has_run_out_is_no_failure_of_the_service() -> None:
    error = "NOT_FOUND: etcdserver: requested lease not found"
    at = 12 * SECOND
    ops = [Op(n, "l1", "put", "e", "k", at, at + 1, o, "v", error=error) for n, o in ((1, "fail"), (2, "info"))]  # type: ignore[arg-type]
    assert served(ops, WINDOW).operations_failed == served(ops, WINDOW).operations_unknown == 0
