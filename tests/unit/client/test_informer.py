"""Informer: the cache is right, each change is told once, and no break of a stream loses one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from controlplane.base.clock import ManualClock
from controlplane.base.errors import Code
from controlplane.base.rand import SeededRand
from controlplane.client.informer import Informer
from controlplane.client.interface import ApiError, ExpiredError, ListResult, UnavailableError
from controlplane.pb.k8s.core_v1_pb2 import Pod
from tests.unit.client.fakes import ScriptedApi, added, bookmark, deleted, modified, pod, settle

Change = tuple[str | None, str | None]


class Rig:
    """An informer over a scripted API, with its changes written down as (old version, new version)."""

    def __init__(self, *pages: ListResult[Pod] | ApiError) -> None:
        self.api = ScriptedApi(list(pages))
        self.clock = ManualClock()
        self.informer = Informer(self.api.client(), Pod, clock=self.clock, rand=SeededRand(1))
        self.changes: list[Change] = []
        self.informer.on_change(self._note)

    def _note(self, old: Pod | None, new: Pod | None) -> None:
        def label(p: Pod | None) -> str | None:
            return None if p is None else f"{p.metadata.name}@{p.metadata.resourceVersion}"

        self.changes.append((label(old), label(new)))

    async def pass_time(self, seconds: float = 2.0) -> None:
        self.clock.advance(seconds)
        await settle()

    @property
    def names(self) -> set[str]:
        return {p.metadata.name for p in self.informer.list()}


class Running:
    """Runs the rig's informer for the length of a ``with`` block."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig

    async def __aenter__(self) -> Rig:
        self.task = asyncio.create_task(self.rig.informer.run())
        await settle()
        return self.rig

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with Running(Rig(ListResult([pod("a", 3), pod("b", 5)], "10"))) as running:
        yield running


async def test_first_list_fills_the_cache_and_tells_it_as_additions(rig: Rig) -> None:
    assert rig.informer.synced.is_set()
    assert rig.changes == [(None, "a@3"), (None, "b@5")]
    assert rig.api.watched_from == ["10"]


async def test_events_change_the_cache(rig: Rig) -> None:
    await rig.api.send(added(pod("c", 11)), modified(pod("a", 12)), deleted(pod("b", 13), 13))
    assert rig.names == {"a", "c"}
    assert rig.changes[2:] == [(None, "c@11"), ("a@3", "a@12"), ("b@13", None)]


async def test_a_broken_stream_resumes_without_losing_the_rest_of_a_revision(rig: Rig) -> None:
    await rig.api.send(added(pod("c", 11)), UnavailableError(Code.UNAVAILABLE, "gone"))
    await rig.pass_time()
    # Revision 11 may hold more than the one event seen: it is asked for again, and what was seen is not told twice.
    assert rig.api.watched_from == ["10", "10"]
    await rig.api.send(added(pod("c", 11)), added(pod("d", 11)))
    assert rig.changes[2:] == [(None, "c@11"), (None, "d@11")]
    assert rig.api.lists == 1


async def test_a_deletion_seen_twice_is_told_once(rig: Rig) -> None:
    await rig.api.send(deleted(pod("a", 11), 11), None)
    await rig.pass_time()
    await rig.api.send(deleted(pod("a", 11), 11))
    assert rig.changes[2:] == [("a@11", None)]


async def test_an_old_deletion_does_not_remove_the_successor(rig: Rig) -> None:
    await rig.api.send(deleted(pod("a", 11), 11), added(pod("a", 12, uid="second")), None)
    await rig.pass_time()
    await rig.api.send(deleted(pod("a", 11), 11), added(pod("a", 12, uid="second")))
    assert rig.names == {"a", "b"}
    assert rig.changes[2:] == [("a@11", None), (None, "a@12")]


async def test_bookmarks_move_the_place_to_resume_from(rig: Rig) -> None:
    await rig.api.send(bookmark(40), None)
    await rig.pass_time()
    assert rig.api.watched_from == ["10", "40"]
    assert rig.informer.resource_version == 40


async def test_the_place_never_goes_back_on_old_events(rig: Rig) -> None:
    await rig.api.send(bookmark(40), modified(pod("a", 2)), bookmark(20))
    assert rig.informer.resource_version == 40
    assert rig.informer.get("a", "default") == pod("a", 3)


async def test_an_expired_place_is_listed_again_and_only_differences_are_told() -> None:
    rig = Rig(
        ListResult([pod("a", 3), pod("b", 5), pod("c", 6, uid="old")], "10"),
        ListResult([pod("a", 3), pod("c", 90, uid="new"), pod("d", 91)], "100"),
    )
    async with Running(rig):
        await rig.api.send(ExpiredError(Code.OUT_OF_RANGE, "compacted"))
        await rig.pass_time()
        assert rig.changes[3:] == [("b@5", None), ("c@6", None), (None, "c@90"), (None, "d@91")]
        assert rig.api.watched_from == ["10", "100"]


async def test_a_restore_may_take_the_place_back() -> None:
    rig = Rig(ListResult([pod("a", 3)], "10"), ListResult([pod("a", 2)], "5"))
    async with Running(rig):
        await rig.api.send(ExpiredError(Code.OUT_OF_RANGE, "from before a restore"))
        await rig.pass_time()
        assert rig.informer.resource_version == 5
        assert rig.changes[1:] == [("a@3", "a@2")]


async def test_pages_are_put_together() -> None:
    rig = Rig(ListResult([pod("a", 3)], "10", continue_token="next"), ListResult([pod("b", 4)], "10"))
    async with Running(rig):
        assert rig.names == {"a", "b"}


async def test_a_page_that_expires_half_way_starts_the_list_again() -> None:
    rig = Rig(
        ListResult([pod("a", 3)], "10", continue_token="next"),
        ExpiredError(Code.OUT_OF_RANGE, "compacted"),
        ListResult([pod("b", 14)], "15"),
    )
    async with Running(rig):
        assert not rig.informer.synced.is_set()
        await rig.pass_time()
        assert rig.names == {"b"}


async def test_failures_wait_longer_and_longer_with_jitter_and_start_short_again_after_an_event() -> None:
    rig = Rig(*[UnavailableError(Code.UNAVAILABLE, "no leader")] * 4, ListResult([], "10"))
    async with Running(rig):
        waits = []
        while not rig.informer.synced.is_set():
            started = rig.clock.monotonic()
            lists = rig.api.lists
            while rig.api.lists == lists:
                rig.clock.advance(0.005)
                await settle()
            waits.append(rig.clock.monotonic() - started)
        assert len(waits) == 4
        for wait, ceiling in zip(waits, [0.05, 0.1, 0.2, 0.4], strict=True):
            assert ceiling / 2 <= wait <= ceiling + 0.006
        await rig.api.send(bookmark(11), None)
        await rig.pass_time(0.056)
        assert rig.api.watched_from == ["10", "11"]


async def test_an_index_follows_its_objects() -> None:
    rig = Rig(ListResult([pod("a", 3, node="n1"), pod("b", 5, node="n2")], "10"))
    rig.informer.add_index("node", lambda p: [p.spec.nodeName] if p.spec.nodeName else [])
    async with Running(rig):
        await rig.api.send(modified(pod("a", 11, node="n2")), added(pod("c", 12)), deleted(pod("b", 13, node="n2"), 13))
        assert rig.informer.by_index("node", "n1") == []
        assert [p.metadata.name for p in rig.informer.by_index("node", "n2")] == ["a"]
        assert rig.informer.index_keys("node") == ["n2"]


async def test_an_index_added_late_holds_what_is_there(rig: Rig) -> None:
    rig.informer.add_index("name", lambda p: [p.metadata.name])
    assert rig.informer.by_index("name", "a") == [pod("a", 3)]
    with pytest.raises(ValueError, match="has an index name already"):
        rig.informer.add_index("name", lambda p: [])


async def test_a_handler_added_late_is_told_what_is_there(rig: Rig) -> None:
    seen: list[str] = []
    rig.informer.on_change(lambda old, new: seen.append(new.metadata.name if new else "-"))
    assert sorted(seen) == ["a", "b"]


async def test_a_handlers_mistake_is_not_swallowed() -> None:
    rig = Rig(ListResult([], "1"))

    def broken(old: Pod | None, new: Pod | None) -> None:
        raise LookupError("handler bug")

    rig.informer.on_change(broken)
    task = asyncio.create_task(rig.informer.run())
    await settle()
    await rig.api.send(added(pod("a", 2)))
    with pytest.raises(LookupError, match="handler bug"):
        await task


async def test_a_list_because_the_place_was_gone_is_told_and_until_then_the_cache_is_not_in_step() -> None:
    rig = Rig(ListResult([pod("a", 3)], "10"), ListResult([pod("a", 2)], "1000"))
    told: list[int] = []
    rig.informer.on_relist(lambda: told.append(rig.informer.resource_version))
    async with Running(rig):
        assert told == []
        assert rig.informer.synced.is_set()
        await rig.api.send(None)
        await rig.pass_time()
        assert told == [], "a stream that merely broke goes on"
        await rig.api.send(ExpiredError(Code.OUT_OF_RANGE, "compacted"))
        assert not rig.informer.synced.is_set()
        await rig.pass_time()
        assert told == [1000]
        assert rig.informer.synced.is_set()
