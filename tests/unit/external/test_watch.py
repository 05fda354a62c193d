"""A watch outlives its streams: resumed where it ended, nothing left out, nothing told twice."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.pb.etcd import kv_pb2
from controlplane.pb.etcd import rpc_pb2 as e
from tests.unit.external.members import Failure, Member, connected, member

BROKEN = Failure(text="etcdserver: no leader")


def created(revision: int) -> e.WatchResponse:
    return e.WatchResponse(header=e.ResponseHeader(revision=revision), created=True)


def events(*revisions: int) -> e.WatchResponse:
    return e.WatchResponse(
        header=e.ResponseHeader(revision=99),
        events=[kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"k", mod_revision=revision)) for revision in revisions],
    )


def starts(made: Member) -> list[int]:
    return [r.create_request.start_revision for r in made.requests if r.HasField("create_request")]


async def test_resumes_after_the_last_event_and_hands_none_on_twice() -> None:
    async with member() as only, connected(only.endpoint) as kv:
        only.streams = [[created(3), events(4, 5), BROKEN], [created(6), events(5, 6)]]
        async with kv.watch(e.WatchCreateRequest(key=b"k", start_revision=4)) as responses:
            first, second = await anext(responses), await anext(responses)
    assert [event.kv.mod_revision for event in (*first.events, *second.events)] == [4, 5, 6]
    assert starts(only) == [4, 6]
    assert first.header.revision == 5
    assert only.metadata[0]["hasleader"] == "true"


async def test_from_now_on_is_from_when_it_was_first_taken_up() -> None:
    async with member() as only, connected(only.endpoint) as kv:
        only.streams = [[created(10), BROKEN], [created(15), events(12)]]
        async with kv.watch(e.WatchCreateRequest(key=b"k")) as responses:
            response = await anext(responses)
    assert starts(only) == [0, 11]
    assert response.events[0].kv.mod_revision == 12


async def test_goes_to_another_member_when_its_own_is_gone() -> None:
    async with member() as first, member() as second, connected(first.endpoint, second.endpoint) as kv:
        first.streams = [[created(1), events(2), BROKEN]]
        second.streams = [[created(2), events(3)]]
        async with kv.watch(e.WatchCreateRequest(key=b"k", start_revision=2)) as responses:
            await anext(responses)
            await anext(responses)
    assert (starts(first), starts(second)) == ([2], [3])


async def test_a_compacted_place_ends_it() -> None:
    async with member() as only, connected(only.endpoint) as kv:
        gone = e.WatchResponse(header=e.ResponseHeader(revision=9), canceled=True, compact_revision=8)
        only.streams = [[created(9), gone]]
        async with kv.watch(e.WatchCreateRequest(key=b"k", start_revision=4)) as responses:
            response = await anext(responses)
            assert response.canceled
            assert response.compact_revision == 8
            with pytest.raises(StopAsyncIteration):
                await anext(responses)


async def test_a_refusal_is_raised_and_not_tried_again() -> None:
    async with member() as only, connected(only.endpoint) as kv:
        only.streams = [[Failure(grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")]]
        async with kv.watch(e.WatchCreateRequest(key=b"k")) as responses:
            with pytest.raises(StatusError) as failed:
                await anext(responses)
    assert failed.value.code is Code.PERMISSION_DENIED
    assert len(only.requests) == 1


async def test_an_idle_watch_asks_how_far_it_has_come() -> None:
    async with member() as only, connected(only.endpoint, progress_every_s=0.01) as kv:
        only.streams = [[created(3)]]
        request = e.WatchCreateRequest(key=b"k", start_revision=4, progress_notify=True)
        async with asyncio.timeout(10), kv.watch(request) as responses:
            response = await anext(responses)
    assert not response.events
    assert response.header.revision == 50


@pytest.mark.parametrize(
    ("version", "sound"),
    [
        ("3.4.23", False),
        ("3.4.25", True),
        ("3.5.7", False),
        ("3.5.8", True),
        ("3.6.0", True),
        ("3.4.0-rc.1", False),
        ("", False),
    ],
)
async def test_progress_is_asked_only_of_versions_that_answer_in_order(version: str, *, sound: bool) -> None:
    async with member() as only, connected(only.endpoint) as kv:
        only.version = version
        assert await kv.progress_is_sound(only.endpoint) is sound
