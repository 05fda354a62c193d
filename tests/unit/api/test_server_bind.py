"""Binding: each pod on its own condition, all in few transactions."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.api.errors import ApiError, InvalidError
from controlplane.base.limits import TXN_OPS_MAX
from controlplane.pb.quarterdeck.v1 import api_pb2
from tests.unit.api.support import Cluster, pod


@pytest.fixture
async def cluster() -> Cluster:
    return await Cluster().start()


def binding(name: str, node: str = "n1", **fields: str) -> api_pb2.Binding:
    return api_pb2.Binding(namespace="default", name=name, node_name=node, **fields)


async def bind(cluster: Cluster, *bindings: api_pb2.Binding) -> list[str]:
    """The result of each: ``bound`` or the reason."""
    response = await cluster.api.bind(api_pb2.BindRequest(bindings=bindings))
    return ["bound" if r.bound else r.reason for r in response.results]


async def test_a_bound_pod_has_its_node_and_the_condition(cluster: Cluster) -> None:
    await cluster.create(pod("a"))
    assert await bind(cluster, binding("a")) == ["bound"]
    bound = await cluster.get("pods", "a")
    assert bound.spec.nodeName == "n1"
    condition = bound.status.conditions[0]
    assert (condition.type, condition.status) == ("PodScheduled", "True")
    assert condition.lastTransitionTime.seconds == cluster.clock.wall_ms() // 1000


async def test_each_pod_fails_for_its_own_reason(cluster: Cluster) -> None:
    made = await cluster.create(pod("ok"))
    await cluster.create(pod("taken", node="n2"))
    leaving = pod("leaving")
    leaving.metadata.finalizers.append("example.com/a")
    await cluster.create(leaving)
    await cluster.delete("pods", "leaving")
    changed = await cluster.create(pod("changed"))
    await cluster.patch("pods", "changed", {"metadata": {"labels": {"a": "b"}}})
    assert await bind(
        cluster,
        binding("ok", uid=made.metadata.uid, resource_version=made.metadata.resourceVersion),
        binding("taken"),
        binding("leaving"),
        binding("changed", resource_version=changed.metadata.resourceVersion),
        binding("missing"),
    ) == ["bound", "AlreadyBound", "Deleted", "Conflict", "NotFound"]
    assert (await cluster.get("pods", "taken")).spec.nodeName == "n2"


async def test_another_pod_of_the_same_name_is_not_bound(cluster: Cluster) -> None:
    old = await cluster.create(pod("a"))
    await cluster.delete("pods", "a")
    await cluster.create(pod("a"))
    assert await bind(cluster, binding("a", uid=old.metadata.uid)) == ["NotFound"]


async def test_a_pod_is_bound_once(cluster: Cluster) -> None:
    await cluster.create(pod("a"))
    results = await asyncio.gather(*(bind(cluster, binding("a", f"n{i}")) for i in range(5)))
    assert sorted(r[0] for r in results) == ["AlreadyBound"] * 4 + ["bound"]
    assert await bind(cluster, binding("a", (await cluster.get("pods", "a")).spec.nodeName)) == ["bound"]


async def test_a_pod_changed_while_it_is_bound_is_bound_on_its_new_state(cluster: Cluster) -> None:
    await cluster.create(pod("a"))
    bound, _ = await asyncio.gather(
        bind(cluster, binding("a")), cluster.patch("pods", "a", {"metadata": {"labels": {"x": "y"}}})
    )
    assert bound == ["bound"]
    after = await cluster.get("pods", "a")
    assert (after.spec.nodeName, dict(after.metadata.labels)) == ("n1", {"x": "y"})


async def test_many_pods_take_few_transactions(cluster: Cluster) -> None:
    count = TXN_OPS_MAX
    for index in range(count):
        await cluster.create(pod(f"p{index}"))
    before = len(cluster.raft.proposals)
    assert set(await bind(cluster, *(binding(f"p{i}") for i in range(count)))) == {"bound"}
    assert len(cluster.raft.proposals) - before == 2


async def test_a_dry_run_binds_nothing(cluster: Cluster) -> None:
    await cluster.create(pod("a"))
    response = await cluster.api.bind(
        api_pb2.BindRequest(bindings=[binding("a"), binding("b")], options=api_pb2.WriteOptions(dry_run=True))
    )
    assert [r.bound for r in response.results] == [True, False]
    assert not (await cluster.get("pods", "a")).spec.nodeName


@pytest.mark.parametrize(
    ("bindings", "said"),
    [
        ([binding("a", "")], r'bindings\[0\].node_name: Invalid value: ""'),
        ([binding("a", "N 1")], r"bindings\[0\].node_name: Invalid value"),
        ([binding("")], r"bindings\[0\].name: Invalid value"),
        ([binding("a"), binding("a", "n2")], r'bindings\[1\]: Duplicate value: "default/a"'),
    ],
)
async def test_a_malformed_binding_is_named(cluster: Cluster, bindings: list[api_pb2.Binding], said: str) -> None:
    with pytest.raises(ApiError, match=said):
        await bind(cluster, *bindings)


async def test_a_bound_pod_stays_on_its_node(cluster: Cluster) -> None:
    made = await cluster.create(pod("a", node="n1"))
    made.spec.nodeName = "n2"
    with pytest.raises(InvalidError, match=r"spec.nodeName: .*field is immutable: the pod is bound to n1"):
        await cluster.update(made)
