"""Each of the six properties of watches, and what events say of their keys, has a violation that only it is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from chaos.findings import Verdict
from chaos.records import History, Told
from tests.unit.chaos.checkers.contests import BASE, Contest, broken, change_told, findings

ORDERED = "watches: ordered"
UNIQUE = "watches: unique"
RELIABLE = "watches: reliable, nothing missing"
ATOMIC = "watches: atomic, a revision in one response"
RESUMABLE = "watches: resumable"
BOOKMARKABLE = "watches: bookmarkable"
TRUTHFUL = "watches: events tell what was before"


def watched() -> Contest:
    made = Contest()
    for n in range(6):
        made.put("a", f"a{n}")
        made.txn([], [("put", "b", f"b{n}"), ("put", "c", f"c{n}")])
        made.progress()
    made.delete("a")
    return made


def history(damage: Callable[[History], None] = lambda _: None) -> History:
    made = watched().history()
    damage(made)
    return made


def test_an_honest_watch_passes() -> None:
    found = findings(history())
    rules = (ORDERED, UNIQUE, RELIABLE, ATOMIC, RESUMABLE, BOOKMARKABLE, TRUTHFUL)
    assert {found[rule].verdict for rule in rules} == {Verdict.PASS}
    assert broken(history()) == set()


def gap(made: History) -> None:
    change_told(made, 15, lambda told: [])


def twice(made: History) -> None:
    change_told(made, 15, lambda told: [told, told])


def split(made: History) -> None:
    change_told(
        made, 16, lambda told: [replace(told, changes=told.changes[:1]), replace(told, changes=told.changes[1:])]
    )


def swapped(made: History) -> None:
    at = {change.mod_revision: n for n, told in enumerate(made.told) for change in told.changes}
    first, then = at[13], at[14]
    made.told[first], made.told[then] = made.told[then], made.told[first]


def missing_half(made: History) -> None:
    change_told(made, 16, lambda told: [replace(told, changes=told.changes[:1])])


def wrong_before(made: History) -> None:
    change_told(made, 15, lambda told: [replace(told, changes=[replace(told.changes[0], was="something else")])])


def no_before(made: History) -> None:
    change_told(made, 15, lambda told: [replace(told, changes=[replace(told.changes[0], was=None, was_revision=0)])])


def wrong_version(made: History) -> None:
    change_told(made, 15, lambda told: [replace(told, changes=[replace(told.changes[0], version=1)])])


def wrong_created(made: History) -> None:
    change_told(made, 15, lambda told: [replace(told, changes=[replace(told.changes[0], create_revision=15)])])


def cut_at_the_end(made: History) -> None:
    made.told = [told for told in made.told if told.revision < 22]


@pytest.mark.parametrize(
    ("damage", "rules"),
    [
        (gap, {RELIABLE}),
        (missing_half, {RELIABLE}),
        (cut_at_the_end, {RELIABLE}),
        (twice, {UNIQUE, ATOMIC}),
        (split, {ATOMIC}),
        (swapped, {ORDERED}),
        (wrong_before, {TRUTHFUL}),
        (no_before, {TRUTHFUL}),
        (wrong_version, {TRUTHFUL}),
        (wrong_created, {TRUTHFUL}),
    ],
)
def test_every_damage_is_caught_by_its_rule(damage: Callable[[History], None], rules: set[str]) -> None:
    assert broken(history(damage)) == rules


def test_an_event_after_progress_past_it_breaks_the_bookmark() -> None:
    made = watched()
    made.told.append(Told("all", 1, made.now_ns, made.revision + 1, progress=True))
    made.put("a", "late")
    assert broken(made.history()) == {BOOKMARKABLE}


def resumed(start_revision: int, *, first_revision: int) -> History:
    """The watch broke after revision 16 and went on, asked from ``start_revision``, told from ``first_revision``."""
    made = watched().history()
    told: list[Told] = []
    for one in made.told:
        if one.changes and one.changes[0].mod_revision == 17:
            told.append(
                Told(
                    "all",
                    2,
                    one.received_ns,
                    16,
                    created=True,
                    prefix=BASE,
                    start_revision=start_revision,
                    prev_kv=True,
                )
            )
        told.append(one if not told or told[-1].segment == 1 else replace(one, segment=2))
        if told[-1].segment == 2 and any(change.mod_revision < first_revision for change in told[-1].changes):
            told.pop()
    made.told = told
    return made


def test_a_watch_resumed_at_the_next_revision_passes() -> None:
    assert broken(resumed(17, first_revision=17)) == set()


def test_a_watch_that_resumes_with_a_gap_is_caught() -> None:
    assert broken(resumed(17, first_revision=19)) == {RELIABLE}


def test_a_watch_that_begins_before_what_it_asked_for_is_caught() -> None:
    made = resumed(17, first_revision=17)
    made.told = [replace(told, start_revision=18) if told.created and told.segment == 2 else told for told in made.told]
    assert RESUMABLE in broken(made)


def refused(start_revision: int, compact_revision: int, *, compacted: int) -> History:
    made = watched()
    if compacted:
        made._done("compact", "", "ok", "compact", asked=compacted)
    made.told += [
        Told(
            "old", 1, made.now_ns, made.revision, created=True, prefix=BASE, start_revision=start_revision, brief=True
        ),
        Told("old", 1, made.now_ns, made.revision, canceled=True, compact_revision=compact_revision),
    ]
    return made.history()


def test_a_watch_from_before_a_compaction_is_refused_with_its_revision() -> None:
    assert broken(refused(13, 15, compacted=15)) == set()


def test_a_watch_at_the_boundary_must_not_be_refused() -> None:
    assert broken(refused(15, 15, compacted=15)) == {RESUMABLE}


def test_a_compaction_that_nobody_asked_for_is_caught() -> None:
    assert broken(refused(13, 15, compacted=0)) == {RESUMABLE}
    assert broken(refused(13, 18, compacted=15)) == {RESUMABLE}


def test_what_a_compaction_has_reached_may_lack_what_was_before() -> None:
    made = watched()
    made._done("compact", "", "ok", "compact", asked=17)
    found = made.history()
    no_before(found)
    assert broken(found) == set()


def test_a_watch_from_the_future_is_told_of_nothing_earlier() -> None:
    made = watched()
    made.told.append(
        Told("future", 1, made.now_ns, made.revision, created=True, prefix=BASE, start_revision=99, brief=True)
    )
    assert broken(made.history()) == set()
    made.told.append(replace(made.told[5], watch="future"))
    assert RESUMABLE in broken(made.history())


def test_a_brief_watch_need_not_reach_the_end() -> None:
    made = watched()
    made.told.append(Told("b", 1, made.now_ns, made.revision, created=True, prefix=BASE, start_revision=11, brief=True))
    assert broken(made.history()) == set()
    made.told[-1] = replace(made.told[-1], brief=False)
    assert broken(made.history()) == {RELIABLE}


def test_a_watch_of_one_key_is_asked_about_that_key_alone() -> None:
    made = watched()
    made.told.append(
        Told("one", 1, made.now_ns, made.revision, created=True, prefix=f"{BASE}none", single=True, start_revision=11)
    )
    assert broken(made.history()) == set()
