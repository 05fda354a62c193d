"""The contract of a KVStore, on all three stores that a control plane can stand on: what one does, all do.

Each test says what the API layer relies on. Keys are the test's own, so that tests share the processes. Revisions are
not: a control plane writes for itself when its leader changes, so tests say "after", not "one after".
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.external.kv import RemoteKV
from controlplane.pb.etcd import kv_pb2
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.store.kv import KVStore
from tests.integration.kvstore_rigs import Members, Rig, etcd_members, remote, replica_members, simulator

_PREFIXES = itertools.count(1)
_STORES = [
    "simulator",
    "replicas",
    pytest.param("etcd", marks=pytest.mark.needs("etcd", "etcd-server")),
]
_PROCESSES = _STORES[1:]
MOD, VERSION, CREATE, VALUE = e.Compare.MOD, e.Compare.VERSION, e.Compare.CREATE, e.Compare.VALUE
EQUAL, GREATER = e.Compare.EQUAL, e.Compare.GREATER


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Members]]:
    """The processes, started when the first test wants them."""
    made: dict[str, Members] = {}
    yield made
    for members in made.values():
        members.close()


def _members(name: str, clusters: dict[str, Members], tmp_path_factory: pytest.TempPathFactory) -> Members:
    if name not in clusters:
        make = {"replicas": replica_members, "etcd": etcd_members}[name]
        clusters[name] = make(tmp_path_factory.mktemp(name))
    return clusters[name]


@pytest.fixture(params=_STORES)
async def rig(
    request: pytest.FixtureRequest, clusters: dict[str, Members], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Rig]:
    """Every store in turn."""
    if request.param == "simulator":
        async with simulator() as found:
            yield found
        return
    async with remote(_members(request.param, clusters, tmp_path_factory)) as found:
        yield found


@pytest.fixture(params=_PROCESSES)
def members(
    request: pytest.FixtureRequest, clusters: dict[str, Members], tmp_path_factory: pytest.TempPathFactory
) -> Members:
    """The stores whose members are processes."""
    return _members(request.param, clusters, tmp_path_factory)


@pytest.fixture
def at() -> bytes:
    """A prefix nobody else uses."""
    return b"/contract/%04d/" % next(_PREFIXES)


# -- helpers -------------------------------------------------------------------------------------------------------


def put_op(key: bytes, value: bytes) -> e.RequestOp:
    return e.RequestOp(request_put=e.PutRequest(key=key, value=value))


def get_op(key: bytes) -> e.RequestOp:
    return e.RequestOp(request_range=e.RangeRequest(key=key))


def delete_op(key: bytes) -> e.RequestOp:
    return e.RequestOp(request_delete_range=e.DeleteRangeRequest(key=key))


def mod_is(key: bytes, revision: int) -> e.Compare:
    return e.Compare(key=key, target=MOD, result=EQUAL, mod_revision=revision)


def end_of(prefix: bytes) -> bytes:
    return prefix[:-1] + bytes([prefix[-1] + 1])


async def put(kv: KVStore, key: bytes, value: bytes, *, lease: int = 0) -> int:
    return (await kv.put(e.PutRequest(key=key, value=value, lease=lease))).header.revision


async def get(kv: KVStore, key: bytes) -> kv_pb2.KeyValue | None:
    found = (await kv.range(e.RangeRequest(key=key))).kvs
    return found[0] if found else None


async def take(responses: AsyncIterator[e.WatchResponse], events: int) -> list[kv_pb2.Event]:
    """The next so many events of a watch."""
    taken: list[kv_pb2.Event] = []
    async with asyncio.timeout(20):
        while len(taken) < events:
            response = await anext(responses)
            assert not response.canceled, response
            taken += response.events
    return taken


def told(events: Sequence[kv_pb2.Event]) -> list[tuple[bool, bytes, bytes]]:
    return [(event.type == kv_pb2.Event.DELETE, event.kv.key, event.kv.value) for event in events]


# -- reads ---------------------------------------------------------------------------------------------------------


async def test_ranges_by_key_prefix_limit_and_count(rig: Rig, at: bytes) -> None:
    for name in (b"a", b"b", b"c"):
        await put(rig.kv, at + name, name * 2)
    whole = await rig.kv.range(e.RangeRequest(key=at, range_end=end_of(at)))
    assert [(kv.key, kv.value) for kv in whole.kvs] == [(at + n, n * 2) for n in (b"a", b"b", b"c")]
    assert whole.count == 3
    page = await rig.kv.range(e.RangeRequest(key=at, range_end=end_of(at), limit=2))
    assert [kv.key for kv in page.kvs] == [at + b"a", at + b"b"]
    assert page.more
    assert page.count == 3
    counted = await rig.kv.range(e.RangeRequest(key=at, range_end=end_of(at), count_only=True))
    assert counted.count == 3
    assert not counted.kvs
    keys = await rig.kv.range(e.RangeRequest(key=at + b"b", keys_only=True))
    assert keys.kvs[0].key == at + b"b"
    assert not keys.kvs[0].value
    assert not (await rig.kv.range(e.RangeRequest(key=at + b"d"))).kvs


async def test_the_past_stays_readable_and_the_future_is_refused(rig: Rig, at: bytes) -> None:
    first = await put(rig.kv, at + b"k", b"old")
    second = await put(rig.kv, at + b"k", b"new")
    past = await rig.kv.range(e.RangeRequest(key=at + b"k", revision=first))
    assert past.kvs[0].value == b"old"
    assert past.header.revision >= second
    with pytest.raises(StatusError) as refused:
        await rig.kv.range(e.RangeRequest(key=at + b"k", revision=second + 1_000_000))
    assert refused.value.code is Code.OUT_OF_RANGE
    assert refused.value.message == "etcdserver: mvcc: required revision is a future revision"
    assert not refused.value.unknown_outcome


async def test_a_read_sees_every_write_acknowledged_before_it_through_any_member(rig: Rig, at: bytes) -> None:
    for n in range(10):
        value = b"%d" % n
        await put(rig.kv, at + b"k", value)
        found = await get(rig.other, at + b"k")
        assert found is not None
        assert found.value == value


# -- writes --------------------------------------------------------------------------------------------------------


async def test_a_write_is_one_revision_and_keys_count_theirs(rig: Rig, at: bytes) -> None:
    first = await put(rig.kv, at + b"k", b"1")
    changed = await rig.kv.put(e.PutRequest(key=at + b"k", value=b"2", prev_kv=True))
    second = changed.header.revision
    assert second > first
    assert changed.prev_kv.value == b"1"
    found = await get(rig.kv, at + b"k")
    assert found is not None
    assert (found.create_revision, found.mod_revision, found.version) == (first, second, 2)
    gone = await rig.kv.delete_range(e.DeleteRangeRequest(key=at + b"k", prev_kv=True))
    assert gone.deleted == 1
    assert gone.prev_kvs[0].value == b"2"
    assert gone.header.revision > second
    assert (await rig.kv.delete_range(e.DeleteRangeRequest(key=at + b"k"))).deleted == 0
    again = await put(rig.kv, at + b"k", b"3")
    found = await get(rig.kv, at + b"k")
    assert found is not None
    assert (found.create_revision, found.version) == (again, 1)


async def test_the_revision_only_grows_and_covers_every_answer(rig: Rig, at: bytes) -> None:
    seen = [rig.kv.revision]
    for n in range(5):
        revision = await put(rig.kv, at + b"%d" % n, b"")
        assert revision > seen[-1]
        assert rig.kv.revision >= revision
        seen.append(rig.kv.revision)
    assert seen == sorted(seen)


async def test_a_guarded_write_happens_only_on_what_was_read(rig: Rig, at: bytes) -> None:
    key = at + b"k"
    read = await put(rig.kv, key, b"read")
    await put(rig.other, key, b"between")
    guarded = e.TxnRequest(compare=[mod_is(key, read)], success=[put_op(key, b"late")], failure=[get_op(key)])
    refused = await rig.kv.txn(guarded)
    assert not refused.succeeded
    seen = refused.responses[0].response_range.kvs[0]
    assert seen.value == b"between"
    guarded.compare[0].mod_revision = seen.mod_revision
    done = await rig.kv.txn(guarded)
    assert done.succeeded
    assert done.header.revision > seen.mod_revision
    absent = await rig.kv.txn(e.TxnRequest(compare=[mod_is(key, 0)], success=[put_op(key, b"created")]))
    assert not absent.succeeded
    kept = await get(rig.kv, key)
    assert kept is not None
    assert kept.mod_revision == done.header.revision


async def test_a_transaction_is_one_revision_nested_and_all_its_compares_count(rig: Rig, at: bytes) -> None:
    a, b, c = at + b"a", at + b"b", at + b"c"
    await put(rig.kv, a, b"1")
    nested = e.TxnRequest(
        compare=[e.Compare(key=a, target=VALUE, result=EQUAL, value=b"1")], success=[put_op(b, b"yes")]
    )
    done = await rig.kv.txn(
        e.TxnRequest(
            compare=[
                e.Compare(key=a, target=VERSION, result=EQUAL, version=1),
                e.Compare(key=a, target=CREATE, result=GREATER, create_revision=0),
            ],
            success=[put_op(c, b"c"), e.RequestOp(request_txn=nested), get_op(b), delete_op(a)],
        )
    )
    assert done.succeeded
    assert done.responses[1].response_txn.succeeded
    assert done.responses[2].response_range.kvs[0].value == b"yes"
    assert done.responses[3].response_delete_range.deleted == 1
    found = await rig.kv.range(e.RangeRequest(key=at, range_end=end_of(at)))
    assert {kv.key: kv.mod_revision for kv in found.kvs} == dict.fromkeys((b, c), done.header.revision)
    read = await rig.kv.txn(e.TxnRequest(success=[get_op(b), get_op(c)]))
    assert [r.response_range.kvs[0].value for r in read.responses] == [b"yes", b"c"]
    assert read.header.revision >= done.header.revision


async def test_one_key_twice_in_a_transaction_is_refused_for_certain(rig: Rig, at: bytes) -> None:
    with pytest.raises(StatusError) as refused:
        await rig.kv.txn(e.TxnRequest(success=[put_op(at + b"k", b"1"), put_op(at + b"k", b"2")]))
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert refused.value.message == "etcdserver: duplicate key given in txn request"
    assert not refused.value.unknown_outcome
    assert await get(rig.kv, at + b"k") is None


# -- exactly once --------------------------------------------------------------------------------------------------


async def test_a_write_repeated_under_its_id_happens_once_through_any_member(rig: Rig, at: bytes) -> None:
    key, request_id = at + b"k", at[-16:].rjust(16, b"p")
    request = e.PutRequest(key=key, value=b"v")
    first = await rig.kv.put(request, request_id=request_id)
    await put(rig.kv, at + b"other", b"")
    again = await rig.other.put(request, request_id=request_id)
    assert again.header.revision == first.header.revision
    found = await get(rig.kv, key)
    assert found is not None
    assert (found.version, found.mod_revision) == (1, first.header.revision)


async def test_a_guarded_write_repeated_under_its_id_still_says_that_it_succeeded(rig: Rig, at: bytes) -> None:
    key, request_id = at + b"k", at[-16:].rjust(16, b"g")
    request = e.TxnRequest(
        compare=[mod_is(key, 0)],
        success=[put_op(key, b"mine"), delete_op(at + b"x")],
        failure=[e.RequestOp(request_range=e.RangeRequest(key=key, keys_only=True))],
    )
    first = await rig.kv.txn(request, request_id=request_id)
    assert first.succeeded
    await put(rig.kv, key, b"theirs")
    again = await rig.other.txn(request, request_id=request_id)
    assert again.succeeded
    assert again.header.revision == first.header.revision
    assert len(again.responses) == len(first.responses) == 2
    found = await get(rig.kv, key)
    assert found is not None
    assert found.value == b"theirs"


async def test_a_guard_that_failed_is_tried_anew_under_another_id(rig: Rig, at: bytes) -> None:
    key = at + b"k"
    held = await put(rig.kv, key, b"held")
    request = e.TxnRequest(compare=[mod_is(key, 0)], success=[put_op(key, b"new")], failure=[get_op(key)])
    refused = await rig.kv.txn(request, request_id=at[-16:].rjust(16, b"f"))
    assert not refused.succeeded
    assert refused.responses[0].response_range.kvs[0].mod_revision == held


async def test_what_is_refused_for_certain_never_appears_and_what_is_unknown_may(rig: Rig, at: bytes) -> None:
    key = at + b"k"
    rig.freeze()
    try:
        with pytest.raises(StatusError) as failed:
            await rig.kv.put(e.PutRequest(key=key, value=b"once"), timeout_ms=600)
    finally:
        rig.thaw()
    assert failed.value.code in {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}
    await rig.sleep(1.0)
    found = await get(rig.other, key)
    assert found is None or (failed.value.unknown_outcome and found.version == 1)


async def test_a_write_in_doubt_is_settled_by_repeating_it_under_its_id(rig: Rig, at: bytes) -> None:
    key, request_id = at + b"k", at[-16:].rjust(16, b"d")
    await rig.kv.put(e.PutRequest(key=at + b"warm", value=b""), request_id=at[-16:].rjust(16, b"w"))
    request = e.PutRequest(key=key, value=b"once")
    rig.freeze()
    try:
        with pytest.raises(StatusError):
            await rig.kv.put(request, request_id=request_id, timeout_ms=600)
    finally:
        rig.thaw()
    settled = await rig.other.put(request, request_id=request_id)
    await rig.sleep(0.5)
    found = await get(rig.kv, key)
    assert found is not None
    assert (found.version, found.mod_revision) == (1, settled.header.revision)


# -- watches -------------------------------------------------------------------------------------------------------


async def test_a_watch_tells_everything_from_its_revision_on_in_order(rig: Rig, at: bytes) -> None:
    start = await put(rig.kv, at + b"a", b"1")
    await put(rig.kv, at + b"a", b"2")
    await rig.kv.delete_range(e.DeleteRangeRequest(key=at + b"a"))
    request = e.WatchCreateRequest(key=at, range_end=end_of(at), start_revision=start, prev_kv=True)
    async with rig.kv.watch(request) as responses:
        await put(rig.other, at + b"b", b"3")
        events = await take(responses, 4)
    assert told(events) == [
        (False, at + b"a", b"1"),
        (False, at + b"a", b"2"),
        (True, at + b"a", b""),
        (False, at + b"b", b"3"),
    ]
    revisions = [event.kv.mod_revision for event in events]
    assert revisions[0] == start
    assert revisions == sorted(set(revisions))
    assert [event.prev_kv.value for event in events] == [b"", b"1", b"2", b""]


async def test_a_watch_from_now_on_misses_nothing_after_it_began(rig: Rig, at: bytes) -> None:
    await put(rig.kv, at + b"before", b"")
    async with rig.kv.watch(e.WatchCreateRequest(key=at, range_end=end_of(at))) as responses:
        first = asyncio.ensure_future(take(responses, 1))
        # "Now" is when the store took the watch up: so write until one is told.
        for n in range(200):
            await put(rig.kv, at + b"n%03d" % n, b"")
            if first.done():
                break
            await rig.sleep(0.02)
        seen = await first
        last = await put(rig.kv, at + b"z", b"")
        while seen[-1].kv.mod_revision < last:
            seen += await take(responses, 1)
    names = [event.kv.key for event in seen]
    written = sorted([*(at + b"n%03d" % n for n in range(200)), at + b"z"])
    begin = written.index(names[0])  # what was written before the watch began is not told: at + b"before" is not there
    assert names[:-1] == written[begin : begin + len(names) - 1]
    assert names[-1] == at + b"z"


async def test_the_events_of_one_revision_come_in_one_response(rig: Rig, at: bytes) -> None:
    start = await put(rig.kv, at + b"k", b"")
    names = [at + b"t%02d" % n for n in range(50)]
    request = e.WatchCreateRequest(key=at, range_end=end_of(at), start_revision=start + 1)
    async with rig.kv.watch(request) as responses:
        done = await rig.kv.txn(e.TxnRequest(success=[put_op(name, b"v") for name in names]))
        async with asyncio.timeout(20):
            response = await anext(responses)
    assert [event.kv.key for event in response.events] == names
    assert {event.kv.mod_revision for event in response.events} == {done.header.revision}
    assert response.header.revision >= done.header.revision


async def test_a_watch_taken_up_again_elsewhere_has_no_gap_and_no_repetition(rig: Rig, at: bytes) -> None:
    start = await put(rig.kv, at + b"0", b"")
    seen: list[kv_pb2.Event] = []
    for number, kv in enumerate((rig.kv, rig.other, rig.kv)):
        after = seen[-1].kv.mod_revision if seen else start - 1
        request = e.WatchCreateRequest(key=at, range_end=end_of(at), start_revision=after + 1)
        async with kv.watch(request) as responses:
            await put(rig.kv, at + b"%d" % (number + 1), b"")
            seen += await take(responses, 1)
    last = await put(rig.kv, at + b"9", b"")
    request = e.WatchCreateRequest(key=at, range_end=end_of(at), start_revision=seen[-1].kv.mod_revision + 1)
    async with rig.other.watch(request) as responses:
        while seen[-1].kv.mod_revision < last:
            seen += await take(responses, 1)
    assert [event.kv.key for event in seen] == [at + n for n in (b"0", b"1", b"2", b"3", b"9")]


async def test_a_watch_of_a_compacted_revision_ends_and_says_so(rig: Rig, at: bytes) -> None:
    start = await put(rig.kv, at + b"k", b"1")
    await put(rig.kv, at + b"k", b"2")
    now = await put(rig.kv, at + b"k", b"3")
    await rig.kv.compact(e.CompactionRequest(revision=now))
    with pytest.raises(StatusError) as refused:
        await rig.kv.range(e.RangeRequest(key=at + b"k", revision=start))
    assert refused.value.code is Code.OUT_OF_RANGE
    assert refused.value.message == "etcdserver: mvcc: required revision has been compacted"
    with pytest.raises(StatusError) as again:
        await rig.kv.compact(e.CompactionRequest(revision=start))
    assert again.value.code is Code.OUT_OF_RANGE
    async with rig.kv.watch(e.WatchCreateRequest(key=at + b"k", start_revision=start)) as responses:
        async with asyncio.timeout(20):
            response = await anext(responses)
            assert response.canceled
            assert response.compact_revision >= now
            with pytest.raises(StopAsyncIteration):
                await anext(responses)
    kept = await get(rig.kv, at + b"k")
    assert kept is not None
    assert kept.value == b"3"


async def test_an_idle_watch_is_told_how_far_it_has_come_and_never_further(rig: Rig, at: bytes) -> None:
    """Where the store's bookmarks can be trusted; before 3.4.25 etcd's cannot, and none are asked for."""
    start = await put(rig.kv, at + b"k", b"")
    request = e.WatchCreateRequest(key=at, range_end=end_of(at), start_revision=start, progress_notify=True)
    async with rig.kv.watch(request) as responses:
        assert len(await take(responses, 1)) == 1
        elsewhere = await put(rig.kv, b"/contract-elsewhere", b"")
        waiting = asyncio.ensure_future(anext(responses))
        await rig.sleep(2.5)
        if not rig.bookmarks:
            assert not waiting.done()
            await put(rig.kv, at + b"k2", b"")
            assert (await waiting).events
            return
        async with asyncio.timeout(20):
            response = await waiting
            while response.header.revision < elsewhere:
                assert not response.events
                response = await anext(responses)
        assert not response.events
        assert not response.canceled
        place = response.header.revision
        after = await put(rig.kv, at + b"k2", b"")
        (event,) = await take(responses, 1)
        assert place < event.kv.mod_revision == after


# -- leases --------------------------------------------------------------------------------------------------------


async def test_a_lease_takes_its_keys_along_when_it_expires(rig: Rig, at: bytes) -> None:
    granted = await rig.kv.lease_grant(e.LeaseGrantRequest(TTL=2))
    assert granted.ID
    assert granted.TTL >= 2
    start = await put(rig.kv, at + b"a", b"", lease=granted.ID)
    await put(rig.kv, at + b"b", b"", lease=granted.ID)
    request = e.WatchCreateRequest(key=at, range_end=end_of(at), start_revision=start + 2)
    async with rig.kv.watch(request) as responses:
        events = await take(responses, 2)
    assert sorted(told(events)) == [(True, at + b"a", b""), (True, at + b"b", b"")]
    assert len({event.kv.mod_revision for event in events}) == 1
    late = await rig.kv.lease_keep_alive(e.LeaseKeepAliveRequest(ID=granted.ID))
    assert late.TTL <= 0


async def test_a_lease_that_is_kept_alive_outlives_its_ttl(rig: Rig, at: bytes) -> None:
    granted = await rig.kv.lease_grant(e.LeaseGrantRequest(TTL=2))
    await put(rig.kv, at + b"k", b"", lease=granted.ID)
    for _ in range(4):
        await rig.sleep(0.8)
        answer = await rig.other.lease_keep_alive(e.LeaseKeepAliveRequest(ID=granted.ID))
        assert answer.ID == granted.ID
        assert answer.TTL == granted.TTL
    assert await get(rig.kv, at + b"k") is not None
    await rig.kv.lease_revoke(e.LeaseRevokeRequest(ID=granted.ID))
    assert await get(rig.kv, at + b"k") is None


async def test_a_lease_that_is_not_there_is_refused_for_certain(rig: Rig, at: bytes) -> None:
    answer = await rig.kv.lease_keep_alive(e.LeaseKeepAliveRequest(ID=77))
    assert answer.TTL <= 0
    for write in (
        rig.kv.put(e.PutRequest(key=at + b"k", value=b"", lease=77)),
        rig.kv.lease_revoke(e.LeaseRevokeRequest(ID=77)),
    ):
        with pytest.raises(StatusError) as refused:
            await write
        assert refused.value.code is Code.NOT_FOUND
        assert refused.value.message == "etcdserver: requested lease not found"
        assert not refused.value.unknown_outcome
    assert await get(rig.kv, at + b"k") is None


# -- members that die ----------------------------------------------------------------------------------------------


async def test_a_member_that_dies_costs_neither_a_write_with_an_id_nor_an_event(members: Members, at: bytes) -> None:
    """One member after the other is killed and started again, under writes and a watch."""
    async with remote(members) as rig:
        start = await put(rig.kv, at + b"start", b"")
        request = e.WatchCreateRequest(key=at, range_end=end_of(at), start_revision=start + 1)
        written: list[int] = []

        async def write() -> None:
            for n in range(120):
                kv = rig.kv if n % 2 else rig.other
                done = await kv.put(
                    e.PutRequest(key=at + b"%04d" % n, value=b""),
                    request_id=(at + b"%d" % n)[-16:].rjust(16, b"m"), timeout_ms=15_000,
                )  # fmt: skip
                written.append(done.header.revision)
                await asyncio.sleep(0.02)

        async with rig.kv.watch(request) as responses:
            writing = asyncio.create_task(write())
            for endpoint in members.endpoints[:2]:
                await asyncio.sleep(0.4)
                members.kill(endpoint)
                await asyncio.sleep(0.4)
                members.start(endpoint)
                await _answers(members, endpoint)
            await writing
            events = await take(responses, len(written))
        assert [event.kv.key for event in events] == [at + b"%04d" % n for n in range(120)]
        assert [event.kv.mod_revision for event in events] == written
        assert {event.kv.version for event in events} == {1}


async def _answers(members: Members, endpoint: str) -> None:
    async with asyncio.timeout(20), remote(members) as rig:
        assert isinstance(rig.kv, RemoteKV)
        while True:
            try:
                await rig.kv.status(endpoint)
            except StatusError:
                await asyncio.sleep(0.05)
            else:
                return
