"""A restore in the middle: what it gave up is no violation, what it must have kept is."""

from __future__ import annotations

from dataclasses import replace

from chaos.records import History, Mark, Told
from tests.unit.chaos.checkers.contests import BASE, Contest, broken, findings


def restored(*, keep_all: bool = True) -> tuple[Contest, History]:
    """Work, a snapshot, more work that is given up, a restore 1000 revisions higher, and work again. ``keep_all``:
    false: the last write before the snapshot is not in it either."""
    made = Contest()
    for n in range(6):
        made.put("a", f"a{n}")
        made.append(f"e{n}", "x", "y")
    kept, at = dict(made.rows), made.revision
    if not keep_all:
        kept.pop(BASE + "a")
    began_ns = made.now_ns
    for n in range(6, 10):
        made.put("a", f"a{n}")
        made.get("a")
        made.append(f"e{n}", "x", "y")
    made.put("never-told", "z")
    made.told.pop()  # it was acknowledged, and the watch was cut off before it was told
    made.rows, made.revision = kept, at + 1000
    mark = Mark(
        "disaster", 1, "restored", made.now_ns,
        {"snapshot_revision": at, "revision": made.revision, "snapshot_began_ns": began_ns},
    )  # fmt: skip
    made.told.append(Told("all", 1, made.now_ns, made.revision, canceled=True, compact_revision=made.revision))
    made.told.append(
        Told(
            "all", 2, made.now_ns, made.revision, created=True, prefix=BASE, start_revision=made.revision, prev_kv=True
        )
    )
    before = len(made.told)
    for n in range(10, 16):
        made.get("a")
        made.put("a", f"a{n}")
        made.append(f"e{n}", "x", "y")
    made.told[before:] = [replace(told, segment=2) for told in made.told[before:]]
    history = made.history()
    history.marks.append(mark)
    return made, history


def test_what_was_given_up_is_no_violation() -> None:
    _, history = restored()
    assert broken(history) == set()
    assert findings(history)["lists: no append lost, done twice or seen though refused"].checked == 44


def test_a_write_from_before_the_snapshot_that_is_gone_is_caught() -> None:
    _, history = restored(keep_all=False)
    assert {"shared keys: answers show the state of their revision"} <= broken(history)


def test_an_append_from_before_the_snapshot_that_is_gone_is_caught() -> None:
    made, history = restored()
    rows = [
        replace(row, value=row.value.replace("e3 ", "")) if row.key == BASE + "x" else row for row in made.rows.values()
    ]
    history.listings[0] = replace(history.listings[0], rows=rows)
    assert "lists: no append lost, done twice or seen though refused" in broken(history)


def test_a_watch_that_goes_on_over_a_restore_without_being_told_misses_what_came_before_it() -> None:
    _, history = restored()
    history.told = [
        replace(told, segment=1)
        for told in history.told
        if not told.canceled and not (told.created and told.segment == 2)
    ]
    history.told = [told for told in history.told if told.revision < 1000 or told.changes[0].mod_revision % 2 == 0]
    assert "watches: reliable, nothing missing" in broken(history)
