"""Leases as replicated state."""

from __future__ import annotations

from controlplane.base.errors import Code
from controlplane.store.leases import Change, LeaseChange
from controlplane.store.store import Store
from tests.unit.store.support import Driver, expect_rejection


def test_listeners_hear_of_every_change_as_it_is_applied() -> None:
    driver, other = Driver(), Driver()
    heard: list[tuple[Change, int | None]] = []

    def listener(change: LeaseChange) -> None:
        heard.append((change.kind, change.lease.id if change.lease else None))

    stop = driver.store.leases.listen(listener)
    driver.grant(7)
    driver.checkpoint(7, 5)
    driver.revoke(7)
    other.grant(8)
    driver.store.restore([other.snapshot()])
    assert heard == [(Change.GRANTED, 7), (Change.CHECKPOINTED, 7), (Change.REVOKED, 7), (Change.RESTORED, None)]
    assert [lease.id for lease in driver.store.leases] == [8]
    stop()
    driver.index = driver.store.applied_index
    driver.grant(9)
    assert len(heard) == 4


def test_an_expiry_seen_in_an_older_term_is_ignored() -> None:
    driver = Driver(term=3)
    driver.grant(7)
    driver.put(b"a", lease=7)
    driver.term = 4
    expect_rejection(driver.expire(7, term=3), Code.FAILED_PRECONDITION, "etcdserver: not leader")
    assert driver.get(b"a") is not None
    assert driver.expire(7, term=4).WhichOneof("result") == "lease_revoke"
    assert driver.get(b"a") is None
    assert 7 not in driver.store.leases


def test_the_newest_term_survives_a_snapshot() -> None:
    driver = Driver(term=5)
    driver.grant(7)
    other = Store()
    other.restore([driver.snapshot()])
    after = Driver(other, term=4)
    expect_rejection(after.expire(7, term=4), Code.FAILED_PRECONDITION, "etcdserver: not leader")


def test_expiry_deletes_every_attached_key_in_one_revision_in_key_order() -> None:
    driver = Driver()
    driver.grant(7)
    for key in (b"c", b"a", b"b"):
        driver.put(key, lease=7)
    watcher = driver.store.watches.create(b"a", b"z", 0, wake=lambda: None)
    driver.expire(7, term=1)
    ((revision, events),) = watcher.poll(10)
    assert revision == 5
    assert [event.kv.key for event in events] == [b"a", b"b", b"c"]


def test_expiry_of_a_lease_that_is_gone_is_refused() -> None:
    expect_rejection(Driver().expire(7, term=1), Code.NOT_FOUND, "etcdserver: requested lease not found")


def test_a_checkpoint_sets_the_remaining_time_and_skips_unknown_leases() -> None:
    driver = Driver()
    driver.grant(7, 60)
    driver.checkpoint(7, 25)
    assert driver.checkpoint(99, 5).WhichOneof("result") == "lease_checkpoint"
    lease = driver.store.leases.get(7)
    assert lease is not None
    assert (lease.ttl_s, lease.remaining_ttl_s) == (60, 25)
    assert driver.store.revision == 1


def test_a_key_follows_its_newest_lease_and_leaves_with_its_deletion() -> None:
    driver = Driver()
    driver.grant(7)
    driver.grant(8)
    driver.put(b"a", lease=7)
    driver.put(b"a", lease=8)
    seven, eight = driver.store.leases.get(7), driver.store.leases.get(8)
    assert seven is not None
    assert eight is not None
    assert (seven.keys, eight.keys) == ((), (b"a",))
    driver.delete(b"a")
    assert eight.key_count == 0
    driver.revoke(7)
    driver.put(b"a", lease=8)
    assert eight.keys == (b"a",)
