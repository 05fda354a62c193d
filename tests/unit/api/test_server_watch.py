"""Watches: every change once, in order, resumable; selectors that start and stop matching; expiry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from controlplane.api.errors import ApiError, ExpiredError
from controlplane.pb.etcd import rpc_pb2 as etcd
from controlplane.pb.quarterdeck.v1 import api_pb2
from tests.unit.api.support import Cluster, config_map, pod

Type = api_pb2.WatchEvent.Type


@pytest.fixture
async def cluster() -> Cluster:
    return await Cluster().start()


class Events:
    """The events of one watch, a line each: ``ADDED a@5``."""

    def __init__(self, events: AsyncIterator[api_pb2.WatchEvent]) -> None:
        self._events = events

    async def event(self) -> api_pb2.WatchEvent:
        return await asyncio.wait_for(anext(self._events), 5)

    async def take(self, count: int) -> list[str]:
        lines = []
        for _ in range(count):
            event = await self.event()
            held: Any = getattr(event.object, event.object.WhichOneof("kind") or "", None)
            if held is not None:
                assert held.metadata.resourceVersion == event.resource_version
            name = held.metadata.name if held is not None else ""
            lines.append(f"{Type.Name(event.type)} {name}".strip())
        return lines


@asynccontextmanager
async def watch(cluster: Cluster, resource: str = "configmaps", **request: Any) -> AsyncIterator[Events]:
    async with cluster.api.watch(api_pb2.WatchRequest(resource=resource, **request)) as events:
        yield Events(events)


async def test_a_new_watch_tells_what_is_there_then_what_changes(cluster: Cluster) -> None:
    made = await cluster.create(config_map("a"))
    async with watch(cluster) as events:
        first = await events.event()
        assert (first.type, first.object.config_map) == (api_pb2.WatchEvent.ADDED, made)
        bookmark = await events.event()
        assert (bookmark.type, bookmark.resource_version) == (api_pb2.WatchEvent.BOOKMARK, str(cluster.kv.revision))
        assert not bookmark.HasField("object")
        made.data["k"] = "v"
        await cluster.update(made)
        await cluster.create(config_map("b"))
        await cluster.delete("configmaps", "a")
        assert await events.take(3) == ["MODIFIED a", "ADDED b", "DELETED a"]


async def test_a_watch_resumes_after_the_revision_it_names(cluster: Cluster) -> None:
    made = await cluster.create(config_map("a"))
    made.data["k"] = "1"
    second = await cluster.update(made)
    second.data["k"] = "2"
    await cluster.update(second)
    await cluster.delete("configmaps", "a")
    async with watch(cluster, resource_version=made.metadata.resourceVersion) as events:
        assert await events.take(3) == ["MODIFIED a", "MODIFIED a", "DELETED a"]
    async with watch(cluster, resource_version=second.metadata.resourceVersion) as events:
        assert await events.take(2) == ["MODIFIED a", "DELETED a"]


async def test_a_list_and_a_watch_from_it_miss_nothing(cluster: Cluster) -> None:
    await cluster.create(config_map("a"))
    listed = await cluster.api.list(api_pb2.ListRequest(resource="configmaps"))
    await cluster.create(config_map("b"))
    async with watch(cluster, resource_version=listed.resource_version) as events:
        assert await events.take(1) == ["ADDED b"]


async def test_the_last_state_comes_with_the_deletions_revision(cluster: Cluster) -> None:
    made = await cluster.create(config_map("a", k="v"))
    await cluster.delete("configmaps", "a")
    async with watch(cluster, resource_version=made.metadata.resourceVersion) as events:
        event = await events.event()
    assert event.object.config_map.data["k"] == "v"
    assert event.resource_version == event.object.config_map.metadata.resourceVersion == str(cluster.kv.revision)


async def test_a_watch_sees_its_own_kind_and_namespace(cluster: Cluster) -> None:
    start = str(cluster.kv.revision)
    await cluster.create(config_map("a"))
    await cluster.create(pod("p"))
    await cluster.create(config_map("b", namespace="kube-system"))
    async with watch(cluster, resource_version=start, namespace="kube-system") as events:
        assert await events.take(1) == ["ADDED b"]


async def test_an_object_that_starts_to_match_is_added_and_one_that_stops_is_deleted(cluster: Cluster) -> None:
    start = str(cluster.kv.revision)
    await cluster.create(pod("p", labels={"app": "web"}))
    for labels in ({"app": None}, {"app": "web", "x": "1"}, {"x": "2"}, {"app": "db"}, {"x": "3"}):
        await cluster.patch("pods", "p", {"metadata": {"labels": labels}})
    await cluster.delete("pods", "p")
    await cluster.create(pod("q", labels={"app": "web"}))
    async with watch(cluster, "pods", resource_version=start, label_selector="app=web") as events:
        assert await events.take(6) == ["ADDED p", "DELETED p", "ADDED p", "MODIFIED p", "DELETED p", "ADDED q"]


async def test_an_agent_sees_pods_come_to_its_node(cluster: Cluster) -> None:
    await cluster.create(pod("a"))
    await cluster.create(pod("b", node="n1"))
    async with watch(cluster, "pods", field_selector="spec.nodeName=n1") as events:
        assert await events.take(2) == ["ADDED b", "BOOKMARK"]
        binding = api_pb2.Binding(namespace="default", name="a", node_name="n1")
        await cluster.api.bind(api_pb2.BindRequest(bindings=[binding]))
        await cluster.delete("pods", "a", grace_period_seconds=0)
        assert await events.take(2) == ["ADDED a", "DELETED a"]


async def test_a_compacted_revision_is_expired(cluster: Cluster) -> None:
    made = await cluster.create(config_map("a"))
    await cluster.create(config_map("b"))
    await cluster.create(config_map("c"))
    await cluster.kv.compact(etcd.CompactionRequest(revision=cluster.kv.revision))
    with pytest.raises(ExpiredError, match="too old resource version") as caught:
        async with watch(cluster, resource_version=made.metadata.resourceVersion) as events:
            await events.take(1)
    assert caught.value.reason == "Expired"


async def test_a_deletion_whose_last_state_is_compacted_keeps_the_name(cluster: Cluster) -> None:
    await cluster.create(config_map("a", k="v"))
    await cluster.delete("configmaps", "a")
    deleted = cluster.kv.revision
    await cluster.create(config_map("b"))
    await cluster.kv.compact(etcd.CompactionRequest(revision=deleted))
    async with watch(cluster, resource_version=str(deleted - 1), label_selector="!x") as events:
        event = await events.event()
    assert (event.type, event.object.config_map.metadata.name) == (api_pb2.WatchEvent.DELETED, "a")
    assert event.object.config_map.metadata.namespace == "default"


async def test_bookmarks_come_to_an_idle_watch_that_asks(cluster: Cluster) -> None:
    async with watch(cluster, resource_version=str(cluster.kv.revision), bookmarks=True) as events:
        waiting = asyncio.create_task(events.event())
        await asyncio.sleep(0)
        await cluster.create(pod("p"))
        for _ in range(20):
            cluster.clock.advance(11)
            await asyncio.sleep(0)
        event = await waiting
    assert (event.type, event.resource_version) == (api_pb2.WatchEvent.BOOKMARK, str(cluster.kv.revision))


@pytest.mark.parametrize("version", ["x", "-1", "1.0", "9" * 30])
async def test_a_version_that_is_none_is_refused(cluster: Cluster, version: str) -> None:
    with pytest.raises(ApiError, match="resource_version: Invalid value"):
        async with watch(cluster, resource_version=version):
            raise AssertionError("the watch is open")
