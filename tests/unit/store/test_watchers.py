"""Watchers beyond the scripts: restore, many of them, bounded polls."""

from __future__ import annotations

import pytest

from controlplane.store.errors import CompactedError
from controlplane.store.keyspan import prefix_end
from controlplane.store.store import Store
from controlplane.store.watch import Watcher
from tests.unit.store.support import Driver


def revisions(watcher: Watcher) -> list[int]:
    found: list[int] = []
    while True:
        found += [revision for revision, _ in watcher.poll(100)]
        if watcher.synced:
            return found


def test_a_write_wakes_exactly_whom_it_concerns() -> None:
    driver = Driver()
    woken: list[str] = []

    def watch(name: str, key: bytes, range_end: bytes) -> Watcher:
        return driver.store.watches.create(key, range_end, 0, wake=lambda: woken.append(name))

    watchers = [
        watch("key", b"/pods/a", b""),
        watch("other key", b"/pods/b", b""),
        watch("prefix", b"/pods/", prefix_end(b"/pods/")),
        watch("short prefix", b"/", prefix_end(b"/")),
        watch("other prefix", b"/nodes/", prefix_end(b"/nodes/")),
        watch("longer prefix", b"/pods/a/", prefix_end(b"/pods/a/")),
        watch("range", b"/a", b"/z"),
        watch("everything", b"", b"\0"),
        watch("later range", b"/q", b"/z"),
    ]
    driver.put(b"/pods/a")
    assert sorted(woken) == ["everything", "key", "prefix", "range", "short prefix"]
    for watcher in watchers:
        assert revisions(watcher) == ([2] if watcher.span.low in (b"/pods/a", b"/pods/", b"/", b"/a", b"\0") else [])
    for watcher in watchers:
        watcher.cancel()
        watcher.cancel()
    assert len(driver.store.watches) == 0
    woken.clear()
    driver.put(b"/pods/a")
    assert woken == []
    assert watchers[0].poll(10) == []


def test_one_poll_looks_at_a_bounded_stretch_of_history() -> None:
    driver = Driver()
    watcher = driver.store.watches.create(b"rare", b"", 1, wake=lambda: None)
    for _ in range(2_500):
        driver.put(b"busy")
    driver.put(b"rare")
    watcher = driver.store.watches.create(b"rare", b"", 1, wake=lambda: None)
    assert watcher.poll(10) == []
    assert not watcher.synced
    assert watcher.progress == 2_000
    assert revisions(watcher) == [2_502]


def test_after_an_installed_snapshot_a_watcher_misses_nothing_and_sees_nothing_twice() -> None:
    leader, follower = Driver(), Driver()
    for each in (leader, follower):
        each.put(b"a", b"1")
    wakes: list[int] = []
    watcher = follower.store.watches.create(b"a", b"", 2, wake=lambda: wakes.append(1))
    future = follower.store.watches.create(b"a", b"", 5, wake=lambda: None)
    assert revisions(watcher) == [2]
    for value in (b"2", b"3", b"4"):
        leader.put(b"a", value)
    leader.compact(3)
    follower.store.restore([leader.snapshot()])
    assert wakes == [1]
    assert revisions(watcher) == [3, 4, 5]
    assert revisions(future) == [5]
    follower.index = leader.index
    follower.put(b"a", b"5")
    assert revisions(watcher) == [6]


def test_a_watcher_that_a_snapshots_compaction_overtook_is_told() -> None:
    leader, follower = Driver(), Driver()
    watcher = follower.store.watches.create(b"a", b"", 0, wake=lambda: None)
    for _ in range(5):
        leader.put(b"a")
    leader.compact(4)
    follower.store.restore([leader.snapshot()])
    with pytest.raises(CompactedError) as caught:
        watcher.poll(10)
    assert caught.value.compact_revision == 4


def test_an_installed_snapshot_of_the_same_revision_leaves_watchers_synced() -> None:
    driver = Driver()
    driver.put(b"a")
    watcher = driver.store.watches.create(b"a", b"", 0, wake=lambda: None)
    driver.store.restore([driver.snapshot()])
    assert watcher.synced


def test_a_watcher_costs_the_same_however_slow_it_is() -> None:
    store = Store()
    driver = Driver(store)
    slow = store.watches.create(b"a", b"", 0, wake=lambda: None)
    before = [getattr(slow, name) for name in Watcher.__slots__ if name not in ("_from", "_woken")]
    for _ in range(50):
        driver.put(b"a")
    assert [getattr(slow, name) for name in Watcher.__slots__ if name not in ("_from", "_woken")] == before
    assert len(revisions(slow)) == 50
