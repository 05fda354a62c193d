"""Every rule catches what it is for, and lets a clean history pass."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from chaos.checkers import Lineage, Restore, check_all
from chaos.findings import Finding, Verdict
from chaos.records import Event, History, Listing
from tests.unit.chaos.stories import Story, change_row

LOST = "no acknowledged write lost"
ONCE = "every write applied at most once"
REFUSED = "a refused write has no effect"
ORDER = "revisions follow real time"
READS = "reads show the state of their revision"
WATCH_ORDER = "watch events in order, each once"
WATCH_ALL = "no watch event missing"
RELIST = "watchers list again after a restore, only then"
EMPTY = "the prefix was empty at the start"
POINT = "the snapshot holds every write before it"


def findings(history: History) -> dict[str, Finding]:
    return {finding.rule: finding for finding in check_all(history)}


def broken(history: History) -> set[str]:
    return {finding.rule for finding in check_all(history) if finding.verdict is Verdict.FAIL}


def story() -> Story:
    made = Story()
    made.steady(20)
    return made


def test_a_clean_history_passes_every_rule() -> None:
    assert {finding.verdict for finding in check_all(story().history())} == {Verdict.PASS}


def test_a_history_without_operations_proves_nothing() -> None:
    found = findings(Story().history())
    assert found[LOST].verdict is Verdict.INCONCLUSIVE
    assert found[READS].verdict is Verdict.INCONCLUSIVE
    assert found[WATCH_ALL].verdict is Verdict.INCONCLUSIVE


def test_without_a_final_read_back_loss_cannot_be_judged() -> None:
    history = story().history()
    history.listings.pop()
    assert findings(history)[LOST].verdict is Verdict.INCONCLUSIVE


def test_an_acknowledged_write_missing_at_the_end_is_lost() -> None:
    history = story().history()
    victim = history.of_kind("put")[7]
    change_row(history, victim.key)
    found = findings(history)[LOST]
    assert found.verdict is Verdict.FAIL
    assert found.violated == 1
    assert f"put #{victim.id}" in found.violations[0]


def test_an_acknowledged_write_read_back_with_another_value_is_lost() -> None:
    history = story().history()
    change_row(history, history.of_kind("put")[3].key, value="somebody else's")
    assert broken(history) == {LOST, ONCE}


def test_an_acknowledged_write_read_back_at_another_revision_is_lost_and_happened_again() -> None:
    history = story().history()
    change_row(history, history.of_kind("put")[3].key, mod_revision=30, version=1)
    assert {LOST, ONCE} <= broken(history)


def test_a_write_applied_twice_is_caught_by_its_version() -> None:
    history = story().history()
    victim = history.of_kind("put")[5]
    change_row(history, victim.key, version=2)
    assert broken(history) == {ONCE}


def test_a_key_nobody_wrote_is_caught() -> None:
    made = story()
    made.put()
    invented = made.ops.pop()
    assert ONCE in broken(made.history())
    assert any(invented.key in violation for violation in findings(made.history())[ONCE].violations)


def test_a_refused_write_that_shows_up_is_caught() -> None:
    made = story()
    made.put(outcome="fail", applied=True)
    assert REFUSED in broken(made.history())


def test_a_refused_write_that_stays_away_is_fine() -> None:
    made = story()
    made.put(outcome="fail", applied=False)
    made.steady(3)
    assert broken(made.history()) == set()


def test_a_write_of_unknown_fate_may_have_happened_or_not() -> None:
    made = story()
    made.put(outcome="info", applied=True)
    made.put(outcome="info", applied=False)
    made.steady(3)
    assert broken(made.history()) == set()


def test_a_write_of_unknown_fate_must_not_happen_before_what_it_followed() -> None:
    made = story()
    made.put(outcome="info", applied=True)
    history = made.history()
    late = history.ops[-1]
    history.events.pop()
    change_row(history, late.key, create_revision=5, mod_revision=5)
    assert ORDER in broken(history)


def test_a_stale_read_is_caught_by_real_time() -> None:
    made = story()
    key = made.put().key
    stale = replace(made.get(key), value=None, mod_revision=0, version=0, revision=made.revision - 1)
    made.ops[-1] = stale
    assert broken(made.history()) == {ORDER}


def test_a_read_that_misses_a_write_of_its_own_revision_is_caught() -> None:
    made = story()
    key = made.put().key
    made.ops[-1:] = [made.ops[-1], replace(made.get(key), value=None, mod_revision=0, version=0)]
    assert READS in broken(made.history())


def test_a_read_from_the_future_is_caught() -> None:
    made = story()
    key = made.put().key
    read = made.get(key)
    made.ops[-1] = replace(read, revision=read.mod_revision - 1)
    assert READS in broken(made.history())


def test_a_write_acknowledged_at_an_old_revision_is_caught_by_real_time() -> None:
    history = story().history()
    puts = [number for number, op in enumerate(history.ops) if op.kind == "put"]
    history.ops[puts[10]] = replace(history.ops[puts[10]], revision=history.ops[puts[9]].revision)
    assert ORDER in broken(history)


def test_two_writes_at_once_may_come_in_either_order() -> None:
    history = story().history()
    puts = [number for number, op in enumerate(history.ops) if op.kind == "put"]
    a, b = puts[4], puts[5]
    history.ops[b] = replace(history.ops[b], call_ns=history.ops[a].call_ns)
    assert ORDER not in broken(history)


def test_events_out_of_order_are_caught() -> None:
    history = story().history()
    history.events[4], history.events[5] = history.events[5], history.events[4]
    assert broken(history) == {WATCH_ORDER}


def test_an_event_that_comes_twice_is_caught() -> None:
    history = story().history()
    history.events.insert(5, history.events[4])
    assert broken(history) == {WATCH_ORDER}
    assert "twice" in findings(history)[WATCH_ORDER].violations[0]


def test_a_missing_event_is_caught() -> None:
    history = story().history()
    gone = history.events.pop(6)
    assert broken(history) == {WATCH_ALL}
    assert gone.key in findings(history)[WATCH_ALL].violations[0]


def test_a_missing_last_event_is_caught() -> None:
    history = story().history()
    history.events.pop()
    assert broken(history) == {WATCH_ALL}


def test_a_missing_event_of_a_write_of_unknown_fate_is_caught() -> None:
    made = story()
    made.put(outcome="info", applied=True, seen=False)
    made.steady(2)
    assert broken(made.history()) == {WATCH_ALL}


def test_a_prefix_in_use_before_the_run_is_caught() -> None:
    made = story()
    history = made.history()
    history.listings[0] = replace(history.listings[0], rows=[next(iter(made.rows.values()))])
    assert EMPTY in broken(history)


def test_a_restore_gives_up_what_came_after_the_snapshot_and_only_that() -> None:
    made = story()
    made.snapshot_then(lost=4)
    made.steady(5)
    found = findings(made.history())
    assert {finding.verdict for finding in found.values()} == {Verdict.PASS}
    assert found[LOST].note == "4 more were acknowledged after a recovery point"
    assert found[LOST].checked == 25


def test_a_write_from_before_the_snapshot_that_a_restore_loses_is_caught() -> None:
    made = story()
    victim = made.ops[0]
    made.snapshot_then(lost=2)
    made.steady(5)
    del made.rows[victim.key]
    assert LOST in broken(made.history())


def test_a_write_from_before_the_snapshot_that_is_not_in_it_is_caught() -> None:
    made = story()
    made.snapshot_then(lost=2)
    made.steady(5)
    history = made.history()
    mark = history.marks[0]
    history.marks[0] = replace(mark, detail={**mark.detail, "snapshot_began_ns": made.now_ns})
    assert POINT in broken(history)


def test_a_watch_that_goes_on_over_a_restore_without_listing_is_caught() -> None:
    made = story()
    made.snapshot_then(lost=2)
    made.steady(5)
    history = made.history()
    history.listings = [listing for listing in history.listings if listing.reason != "relist"]
    history.events = [replace(event, segment=1) for event in history.events]
    assert RELIST in broken(history)


def test_a_watch_told_to_list_again_for_nothing_is_caught() -> None:
    made = story()
    made.listings.append(Listing("relist", 2, made.revision, made.now_ns, list(made.rows.values())))
    made.segment = 2
    made.steady(3)
    assert broken(made.history()) == {RELIST}


def test_an_event_of_an_unknown_segment_is_caught() -> None:
    history = story().history()
    history.events.append(Event(9, "/chaos/test/x", "x", 99, 1, 0))
    assert WATCH_ORDER in broken(history)


def test_a_state_contains_what_its_lineage_kept() -> None:
    lineage = Lineage([Restore(20, 100, 0), Restore(120, 200, 0)])
    assert lineage.holds(30, 25)
    assert not lineage.holds(100, 25)
    assert lineage.holds(100, 20)
    assert not lineage.holds(250, 130)
    assert lineage.holds(250, 110)
    assert not lineage.holds(110, 111)
    assert [lineage.life(revision) for revision in (1, 99, 100, 199, 200)] == [0, 0, 1, 1, 2]


@given(st.lists(st.sampled_from(["put", "get", "lost", "unknown", "refused", "restore"]), max_size=60))
def test_whatever_happens_to_an_honest_store_every_rule_holds(steps: list[str]) -> None:
    made = Story()
    keys = []
    for step in steps:
        if step == "put":
            keys.append(made.put().key)
        elif step == "get" and keys:
            made.get(keys[-1])
        elif step == "lost":
            made.put(outcome="info", applied=False)
        elif step == "unknown":
            keys.append(made.put(outcome="info").key)
        elif step == "refused":
            made.put(outcome="fail", applied=False)
        elif step == "restore":
            made.snapshot_then(lost=1)
    assert broken(made.history()) == set()


@given(st.integers(0, 19), st.integers(0, 19))
def test_any_lost_write_and_any_lost_event_is_found(write: int, event: int) -> None:
    history = story().history()
    change_row(history, history.of_kind("put")[write].key)
    del history.events[event]
    assert {LOST, WATCH_ALL} <= broken(history)
