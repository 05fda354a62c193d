"""Writes among other writers: retries, fences, lost answers, stale replicas."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from controlplane.api.errors import FencedError, UnavailableError
from controlplane.pb.k8s.apps_v1_pb2 import Deployment
from controlplane.pb.quarterdeck.v1 import api_pb2
from tests.unit.api.support import Cluster, config_map, pod

RID = bytes(range(16))


@pytest.fixture
async def cluster() -> Cluster:
    return await Cluster().start()


async def test_concurrent_patches_all_take_effect(cluster: Cluster) -> None:
    await cluster.create(config_map("c"))
    await asyncio.gather(*(cluster.patch("configmaps", "c", {"data": {f"k{i}": "v"}}) for i in range(8)))
    assert len((await cluster.get("configmaps", "c")).data) == 8


async def test_a_create_retried_under_its_request_id_happens_once(cluster: Cluster) -> None:
    asked = pod("")
    asked.metadata.generateName = "web-"
    cluster.raft.lose_next(applied=True)
    with pytest.raises(UnavailableError) as caught:
        await cluster.create(asked, request_id=RID)
    assert caught.value.unknown_outcome
    cluster.clock.advance(60)
    made = await cluster.create(asked, request_id=RID)
    assert await cluster.names("pods") == [made.metadata.name]
    assert await cluster.get("pods", made.metadata.name) == made


async def test_a_create_that_was_lost_is_done_by_its_retry(cluster: Cluster) -> None:
    cluster.raft.lose_next(applied=False)
    with pytest.raises(UnavailableError):
        await cluster.create(config_map("c"), request_id=RID)
    await cluster.create(config_map("c"), request_id=RID)
    assert await cluster.exists("configmaps", "c")


async def test_an_update_retried_under_its_request_id_is_no_conflict_with_itself(cluster: Cluster) -> None:
    made = await cluster.create(config_map("c", k="1"))
    made.data["k"] = "2"
    cluster.raft.lose_next(applied=True)
    with pytest.raises(UnavailableError):
        await cluster.update(made, request_id=RID)
    again = await cluster.update(made, request_id=RID)
    assert again == await cluster.get("configmaps", "c")
    assert again.data["k"] == "2"


async def test_a_retried_json_patch_that_adds_to_a_list_adds_once(cluster: Cluster) -> None:
    asked = config_map("c")
    asked.metadata.finalizers.append("example.com/a")
    await cluster.create(asked)
    patch = [{"op": "add", "path": "/metadata/finalizers/-", "value": "example.com/b"}]
    options = api_pb2.WriteOptions(request_id=RID)
    cluster.raft.lose_next(applied=True)
    with pytest.raises(UnavailableError):
        await cluster.patch("configmaps", "c", patch, json_patch=True, options=options)
    again = await cluster.patch("configmaps", "c", patch, json_patch=True, options=options)
    assert list(again.metadata.finalizers) == ["example.com/a", "example.com/b"]
    assert again == await cluster.get("configmaps", "c")


async def test_a_write_that_never_left_says_so(cluster: Cluster) -> None:
    cluster.raft.fail_next()
    with pytest.raises(UnavailableError) as caught:
        await cluster.create(config_map("c"))
    assert not caught.value.unknown_outcome


async def test_without_a_quorum_reads_fail_unless_serializable(cluster: Cluster) -> None:
    await cluster.create(config_map("c"))
    cluster.raft.set_leader(None)
    with pytest.raises(UnavailableError):
        await cluster.get("configmaps", "c")
    request = api_pb2.GetRequest(resource="configmaps", namespace="default", name="c", serializable=True)
    assert (await cluster.api.get(request)).config_map.metadata.name == "c"


FENCE_KEY = b"/quarterdeck/leader"


async def _fenced_writes(cluster: Cluster, fence: api_pb2.Fence) -> list[Any]:
    made = await cluster.get("configmaps", "c")
    made.data["k"] = made.data.get("k", "") + "x"
    asked = pod("")
    asked.metadata.generateName = "p-"
    bind = api_pb2.BindRequest(
        bindings=[api_pb2.Binding(namespace="default", name="free", node_name="n1")],
        options=api_pb2.WriteOptions(fence=fence),
    )
    return [
        cluster.create(asked, fence=fence),
        cluster.update(made, fence=fence),
        cluster.patch("configmaps", "c", {"data": {"p": "1"}}, options=api_pb2.WriteOptions(fence=fence)),
        cluster.api.bind(bind),
        cluster.delete("configmaps", "d", options=api_pb2.WriteOptions(fence=fence)),
    ]


async def test_a_deposed_leaders_writes_have_no_effect(cluster: Cluster) -> None:
    for obj in (config_map("c"), config_map("d"), pod("free")):
        await cluster.create(obj)
    term_1 = await cluster.put_raw(FENCE_KEY, b"r1")
    old = api_pb2.Fence(key=FENCE_KEY, mod_revision=term_1)
    term_2 = await cluster.put_raw(FENCE_KEY, b"r2")
    revision = cluster.kv.revision
    for write in await _fenced_writes(cluster, old):
        with pytest.raises(FencedError, match="no longer at revision") as caught:
            await write
        assert caught.value.reason == "Fenced"
    assert cluster.kv.revision == revision
    for write in await _fenced_writes(cluster, api_pb2.Fence(key=FENCE_KEY, mod_revision=term_2)):
        await write
    assert not await cluster.exists("configmaps", "d")
    assert (await cluster.get("pods", "free")).spec.nodeName == "n1"


async def test_any_replica_takes_any_request(cluster: Cluster) -> None:
    other = Cluster(join=cluster, name="r2", seed=2)
    other.store.restore(cluster.store.snapshot())
    await cluster.create(config_map("c", k="1"))
    await other.patch("configmaps", "c", {"data": {"k": "2"}})
    assert (await cluster.get("configmaps", "c")).data["k"] == "2"
    await other.delete("configmaps", "c")
    assert not await cluster.exists("configmaps", "c")


async def test_a_namespace_that_changes_while_an_object_is_created_is_read_again(cluster: Cluster) -> None:
    creations = [cluster.create(config_map(f"c{i}")) for i in range(5)]
    await asyncio.gather(*creations, cluster.patch("namespaces", "default", {"metadata": {"labels": {"a": "b"}}}))
    assert len(await cluster.names("configmaps")) == 5


async def test_the_generation_is_not_lost_in_a_retried_update(cluster: Cluster) -> None:
    asked = Deployment()
    asked.metadata.name, asked.metadata.namespace = "web", "default"
    asked.spec.selector.matchLabels["app"] = asked.spec.template.metadata.labels["app"] = "web"
    asked.spec.template.spec.containers.add(name="web", image="host")
    made = await cluster.create(asked)
    made.spec.replicas = 3
    cluster.raft.lose_next(applied=True)
    with pytest.raises(UnavailableError):
        await cluster.update(made, request_id=RID)
    assert (await cluster.update(made, request_id=RID)).metadata.generation == 2


async def test_a_request_id_used_again_for_another_object_writes_that_one_too(cluster: Cluster) -> None:
    await cluster.create(config_map("one"), request_id=RID)
    await cluster.create(config_map("two"), request_id=RID)
    assert (await cluster.get("configmaps", "two")).metadata.name == "two"
