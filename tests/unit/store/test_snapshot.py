"""Snapshots: canonical, cut without stopping, refused when damaged; disaster recovery."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.base.errors import CorruptStateError
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.store.errors import CompactedError
from controlplane.store.snapshot import load
from controlplane.store.store import Store, restored_state
from tests.unit.store.support import Driver, put_op


def filled(keys: int = 40) -> Driver:
    driver = Driver(Store(cluster_id=0xC1))
    driver.grant(7, 30)
    driver.checkpoint(7, 12)
    for number in range(keys):
        driver.put(b"key%03d" % number, b"v" * number, lease=7 if number % 3 == 0 else 0)
    driver.delete(b"key005", b"key008")
    driver.compact(20)
    driver.put(b"key006", b"again")
    driver.txn(e.TxnRequest(success=[put_op(b"z"), put_op(b"y")]))
    return driver


def restored(stream: bytes) -> Store:
    store = Store()
    store.restore([stream])
    return store


def test_a_restored_store_is_the_same_store() -> None:
    driver = filled()
    store, other = driver.store, restored(driver.snapshot())
    for name in ("applied_index", "revision", "compact_revision", "key_count", "cluster_id"):
        assert getattr(other, name) == getattr(store, name), name
    assert other.state_hash() == store.state_hash()
    everything = e.RangeRequest(key=b"\0", range_end=b"\0")
    for revision in range(store.compact_revision, store.revision + 1):
        everything.revision = revision
        assert other.range(everything) == store.range(everything)
    lease = other.leases.get(7)
    assert lease is not None
    assert (lease.ttl_s, lease.remaining_ttl_s) == (30, 12)
    original = store.leases.get(7)
    assert original is not None
    assert lease.keys == original.keys
    assert driver.snapshot() == b"".join(other.snapshot())


def test_a_restored_store_goes_on_like_the_original() -> None:
    driver = filled()
    other = Driver(restored(driver.snapshot()))
    for each in (driver, other):
        each.put(b"key001", b"more")
        each.revoke(7)
        each.compact(30)
    assert driver.snapshot() == other.snapshot()
    assert driver.store.state_hash() == other.store.state_hash()


def test_a_cut_shows_its_moment_while_writes_and_compaction_go_on() -> None:
    driver = filled(600)
    wanted = driver.snapshot()
    cut = driver.store.snapshot()
    got = bytearray(next(cut))
    for number in range(0, 600, 2):
        driver.delete(b"key%03d" % number)
        driver.put(b"new%03d" % number)
    driver.revoke(7)
    driver.compact(driver.store.revision)
    while not driver.store.sweep(1_000) and (chunk := next(cut, None)) is not None:
        got += chunk
        driver.put(b"key%03d" % (len(got) % 600), b"later")
    got += b"".join(cut)
    assert bytes(got) == wanted


def test_a_dropped_cut_lets_compaction_go_on() -> None:
    driver = filled(600)
    cut = driver.store.snapshot()
    next(cut)
    driver.compact(driver.store.revision)
    assert not driver.store.sweep(10_000)
    size = driver.store.size_bytes
    del cut
    assert driver.store.sweep(10_000)
    assert driver.store.size_bytes < size


def test_bytes_do_not_depend_on_how_far_memory_was_swept() -> None:
    driver = filled(400)
    driver.compact(350)
    before = driver.snapshot()
    while not driver.store.sweep(10):
        assert driver.snapshot() == before
    assert driver.snapshot() == before


@given(cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_chunks_may_be_split_anywhere(cuts: list[int]) -> None:
    stream = filled(20).snapshot()
    at = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    store = Store()
    store.restore(stream[low:high] for low, high in pairwise(at))
    assert b"".join(store.snapshot()) == stream


def test_every_damage_is_refused_and_changes_nothing() -> None:
    stream = filled(8).snapshot()
    victim = Driver(Store(cluster_id=0xC1))
    victim.put(b"mine", b"1")
    before = victim.snapshot()
    damaged = [stream[:size] for size in range(0, len(stream), 7)]
    damaged += [stream[:at] + bytes([stream[at] ^ 0x10]) + stream[at + 1 :] for at in range(0, len(stream), 3)]
    damaged += [stream + b"x", stream + stream, b"", stream[:-1]]
    for each in damaged:
        with pytest.raises(CorruptStateError):
            victim.store.restore([each])
    assert victim.snapshot() == before


def test_another_clusters_snapshot_is_refused() -> None:
    with pytest.raises(CorruptStateError, match="cluster"):
        Store(cluster_id=0xC2).restore([filled().snapshot()])


def test_recovery_keeps_the_keys_at_a_higher_revision_with_history_compacted() -> None:
    driver = filled()
    revision = driver.store.revision
    stream = b"".join(restored_state(load([driver.snapshot()]), revision_bump=1_000, applied_index=3, cluster_id=0xC2))
    store = restored(stream)
    assert (store.revision, store.compact_revision) == (revision + 1_000, revision + 1_000)
    assert (store.applied_index, store.cluster_id) == (3, 0xC2)
    everything = e.RangeRequest(key=b"\0", range_end=b"\0")
    assert store.range(everything).kvs == driver.store.range(everything).kvs
    lease = store.leases.get(7)
    assert lease is not None
    assert (lease.ttl_s, lease.remaining_ttl_s) == (30, 0)
    assert b"".join(store.snapshot()) == stream
    watcher = store.watches.create(b"a", b"\0", revision + 1, wake=lambda: None)
    with pytest.raises(CompactedError) as caught:
        watcher.poll(10)
    assert caught.value.compact_revision == revision + 1_000
    after = Driver(store)
    after.index = 1_000  # the driver's request ids count from the index, and the old ones are still remembered
    assert after.put(b"key001", b"new life") == revision + 1_001
    assert after.get(b"key001", revision + 1_000) == driver.get(b"key001")


def test_the_hash_differs_when_anything_applied_differs() -> None:
    def hash_of(value: bytes, ttl_s: int) -> str:
        driver = Driver()
        driver.grant(7, ttl_s)
        driver.put(b"a", value)
        return driver.store.state_hash()

    assert hash_of(b"1", 30) == hash_of(b"1", 30)
    assert len({hash_of(b"1", 30), hash_of(b"2", 30), hash_of(b"1", 31)}) == 3


def test_the_hash_of_a_recent_revision_is_kept() -> None:
    driver = Driver()
    driver.put(b"a")
    at_2 = driver.store.state_hash()
    driver.grant(7)
    assert driver.store.state_hash() == at_2  # what makes no revision shows in the next one's
    driver.put(b"b")
    assert driver.store.state_hash(2) == at_2
    assert driver.store.state_hash(3) == driver.store.state_hash() != at_2
    assert driver.store.state_hash(4) == ""
