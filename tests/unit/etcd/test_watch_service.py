"""The Watch service's streams: order, multiplexing, progress, fragments, back-pressure, lost leaders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from controlplane.base.errors import StatusError
from controlplane.base.limits import REQUEST_BYTES_MAX
from controlplane.etcd import watch_service
from controlplane.etcd.guard import LeaderGuard
from controlplane.etcd.watch_service import WatchService, fragments
from controlplane.pb.etcd import kv_pb2
from controlplane.pb.etcd import rpc_pb2 as e
from tests.unit.etcd.fakes import FakeContext, Replica, put, settle


class Client:
    """One client stream: what it asks goes in, what it is sent comes out."""

    def __init__(self, replica: Replica, metadata: dict[str, str] | None = None) -> None:
        self.kv = replica.kv
        self.context = FakeContext(metadata)
        self._requests: asyncio.Queue[e.WatchRequest | None] = asyncio.Queue()
        guard = LeaderGuard(replica.raft, replica.clock, election_timeout_ms=1_000)
        service = WatchService(replica.kv, replica.store, guard, replica.authorizer, replica.clock, replica.rand)
        self.serving = asyncio.ensure_future(service.Watch(self._read(), self.context))  # type: ignore[arg-type]

    async def _read(self) -> AsyncIterator[e.WatchRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    def create(self, **fields: Any) -> None:
        self._requests.put_nowait(e.WatchRequest(create_request=e.WatchCreateRequest(**fields)))

    def cancel(self, watch_id: int) -> None:
        self._requests.put_nowait(e.WatchRequest(cancel_request=e.WatchCancelRequest(watch_id=watch_id)))

    def ask_progress(self) -> None:
        self._requests.put_nowait(e.WatchRequest(progress_request=e.WatchProgressRequest()))

    def half_close(self) -> None:
        self._requests.put_nowait(None)

    async def next(self) -> e.WatchResponse:
        response: e.WatchResponse = await asyncio.wait_for(self.context.written.get(), 5)
        return response

    async def quiet(self) -> bool:
        await settle()
        return self.context.written.empty()

    async def created(self, **fields: Any) -> int:
        self.create(**fields)
        response = await self.next()
        assert (response.created, response.canceled) == (True, False)
        return response.watch_id

    async def end(self) -> None:
        self.serving.cancel()
        await asyncio.gather(self.serving, return_exceptions=True)


@pytest.fixture
async def replica() -> Replica:
    return Replica()


@pytest.fixture
async def client(replica: Replica) -> AsyncIterator[Client]:
    client = Client(replica)
    yield client
    await client.end()


def values(response: e.WatchResponse) -> list[bytes]:
    return [event.kv.value for event in response.events]


async def test_ids_count_from_zero_and_skip_those_in_use(client: Client) -> None:
    assert await client.created(key=b"a") == 0
    assert await client.created(key=b"a", watch_id=1) == 1
    assert await client.created(key=b"a") == 2


async def test_created_comes_before_the_first_event(client: Client) -> None:
    await put(client.kv, b"k", b"1")
    client.create(key=b"k", start_revision=2)
    first, second = await client.next(), await client.next()
    assert (first.created, values(second)) == (True, [b"1"])


async def test_each_watch_gets_its_own_events(client: Client) -> None:
    a, b = await client.created(key=b"a"), await client.created(key=b"b")
    await put(client.kv, b"b", b"to-b")
    await put(client.kv, b"a", b"to-a")
    seen = {response.watch_id: values(response) for response in (await client.next(), await client.next())}
    assert seen == {a: [b"to-a"], b: [b"to-b"]}


async def test_a_cancelled_watch_answers_and_is_silent_from_then_on(client: Client, replica: Replica) -> None:
    watch_id = await client.created(key=b"a")
    client.cancel(watch_id)
    response = await client.next()
    assert (response.watch_id, response.canceled, response.created) == (watch_id, True, False)
    await put(client.kv, b"a")
    assert await client.quiet()
    assert len(replica.store.watches) == 0


async def test_cancelling_an_unknown_watch_is_ignored(client: Client) -> None:
    client.cancel(42)
    assert await client.quiet()


async def test_a_duplicate_id_is_refused_and_the_first_watch_lives(client: Client) -> None:
    await client.created(key=b"a", watch_id=7)
    client.create(key=b"b", watch_id=7)
    refused = await client.next()
    assert (refused.watch_id, refused.created, refused.canceled) == (-1, True, True)
    assert "duplicate watch ID" in refused.cancel_reason
    await put(client.kv, b"a")
    assert (await client.next()).watch_id == 7


async def test_a_negative_start_revision_is_compacted_by_definition(client: Client) -> None:
    client.create(key=b"a", start_revision=-1)
    refused = await client.next()
    assert (refused.watch_id, refused.created, refused.canceled) == (-1, True, True)
    assert refused.cancel_reason == "etcdserver: mvcc: required revision has been compacted"


async def test_compacted_history_is_told_after_created(client: Client) -> None:
    for _ in range(5):
        await put(client.kv, b"k")
    await client.kv.compact(e.CompactionRequest(revision=4))
    watch_id = await client.created(key=b"k", start_revision=2)
    gone = await client.next()
    assert (gone.watch_id, gone.canceled, gone.compact_revision, gone.cancel_reason) == (watch_id, True, 4, "")


async def test_a_client_that_reads_late_loses_nothing(client: Client) -> None:
    await client.created(key=b"k")
    client.context.gate.clear()
    for i in range(3_000):
        await put(client.kv, b"k", b"%d" % i)
    await settle()
    assert client.context.written.empty()
    client.context.gate.set()
    seen: list[bytes] = []
    while len(seen) < 3_000:
        seen += values(await client.next())
    assert seen == [b"%d" % i for i in range(3_000)]


async def test_a_response_is_kept_for_the_next_stream_unless_it_is_big(replica: Replica) -> None:
    responses = watch_service._Responses(replica.kv)
    small, big = (kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"k", value=b"v" * size)) for size in (10, 100_000))
    assert responses.of(1, 7, small) is responses.of(1, 7, small)
    assert responses.of(1, 7, big) is not responses.of(1, 7, big), "64 of the biggest would be 200 MB"
    assert responses.of(1, 7, big) == responses.of(1, 7, big)


async def test_a_client_that_is_overtaken_by_compaction_is_told(client: Client) -> None:
    watch_id = await client.created(key=b"k")
    client.context.gate.clear()
    for _ in range(10):
        await put(client.kv, b"k")
        await settle()
    await client.kv.compact(e.CompactionRequest(revision=9, physical=True))
    client.context.gate.set()
    last = await client.next()
    while not last.canceled:
        last = await client.next()
    assert (last.watch_id, last.compact_revision) == (watch_id, 9)


async def test_a_revision_is_never_split(client: Client) -> None:
    await client.created(key=b"k", range_end=b"l")
    keys = [b"k%03d" % i for i in range(128)]
    operations = [e.RequestOp(request_put=e.PutRequest(key=key)) for key in keys]
    for _ in range(20):
        await client.kv.txn(e.TxnRequest(success=operations))
    revisions: list[set[int]] = []
    while sum(map(len, revisions)) < 20:
        response = await client.next()
        assert len(response.events) % 128 == 0
        revisions.append({event.kv.mod_revision for event in response.events})


async def test_the_header_revision_is_safe_to_resume_after(client: Client) -> None:
    await put(client.kv, b"k", b"1")
    await put(client.kv, b"other")
    await client.created(key=b"k", start_revision=1)
    response = await client.next()
    assert (values(response), response.header.revision) == ([b"1"], 3)


async def test_progress_on_request_comes_after_everything_else(client: Client) -> None:
    await client.created(key=b"k")
    await put(client.kv, b"k", b"1")
    client.ask_progress()
    event, progress = await client.next(), await client.next()
    assert values(event) == [b"1"]
    assert (progress.watch_id, progress.header.revision, list(progress.events)) == (-1, 2, [])


async def test_idle_watches_that_asked_hear_the_revision_now_and_then(client: Client, replica: Replica) -> None:
    asked = await client.created(key=b"k", progress_notify=True)
    await client.created(key=b"k")
    await put(client.kv, b"other")
    await settle()
    replica.clock.advance(watch_service.PROGRESS_EVERY_S * 1.1)
    progress = await client.next()
    assert (progress.watch_id, progress.header.revision, list(progress.events)) == (asked, 2, [])
    assert await client.quiet()


async def test_a_busy_watch_needs_no_progress(client: Client, replica: Replica) -> None:
    await client.created(key=b"k", progress_notify=True)
    await put(client.kv, b"k")
    assert (await client.next()).events
    replica.clock.advance(watch_service.PROGRESS_EVERY_S * 1.1)
    assert await client.quiet()
    replica.clock.advance(watch_service.PROGRESS_EVERY_S * 1.1)
    assert not (await client.next()).events


async def test_a_half_closed_stream_goes_on_delivering(client: Client) -> None:
    await client.created(key=b"k")
    client.half_close()
    await settle()
    await put(client.kv, b"k", b"1")
    assert values(await client.next()) == [b"1"]


async def test_a_stream_that_ends_leaves_no_watch_behind(client: Client, replica: Replica) -> None:
    for _ in range(3):
        await client.created(key=b"k")
    assert len(replica.store.watches) == 3
    client.serving.cancel()
    await asyncio.gather(client.serving, return_exceptions=True)
    assert len(replica.store.watches) == 0


async def test_a_stream_that_requires_a_leader_ends_when_there_is_none_for_long(replica: Replica) -> None:
    patient, demanding = Client(replica), Client(replica, {"hasleader": "true"})
    await patient.created(key=b"k")
    await demanding.created(key=b"k")
    replica.raft.set_leader(None)
    for _ in range(4):
        await settle()
        replica.clock.advance(1)
    with pytest.raises(StatusError, match="etcdserver: no leader"):
        await demanding.serving
    assert not patient.serving.done()
    patient.serving.cancel()
    await asyncio.gather(patient.serving, return_exceptions=True)


async def test_a_short_election_ends_no_stream(replica: Replica) -> None:
    client = Client(replica, {"hasleader": "true"})
    await client.created(key=b"k")
    for _ in range(3):
        replica.raft.set_leader(None)
        replica.clock.advance(1)
        await settle()
        replica.raft.set_leader("r1")
        replica.clock.advance(1)
        await settle()
    assert not client.serving.done()
    client.serving.cancel()
    await asyncio.gather(client.serving, return_exceptions=True)


async def test_too_big_a_response_is_fragmented_only_for_those_who_asked(client: Client) -> None:
    whole = await client.created(key=b"k", range_end=b"l", prev_kv=True)
    pieces = await client.created(key=b"k", range_end=b"l", prev_kv=True, fragment=True)
    value = b"x" * (REQUEST_BYTES_MAX // 3)
    # More than one request may hold, in one revision: two puts of a transaction and what they replaced.
    for _ in range(2):
        operations = [e.RequestOp(request_put=e.PutRequest(key=key, value=value)) for key in (b"k1", b"k2")]
        await client.kv.txn(e.TxnRequest(success=operations))
    seen: dict[int, list[tuple[int, bool]]] = {whole: [], pieces: []}
    while sum(count for counts in seen.values() for count, _ in counts) < 8:
        response = await client.next()
        seen[response.watch_id].append((len(response.events), response.fragment))
    assert all(not fragment for _, fragment in seen[whole])
    assert any(fragment for _, fragment in seen[pieces])
    assert not seen[pieces][-1][1]


def test_fragments_cover_all_events_in_order_and_only_the_last_says_so() -> None:
    events = [kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"%d" % i, value=b"x" * 100)) for i in range(10)]
    response = e.WatchResponse(watch_id=3, header=e.ResponseHeader(revision=9), events=events)
    pieces = list(fragments(response, 400))
    assert [event.kv.key for piece in pieces for event in piece.events] == [b"%d" % i for i in range(10)]
    assert [piece.fragment for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert all(piece.ByteSize() <= 400 and piece.watch_id == 3 and piece.header.revision == 9 for piece in pieces)
    assert len(pieces) > 1


async def test_thousands_of_watches_on_one_stream_cost_nothing_to_writes_that_do_not_concern_them(
    client: Client, replica: Replica
) -> None:
    for i in range(5_000):
        client.create(key=b"k%d" % i)
    for _ in range(5_000):
        await client.next()
    assert len(replica.store.watches) == 5_000
    await put(client.kv, b"k42", b"only")
    response = await client.next()
    assert (response.watch_id, values(response)) == (42, [b"only"])
    assert await client.quiet()
