"""Watches in the same process: they follow the store, from any revision it retains."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.pb.etcd import rpc_pb2 as e
from tests.unit.etcd.fakes import Replica, put, settle


@pytest.fixture
async def replica() -> Replica:
    return Replica()


async def test_a_watch_delivers_what_follows(replica: Replica) -> None:
    await put(replica.kv, b"k", b"before")
    async with replica.kv.watch(e.WatchCreateRequest(key=b"k")) as responses:
        reading = asyncio.ensure_future(anext(responses))
        await settle()
        await put(replica.kv, b"k", b"after")
        response = await reading
    assert [event.kv.value for event in response.events] == [b"after"]
    assert response.header.revision == 3


async def test_a_watch_from_a_past_revision_replays_history_in_order(replica: Replica) -> None:
    for value in (b"1", b"2", b"3"):
        await put(replica.kv, b"k", value)
    async with replica.kv.watch(e.WatchCreateRequest(key=b"k", start_revision=3)) as responses:
        response = await anext(responses)
    assert [event.kv.value for event in response.events] == [b"2", b"3"]


async def test_a_watch_of_compacted_history_ends_with_the_revision_to_start_from(replica: Replica) -> None:
    for _ in range(5):
        await put(replica.kv, b"k")
    await replica.kv.compact(e.CompactionRequest(revision=4))
    async with replica.kv.watch(e.WatchCreateRequest(key=b"k", start_revision=2)) as responses:
        answers = [response async for response in responses]
    assert [(answer.canceled, answer.compact_revision) for answer in answers] == [(True, 4)]


async def test_an_idle_watch_that_asked_gets_bookmarks(replica: Replica) -> None:
    async with replica.kv.watch(e.WatchCreateRequest(key=b"k", progress_notify=True)) as responses:
        reading = asyncio.ensure_future(anext(responses))
        await settle()
        await put(replica.kv, b"other")
        await settle()
        assert not reading.done()
        replica.clock.advance(10)
        bookmark = await reading
    assert (list(bookmark.events), bookmark.header.revision) == ([], 2)


async def test_a_closed_watch_is_forgotten_by_the_store(replica: Replica) -> None:
    async with replica.kv.watch(e.WatchCreateRequest(key=b"k")):
        assert len(replica.store.watches) == 1
    assert len(replica.store.watches) == 0
