"""The state in etcd's own format: checksums, pages, and a cut that shows one moment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from hashlib import sha256
from struct import unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.base.errors import StatusError
from controlplane.etcd.bolt import PAGE_BYTES, BoltFile, BucketPlan
from controlplane.etcd.crc32c import Crc32c
from controlplane.etcd.export import Export, hash_kv
from controlplane.pb.etcd import kv_pb2
from controlplane.pb.etcd import rpc_pb2 as e
from tests.unit.etcd.fakes import Replica, put

Buckets = dict[bytes, dict[bytes, bytes]]


def crc_of(data: bytes) -> int:
    crc = Crc32c()
    crc.update(data)
    return crc.value


def test_crc_is_castagnolis() -> None:
    """Source: RFC 3720, appendix B.4."""
    assert crc_of(b"123456789") == 0xE3069283
    assert crc_of(bytes(32)) == 0x8A9136AA
    assert crc_of(b"\xff" * 32) == 0x62A8AB43
    assert crc_of(bytes(range(32))) == 0x46DD794E
    assert crc_of(b"") == 0


@pytest.mark.parametrize("size", [1, 3, 4, 65_535, 65_536, 65_537, 200_003])
def test_crc_does_not_depend_on_how_the_bytes_come(size: int) -> None:
    data = (b"%d," % size) * size
    data = data[:size]
    crc = Crc32c()
    for start in range(0, size, 7_777):
        crc.update(data[start : start + 7_777])
    assert crc.value == crc_of(data)
    assert crc_of(data[:-1] + bytes([data[-1] ^ 1])) != crc.value


def bolt(buckets: Buckets) -> bytes:
    plans = []
    for name, entries in sorted(buckets.items()):
        plan = BucketPlan(name)
        for key in sorted(entries):
            plan.add(key, len(entries[key]))
        plans.append(plan)
    file = BoltFile(plans)
    pages = [file.head()]
    for name, entries in sorted(buckets.items()):
        pages += file.bucket(name, sorted(entries.items()))
    pages.append(file.tail())
    data = b"".join(pages)
    assert len(data) == file.size_bytes
    return data


def read(data: bytes) -> Buckets:
    """A reader of the format, written from its description: follows page ids from the newest meta page."""
    metas = [unpack_from("<IIIIQQQQQ", data, page * PAGE_BYTES + 16) for page in (0, 1)]
    assert all(meta[:3] == (0xED0CDAED, 2, PAGE_BYTES) for meta in metas)
    newest = max(metas, key=lambda meta: meta[8])
    assert newest[7] * PAGE_BYTES == len(data)
    seen: list[int] = [0, 1, newest[6]]
    found: Buckets = {}
    for name, value, is_bucket in walk(data, newest[4], seen):
        assert is_bucket
        (root,) = unpack_from("<Q", value)
        entries = [(key, inner) for key, inner, _ in walk(data, root, seen)]
        assert entries == sorted(entries)
        found[name] = dict(entries)
    assert sorted(seen) == list(range(len(data) // PAGE_BYTES)), "every page is reached, once"
    return found


def walk(data: bytes, page: int, seen: list[int]) -> Iterator[tuple[bytes, bytes, bool]]:
    at = page * PAGE_BYTES
    number, flags, count, overflow = unpack_from("<QHHI", data, at)
    assert number == page
    seen.extend(range(page, page + overflow + 1))
    for element in range(at + 16, at + 16 + 16 * count, 16):
        if flags == 0x01:
            offset, size, below = unpack_from("<IIQ", data, element)
            first = True
            for entry in walk(data, below, seen):
                assert not first or entry[0] == data[element + offset : element + offset + size]
                first = False
                yield entry
        else:
            assert flags == 0x02
            kind, offset, key_bytes, value_bytes = unpack_from("<IIII", data, element)
            key = element + offset
            value = key + key_bytes
            yield data[key:value], data[value : value + value_bytes], kind == 1


entries_st = st.dictionaries(st.binary(max_size=20), st.binary(max_size=3_000) | st.just(bytes(9_000)), max_size=40)


@given(st.dictionaries(st.sampled_from([b"key", b"lease", b"meta"]), entries_st, min_size=1))
def test_a_bolt_file_holds_what_was_put_into_it(buckets: Buckets) -> None:
    assert read(bolt(buckets)) == buckets


def test_many_entries_make_branches_over_branches() -> None:
    buckets = {b"key": {b"%017d" % number: b"v" * 180 for number in range(40_000)}, b"empty": {}}
    assert read(bolt(buckets)) == buckets


async def exported(export: Export, chunk_bytes: int = 32 * 1024) -> bytes:
    size, chunks = await export.file(chunk_bytes)
    *pieces, digest = [chunk async for chunk in chunks]
    data = b"".join(pieces)
    assert len(data) == size
    assert sha256(data).digest() == digest
    return data


def revisions(buckets: Buckets) -> list[tuple[int, int, bool]]:
    """(main, sub, tombstone) of each entry of the key bucket."""
    return [(*unpack_from(">qxq", key), key[17:] == b"t") for key in buckets[b"key"]]


async def test_the_key_bucket_has_what_is_retained_in_etcds_own_keys() -> None:
    replica = Replica()
    await put(replica.kv, b"a")
    await put(replica.kv, b"b")
    ops = [e.RequestOp(request_put=e.PutRequest(key=key)) for key in (b"d", b"c")]
    await replica.kv.txn(e.TxnRequest(success=ops))
    await replica.kv.delete_range(e.DeleteRangeRequest(key=b"a"))
    await replica.kv.lease_grant(e.LeaseGrantRequest(ID=7, TTL=60))
    await put(replica.kv, b"b", lease=7)
    everything = read(await exported(Export(replica.store, replica.raft.status(), tls=False)))
    assert revisions(everything) == [
        (2, 0, False),
        (3, 0, False),
        (4, 0, False),
        (4, 1, False),
        (5, 0, True),
        (6, 0, False),
    ]
    values = [kv_pb2.KeyValue.FromString(value) for value in everything[b"key"].values()]
    assert [kv.key for kv in values] == [b"a", b"b", b"d", b"c", b"a", b"b"]
    assert values[-1].lease == 7
    assert list(everything[b"lease"]) == [(7).to_bytes(8, "big")]
    await replica.kv.compact(e.CompactionRequest(revision=5))
    compacted = read(await exported(Export(replica.store, replica.raft.status(), tls=False)))
    assert revisions(compacted) == [(3, 0, False), (4, 0, False), (4, 1, False), (6, 0, False)]
    assert unpack_from(">q", compacted[b"meta"][b"finishedCompactRev"]) == (5,)
    # A snapshot of ours keeps the places of keys within their revision.
    other = Replica()
    other.store.restore(replica.store.snapshot())
    assert read(await exported(Export(other.store, replica.raft.status(), tls=False)))[b"key"] == compacted[b"key"]


async def test_the_cut_is_one_moment_and_the_loop_goes_on() -> None:
    replica = Replica()
    for number in range(3_000):
        await put(replica.kv, b"k%04d" % (number % 1_500), bytes(100))
    await replica.kv.compact(e.CompactionRequest(revision=2_000))
    export = Export(replica.store, replica.raft.status(), tls=False)
    wanted = read(await exported(export))[b"key"]
    turns = 0

    async def write_on() -> None:
        nonlocal turns
        while True:
            await put(replica.kv, b"k%04d" % (turns % 1_500))
            await replica.kv.compact(e.CompactionRequest(revision=replica.kv.revision, physical=True))
            turns += 1
            await asyncio.sleep(0)

    writing = asyncio.ensure_future(write_on())
    same = read(await exported(export))[b"key"] == wanted  # shown apart: a difference would be megabytes
    writing.cancel()
    assert same
    assert turns >= 3
    assert not replica.store.sweepable
    before = replica.store.size_bytes
    export.close()
    while replica.store.sweepable:
        replica.store.sweep()
    assert replica.store.size_bytes < before, "a closed cut gives back what it held"


async def test_hash_kv_is_refused_where_there_is_no_history() -> None:
    replica = Replica()
    for _ in range(5):
        await put(replica.kv, b"k")
    await replica.kv.compact(e.CompactionRequest(revision=3))
    assert (await hash_kv(replica.store, 4)).compact_revision == 3
    with pytest.raises(StatusError, match="compacted"):
        await hash_kv(replica.store, 3)
    with pytest.raises(StatusError, match="future"):
        await hash_kv(replica.store, 99)


async def test_hashes_follow_the_state_not_the_replica() -> None:
    replica = Replica()
    other = Replica("r2", join=replica)

    async def hash_of(each: Replica) -> int:
        return await Export(each.store, each.raft.status(), tls=False).hash()

    await put(replica.kv, b"k")
    first = await hash_of(replica)
    assert await hash_of(other) == first
    await replica.kv.lease_grant(e.LeaseGrantRequest(ID=7, TTL=60))
    assert await hash_of(other) == await hash_of(replica) != first
