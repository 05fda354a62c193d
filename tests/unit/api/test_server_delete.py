"""The end of objects: grace, finalizers, propagation, preconditions, namespaces."""

from __future__ import annotations

import pytest

from controlplane.api.errors import ApiError, ConflictError, InvalidError, NotFoundError
from controlplane.pb.k8s.core_v1_pb2 import Namespace
from controlplane.pb.quarterdeck.v1 import api_pb2
from tests.unit.api.support import Cluster, config_map, pod


@pytest.fixture
async def cluster() -> Cluster:
    return await Cluster().start()


async def test_an_object_nothing_holds_goes_at_once(cluster: Cluster) -> None:
    made = await cluster.create(config_map("c", k="1"))
    last = await cluster.delete("configmaps", "c")
    assert (last.metadata.uid, last.data["k"]) == (made.metadata.uid, "1")
    assert not await cluster.exists("configmaps", "c")


async def test_an_unbound_pod_goes_at_once(cluster: Cluster) -> None:
    await cluster.create(pod("a"))
    await cluster.delete("pods", "a")
    assert not await cluster.exists("pods", "a")


async def test_a_running_pod_waits_for_its_node(cluster: Cluster) -> None:
    await cluster.create(pod("a", node="n1"))
    now_s = cluster.clock.wall_ms() // 1000
    marked = await cluster.delete("pods", "a")
    assert marked.metadata.deletionTimestamp.seconds == now_s + 30
    assert marked.metadata.deletionGracePeriodSeconds == 30
    assert marked.metadata.generation == 2
    stored = await cluster.get("pods", "a")
    assert stored == marked
    # its agent reports: nothing is left of it
    await cluster.delete("pods", "a", grace_period_seconds=0, uid=stored.metadata.uid)
    assert not await cluster.exists("pods", "a")


async def test_a_finished_pod_goes_at_once(cluster: Cluster) -> None:
    made = await cluster.create(pod("a", node="n1"))
    made.status.phase = "Succeeded"
    await cluster.update_status(made)
    await cluster.delete("pods", "a")
    assert not await cluster.exists("pods", "a")


async def test_a_repeated_delete_may_only_shorten_the_grace(cluster: Cluster) -> None:
    await cluster.create(pod("a", node="n1"))
    first = await cluster.delete("pods", "a", grace_period_seconds=20)
    cluster.clock.advance(5)
    longer = await cluster.delete("pods", "a", grace_period_seconds=60)
    assert longer == first
    shorter = await cluster.delete("pods", "a", grace_period_seconds=8)
    assert shorter.metadata.deletionTimestamp.seconds == first.metadata.deletionTimestamp.seconds - 12
    assert shorter.metadata.deletionGracePeriodSeconds == 8


async def test_finalizers_hold_an_object_until_the_last_is_removed(cluster: Cluster) -> None:
    asked = config_map("c")
    asked.metadata.finalizers.extend(["example.com/a", "example.com/b"])
    await cluster.create(asked)
    held = await cluster.delete("configmaps", "c")
    assert held.metadata.HasField("deletionTimestamp")
    held.metadata.finalizers.remove("example.com/a")
    held = await cluster.update(held)
    assert await cluster.exists("configmaps", "c")
    del held.metadata.finalizers[:]
    await cluster.update(held)
    assert not await cluster.exists("configmaps", "c")


async def test_a_patch_that_removes_the_last_finalizer_ends_the_object(cluster: Cluster) -> None:
    asked = config_map("c")
    asked.metadata.finalizers.append("example.com/a")
    await cluster.create(asked)
    await cluster.delete("configmaps", "c")
    await cluster.patch("configmaps", "c", {"metadata": {"finalizers": None}})
    assert not await cluster.exists("configmaps", "c")


async def test_a_running_pod_with_finalizers_waits_for_both(cluster: Cluster) -> None:
    asked = pod("a", node="n1")
    asked.metadata.finalizers.append("example.com/a")
    await cluster.create(asked)
    held = await cluster.delete("pods", "a")
    del held.metadata.finalizers[:]
    await cluster.update(held)
    assert await cluster.exists("pods", "a")
    await cluster.delete("pods", "a", grace_period_seconds=0)
    assert not await cluster.exists("pods", "a")


async def test_no_finalizer_can_be_added_to_what_is_being_deleted(cluster: Cluster) -> None:
    asked = config_map("c")
    asked.metadata.finalizers.append("example.com/a")
    await cluster.create(asked)
    held = await cluster.delete("configmaps", "c")
    held.metadata.finalizers.append("example.com/b")
    with pytest.raises(InvalidError, match="no new finalizers can be added if the object is being deleted"):
        await cluster.update(held)


@pytest.mark.parametrize(
    ("policy", "finalizers"),
    [("Foreground", ["foregroundDeletion"]), ("Orphan", ["orphan"])],
)
async def test_propagation_is_a_finalizer_for_the_garbage_collector(
    cluster: Cluster, policy: str, finalizers: list[str]
) -> None:
    await cluster.create(config_map("c"))
    held = await cluster.delete("configmaps", "c", propagation_policy=policy)
    assert list(held.metadata.finalizers) == finalizers
    assert await cluster.exists("configmaps", "c")
    await cluster.delete("configmaps", "c", propagation_policy="Background")
    assert not await cluster.exists("configmaps", "c")


async def test_wrong_options_say_what_is_allowed(cluster: Cluster) -> None:
    await cluster.create(config_map("c"))
    with pytest.raises(ApiError, match=r'"Sideways": supported values: Background, Foreground, Orphan'):
        await cluster.delete("configmaps", "c", propagation_policy="Sideways")
    with pytest.raises(ApiError, match="grace_period_seconds: Invalid value: -1"):
        await cluster.delete("configmaps", "c", grace_period_seconds=-1)
    with pytest.raises(ApiError, match="resource_version: Invalid value: 'new'"):
        await cluster.delete("configmaps", "c", resource_version="new")


async def test_preconditions_guard_the_delete(cluster: Cluster) -> None:
    made = await cluster.create(config_map("c"))
    version = made.metadata.resourceVersion
    made.data["k"] = "v"
    await cluster.update(made)
    with pytest.raises(ConflictError):
        await cluster.delete("configmaps", "c", resource_version=version)
    with pytest.raises(ConflictError, match="UID in precondition: other"):
        await cluster.delete("configmaps", "c", uid="other")
    await cluster.delete("configmaps", "c", uid=made.metadata.uid)
    with pytest.raises(NotFoundError):
        await cluster.delete("configmaps", "c")


async def namespace(cluster: Cluster, name: str) -> Namespace:
    asked = Namespace()
    asked.metadata.name = name
    made: Namespace = await cluster.create(asked)
    return made


async def test_a_namespace_terminates_until_its_controller_has_emptied_it(cluster: Cluster) -> None:
    await namespace(cluster, "team")
    await cluster.create(config_map("c", namespace="team"))
    held = await cluster.delete("namespaces", "team", "")
    assert held.status.phase == "Terminating"
    with pytest.raises(ApiError, match="because it is being terminated") as caught:
        await cluster.create(config_map("d", namespace="team"))
    assert caught.value.reason == "Forbidden"
    await cluster.delete("configmaps", "c", namespace="team")
    del held.spec.finalizers[:]
    await cluster.update(held)
    assert await cluster.names("namespaces") == ["default", "kube-system"]


async def test_the_standing_namespaces_stay(cluster: Cluster) -> None:
    with pytest.raises(ApiError, match="this namespace may not be deleted") as caught:
        await cluster.delete("namespaces", "default", "")
    assert caught.value.reason == "Forbidden"


async def test_an_eviction_is_a_graceful_delete(cluster: Cluster) -> None:
    await cluster.create(pod("a", node="n1"))
    evicted = await cluster.api.evict(api_pb2.EvictRequest(namespace="default", name="a", grace_period_seconds=3))
    assert evicted.pod.metadata.deletionGracePeriodSeconds == 3
