"""Shared registers: a right store passes, and every way to be wrong is caught, by revisions and by search."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos.checkers import search
from chaos.findings import Verdict
from chaos.records import History, Row, Told
from tests.unit.chaos.checkers.contests import BASE, MS, Contest, broken, change_op, change_told, findings

WRITTEN = "shared keys: no acknowledged write lost or done twice"
ANSWERS = "shared keys: answers show the state of their revision"
COMPARES = "shared keys: compares are judged by the state they met"
ORDER = "shared keys: revisions follow real time"
SEARCH = search.RULE


def fought() -> Contest:
    made = Contest()
    for n in range(12):
        made.put("a", f"a{n}")
        made.get("a")
        made.swap("a", f"a{n}", f"s{n}")
        made.swap("a", "something else", f"t{n}")
        made.get("b")
        if n % 3 == 0:
            made.delete("a")
            made.delete("nothing")
            made.get("a")
            made.swap("a", None, f"u{n}")
    return made


def unwatched(history: History) -> History:
    history.told.clear()
    return history


def test_a_right_store_passes_everything() -> None:
    found = findings(fought().history())
    assert {found[rule].verdict for rule in (WRITTEN, ANSWERS, COMPARES, ORDER, SEARCH)} == {Verdict.PASS}
    assert broken(fought().history()) == set()


def test_without_a_watch_it_passes_too() -> None:
    assert broken(unwatched(fought().history())) == set()


def test_a_history_without_shared_keys_is_not_asked_about_them() -> None:
    assert not [
        rule for rule in findings(Contest().history()) if rule.startswith(("shared", "lists", "leases", "locks"))
    ]


def test_a_stale_read_is_caught() -> None:
    made = fought()
    made.put("c", "old")
    old = made.get("c")
    made.put("c", "new")
    stale = made.get("c")
    history = made.history()
    change_op(history, stale, value="old", mod_revision=old.mod_revision, version=1)
    assert {ANSWERS, SEARCH} <= broken(history)


def test_a_stale_read_that_owns_up_to_its_old_revision_breaks_real_time() -> None:
    made = fought()
    made.put("c", "old")
    old = made.get("c")
    made.put("c", "new")
    stale = made.get("c")
    history = made.history()
    change_op(history, stale, value="old", mod_revision=old.mod_revision, version=1, revision=old.revision)
    assert broken(history) == {ORDER, SEARCH}
    change_op(history, stale, serializable=True)
    assert broken(history) == set()


@pytest.mark.parametrize("watched", [True, False])
def test_a_lost_write_is_caught(watched: bool) -> None:
    made = fought()
    lost = made.put("c", "x", applied=False)
    made.put("d", "y")
    history = made.history()
    change_op(history, lost, revision=made.revision)
    change_op(history, made.ops[-1], revision=made.revision + 1)
    history.listings[0] = replace(history.listings[0], revision=made.revision + 1)
    assert WRITTEN in broken(history if watched else unwatched(history))


def test_a_write_done_twice_is_caught() -> None:
    made = fought()
    made.put("c", "x", outcome="info")
    made.put("c", "y")
    made._apply({BASE + "c": "x"})
    made.get("c")
    assert WRITTEN in broken(made.history())


def test_an_acknowledged_write_done_again_later_is_caught() -> None:
    made = fought()
    made.put("c", "x")
    made.put("c", "y")
    made._apply({BASE + "c": "x"})
    assert WRITTEN in broken(made.history())


def test_a_write_of_unknown_outcome_may_have_happened_or_not() -> None:
    for applied in (True, False):
        made = fought()
        made.put("c", "x", outcome="info", applied=applied)
        made.delete("a", outcome="info", applied=applied)
        made.get("c")
        made.get("a")
        made.put("c", "y")
        made.get("c")
        assert broken(made.history()) == set()


def test_a_refused_write_that_shows_is_caught() -> None:
    made = fought()
    made.put("c", "x", outcome="fail", applied=True)
    made.get("c")
    assert WRITTEN in broken(made.history())


def test_a_key_deleted_by_nobody_is_caught() -> None:
    made = fought()
    made.put("c", "x")
    made.expire("c")
    made.get("c")
    assert {WRITTEN, SEARCH} <= broken(made.history())


def test_a_swap_that_went_through_against_its_compare_is_caught() -> None:
    made = fought()
    made.put("c", "x")
    made.put("c", "y")
    swapped = made.swap("c", "y", "z")
    made.get("c")
    history = made.history()
    change_op(history, swapped, compares=((BASE + "c", "value", "x"),))
    assert broken(history) == {COMPARES, SEARCH}


def test_a_swap_refused_though_its_compare_held_is_caught() -> None:
    made = fought()
    made.put("c", "x")
    refused = made.swap("c", "not x", "z")
    history = made.history()
    change_op(history, refused, compares=((BASE + "c", "value", "x"),))
    assert broken(history) == {COMPARES, SEARCH}


def test_a_wrong_version_is_caught() -> None:
    made = fought()
    made.put("c", "x")
    read = made.get("c")
    history = made.history()
    change_op(history, read, version=2)
    assert broken(history) == {ANSWERS}


def test_a_torn_read_of_two_keys_is_caught() -> None:
    made = fought()
    made.txn([], [("put", "c", "1"), ("put", "d", "1")])
    made.txn([], [("put", "c", "2"), ("put", "d", "2")])
    both = made.txn([], [("get", "c"), ("get", "d")])
    history = made.history()
    old = both.results[1]
    assert old is not None
    change_op(history, both, results=[both.results[0], ("1", old[1], old[2] - 1, 1)])
    assert ANSWERS in broken(history)


def test_a_final_read_back_that_is_older_than_what_was_acknowledged_is_caught() -> None:
    made = fought()
    made.put("c", "x")
    made.put("c", "y")
    history = made.history()
    rows = [
        Row(row.key, "x", row.create_revision, row.mod_revision - 1, 1) if row.key == BASE + "c" else row
        for row in history.listings[0].rows
    ]
    history.listings[0] = replace(history.listings[0], rows=rows)
    assert broken(history) == {WRITTEN}


def test_two_writes_told_the_same_revision_are_caught() -> None:
    made = fought()
    first = made.put("c", "x")
    second = made.put("c", "y")
    history = made.history()
    change_op(history, second, revision=first.revision)
    assert WRITTEN in broken(history)


def test_an_event_that_contradicts_an_acknowledgement_is_caught() -> None:
    made = fought()
    put = made.put("c", "x")
    history = made.history()
    change_told(history, put.revision, lambda told: [replace(told, changes=[replace(told.changes[0], value="other")])])
    assert WRITTEN in broken(history)


def test_concurrent_operations_may_take_either_order() -> None:
    made = fought()
    made.put("c", "x")
    before = made.get("c")
    late = made.put("c", "y")
    history = made.history()
    # The read began first and was under way while the write happened; it may see either.
    change_op(history, before, return_ns=late.return_ns + MS)
    assert broken(history) == set()


def test_the_search_trusts_no_revision() -> None:
    made = fought()
    made.put("c", "x")
    made.put("c", "y")
    stale = made.get("c")
    history = made.history()
    change_op(history, stale, value="x")
    history.ops = [
        replace(
            op, revision=0, mod_revision=0, create_revision=0, version=0,
            results=[seen and (seen[0], 0, 0, 0) for seen in op.results],
        )
        for op in history.ops
    ]  # fmt: skip
    history.told.clear()
    history.listings.clear()
    assert broken(history) == {SEARCH}


def test_a_search_that_gives_up_proves_nothing_and_says_so() -> None:
    (finding,) = search.check_by_search(fought().history(), steps_max=20)
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert "bound" in finding.note


def test_a_stale_read_anywhere_in_a_long_history_is_found_by_search() -> None:
    made = Contest()
    for n in range(400):
        made.put("a", f"v{n}")
        made.get("a")
    for at in (61, 301, 555, 799):
        history = made.history()
        change_op(history, history.ops[at], value="v3")
        (finding,) = search.check_by_search(history)
        assert finding.verdict is Verdict.FAIL, at


def test_what_was_under_way_when_a_run_was_killed_is_not_recorded_and_no_violation() -> None:
    made = fought()
    made.put("c", "x")
    made.ops.pop()
    history = made.history()
    assert WRITTEN in broken(history)
    history.listings.clear()
    assert broken(history) == set()


def test_what_a_watch_missed_by_a_compaction_is_not_known() -> None:
    made = fought()
    made.put("c", "x")
    made.delete("c", outcome="info")
    made.told.pop()
    made.told.append(Told("all", 1, made.now_ns, made.revision, canceled=True, compact_revision=made.revision))
    made.swap("c", None, "y")
    made.get("c")
    history = made.history()
    assert COMPARES not in broken(history)
    history.told = [told for told in history.told if not told.canceled]
    assert COMPARES in broken(history)
