"""The store against a model that keeps a whole dictionary per revision."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.pb.etcd import kv_pb2
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.store.store import Store
from tests.unit.store.support import Driver, delete_op, put_op

KEYS = [b"a", b"aa", b"b", b"c", b"cc"]
keys = st.sampled_from(KEYS)


class Put(NamedTuple):
    key: bytes
    value: bytes


class Delete(NamedTuple):
    key: bytes
    range_end: bytes


class Swap(NamedTuple):
    """If ``key`` has this version: put it; else delete ``other``."""

    key: bytes
    version: int
    other: bytes


class Compact(NamedTuple):
    back: int


class Restart(NamedTuple):
    pass


Op = Put | Delete | Swap | Compact | Restart
ops = st.lists(
    st.one_of(
        st.builds(Put, keys, st.sampled_from([b"", b"1", b"2"])),
        st.builds(Delete, keys, st.sampled_from([b"", b"b", b"d", b"\0"])),
        st.builds(Swap, keys, st.integers(0, 2), keys),
        st.builds(Compact, st.integers(0, 3)),
        st.builds(Restart),
    ),
    max_size=40,
)
Row = tuple[bytes, int, int, int]  # value, create, mod, version


class Model:
    """Naive on purpose."""

    def __init__(self) -> None:
        self.states: list[dict[bytes, Row]] = [{}, {}]  # by revision; 1 is the empty store
        self.events: list[tuple[int, bytes, bool]] = []
        self.compacted = 0

    def write(self, puts: list[tuple[bytes, bytes]], deletes: list[bytes]) -> None:
        now = dict(self.states[-1])
        revision = len(self.states)
        deletes = [key for key in deletes if key in now]
        for key in deletes:
            del now[key]
            self.events.append((revision, key, True))
        for key, value in puts:
            old = now.get(key)
            now[key] = (value, old[1] if old else revision, revision, old[3] + 1 if old else 1)
            self.events.append((revision, key, False))
        if puts or deletes:
            self.states.append(now)


def inside(key: bytes, low: bytes, range_end: bytes) -> bool:
    return key == low if not range_end else low <= key and (range_end == b"\0" or key < range_end)


def run(driver: Driver, model: Model, op: Op) -> Driver:
    match op:
        case Put(key, value):
            driver.put(key, value)
            model.write([(key, value)], [])
        case Delete(key, range_end):
            driver.delete(key, range_end)
            model.write([], [k for k in KEYS if inside(k, key, range_end)])
        case Swap(key, version, other):
            compare = e.Compare(key=key, target=e.Compare.VERSION, result=e.Compare.EQUAL, version=version)
            driver.txn(e.TxnRequest(compare=[compare], success=[put_op(key, b"s")], failure=[delete_op(other)]))
            row = model.states[-1].get(key)
            if (row[3] if row else 0) == version:
                model.write([(key, b"s")], [])
            else:
                model.write([], [other])
        case Compact(back):
            revision = driver.store.revision - back
            if revision > model.compacted:
                driver.compact(revision)
                model.compacted = revision
        case Restart():
            store = Store()
            store.restore([driver.snapshot()])
            driver = Driver(store)
    return driver


def rows(kvs: list[kv_pb2.KeyValue]) -> dict[bytes, Row]:
    return {kv.key: (kv.value, kv.create_revision, kv.mod_revision, kv.version) for kv in kvs}


def compare_all(store: Store, model: Model) -> None:
    assert store.revision == len(model.states) - 1
    for revision in range(max(1, model.compacted), store.revision + 1):
        for low, high in ((b"a", b"\0"), (b"aa", b"c"), (b"c", b"a")):
            wanted = {k: row for k, row in sorted(model.states[revision].items()) if inside(k, low, high)}
            response = store.range(e.RangeRequest(key=low, range_end=high, revision=revision))
            assert list(rows(list(response.kvs)).items()) == list(wanted.items())
            assert response.count == len(wanted)
            page = store.range(e.RangeRequest(key=low, range_end=high, revision=revision, limit=1))
            assert (page.count, page.more, len(page.kvs)) == (len(wanted), len(wanted) > 1, min(1, len(wanted)))
            count = store.range(e.RangeRequest(key=low, range_end=high, revision=revision, count_only=True))
            assert (count.count, len(count.kvs)) == (len(wanted), 0)
        for key in KEYS:
            single = rows(list(store.range(e.RangeRequest(key=key, revision=revision)).kvs))
            assert single.get(key) == model.states[revision].get(key)
    start = max(1, model.compacted)
    watcher = store.watches.create(b"a", b"\0", start, wake=lambda: None)
    seen = []
    while not watcher.synced:
        for revision, events in watcher.poll(3):
            seen += [(revision, event.kv.key, event.type == kv_pb2.Event.DELETE) for event in events]
    watcher.cancel()
    assert seen == [event for event in model.events if event[0] >= start]


@settings(max_examples=60, deadline=None)
@given(steps=ops)
def test_store_agrees_with_the_model_at_every_retained_revision(steps: list[Op]) -> None:
    driver, model = Driver(), Model()
    for op in steps:
        driver = run(driver, model, op)
    compare_all(driver.store, model)
    while not driver.store.sweep(1):
        pass
    compare_all(driver.store, model)
