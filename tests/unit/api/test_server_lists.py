"""Lists: selectors, pages at one revision, tokens."""

from __future__ import annotations

import base64

import pytest

from controlplane.api.errors import ApiError, ExpiredError
from controlplane.base.limits import LIST_PAGE_MAX
from controlplane.pb.etcd import rpc_pb2 as etcd
from controlplane.pb.k8s.core_v1_pb2 import Event
from controlplane.pb.quarterdeck.v1 import api_pb2
from tests.unit.api.support import Cluster, config_map, pod, service


@pytest.fixture
async def cluster() -> Cluster:
    return await Cluster().start()


async def page(cluster: Cluster, **request: object) -> api_pb2.ListResponse:
    return await cluster.api.list(api_pb2.ListRequest(resource="configmaps", **request))  # type: ignore[arg-type]


def names(response: api_pb2.ListResponse) -> list[str]:
    return [item.config_map.metadata.name for item in response.items]


async def test_a_list_has_every_object_with_its_own_version(cluster: Cluster) -> None:
    a = await cluster.create(config_map("a"))
    b = await cluster.create(config_map("b", namespace="kube-system"))
    listed = await page(cluster)
    assert [item.config_map for item in listed.items] == [a, b]
    assert listed.resource_version == str(cluster.kv.revision)
    assert names(await page(cluster, namespace="kube-system")) == ["b"]
    assert names(await page(cluster, namespace="kube")) == []


async def test_pages_are_of_one_moment_whatever_is_written_between(cluster: Cluster) -> None:
    for name in "abcde":
        await cluster.create(config_map(name))
    first = await page(cluster, limit=2)
    assert (names(first), first.remaining_item_count) == (["a", "b"], 3)
    await cluster.delete("configmaps", "d")
    await cluster.create(config_map("bb"))
    second = await page(cluster, limit=2, continue_token=first.continue_token)
    third = await page(cluster, limit=2, continue_token=second.continue_token)
    assert names(second) + names(third) == ["c", "d", "e"]
    assert {first.resource_version, second.resource_version, third.resource_version} == {first.resource_version}
    assert not third.continue_token


async def test_pages_with_a_selector_are_full(cluster: Cluster) -> None:
    for index in range(12):
        made = config_map(f"c{index:02}")
        made.metadata.labels["even"] = str(index % 2 == 0).lower()
        await cluster.create(made)
    found: list[str] = []
    token = ""
    while True:
        listed = await page(cluster, limit=4, continue_token=token, label_selector="even=true")
        found += names(listed)
        token = listed.continue_token
        if not token:
            break
        assert len(listed.items) == 4
    assert found == ["c00", "c02", "c04", "c06", "c08", "c10"]


async def test_a_list_longer_than_a_chunk_is_whole(cluster: Cluster) -> None:
    for index in range(LIST_PAGE_MAX + 3):
        await cluster.create(config_map(f"c{index:04}"))
    assert len((await page(cluster)).items) == LIST_PAGE_MAX + 3


async def test_a_token_of_compacted_history_is_expired(cluster: Cluster) -> None:
    for name in "abc":
        await cluster.create(config_map(name))
    first = await page(cluster, limit=1)
    await cluster.create(config_map("d"))
    await cluster.kv.compact(etcd.CompactionRequest(revision=cluster.kv.revision))
    with pytest.raises(ExpiredError, match="continue parameter is too old") as caught:
        await page(cluster, limit=1, continue_token=first.continue_token)
    assert caught.value.reason == "Expired"


@pytest.mark.parametrize("token", ["x", "é", base64.urlsafe_b64encode(b'{"rv":1,"start":"/registry/pods/a"}').decode()])
async def test_a_token_of_another_list_is_refused(cluster: Cluster, token: str) -> None:
    with pytest.raises(ApiError, match="continue_token: not a token of this list"):
        await page(cluster, continue_token=token)


async def test_a_negative_limit_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ApiError, match="limit: Invalid value: -1"):
        await page(cluster, limit=-1)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("app=web", ["a", "b"]),
        ("app==web,env!=prod", ["b"]),
        ("env!=prod", ["b", "c"]),
        ("env", ["a", "b"]),
        ("!env", ["c"]),
        ("app in (web, db)", ["a", "b", "c"]),
        ("app notin (web)", ["c"]),
        ("env notin (prod)", ["b", "c"]),
        ("app in (web,db),!env", ["c"]),
        ("env=", []),
    ],
)
async def test_label_selectors_select_as_kubernetes_do(cluster: Cluster, selector: str, expected: list[str]) -> None:
    for name, labels in (
        ("a", {"app": "web", "env": "prod"}),
        ("b", {"app": "web", "env": "dev"}),
        ("c", {"app": "db"}),
    ):
        await cluster.create(pod(name, labels=labels))
    assert await cluster.names("pods", label_selector=selector) == expected


@pytest.mark.parametrize("selector", ["a=b=c", "a in b", "a in (b", "=x", "a b", "-a=b", "a=b!"])
async def test_a_bad_label_selector_is_refused(cluster: Cluster, selector: str) -> None:
    with pytest.raises(ApiError, match="unable to parse label selector") as caught:
        await cluster.names("pods", label_selector=selector)
    assert caught.value.reason == "BadRequest"


async def test_field_selectors_select_by_the_kinds_fields(cluster: Cluster) -> None:
    await cluster.create(pod("a", node="n1"))
    await cluster.create(pod("b", node="n2"))
    await cluster.create(pod("c"))
    assert await cluster.names("pods", field_selector="spec.nodeName=n1") == ["a"]
    assert await cluster.names("pods", field_selector="spec.nodeName=") == ["c"]
    assert await cluster.names("pods", field_selector="spec.nodeName!=n1,status.phase=Pending") == ["b", "c"]
    assert await cluster.names("pods", field_selector="metadata.name==b", label_selector="!x") == ["b"]
    await cluster.create(service("s"))
    assert await cluster.names("services", field_selector="spec.type=ClusterIP") == ["s"]
    event = Event(reason="Killing")
    event.metadata.name, event.metadata.namespace = "e", "default"
    event.involvedObject.kind, event.involvedObject.name = "Pod", "a"
    await cluster.create(event)
    assert await cluster.names("events", field_selector="involvedObject.name=a,involvedObject.kind=Pod") == ["e"]
    assert await cluster.names("events", field_selector="involvedObject.name=b") == []


async def test_a_field_that_cannot_be_selected_names_those_that_can(cluster: Cluster) -> None:
    with pytest.raises(ApiError, match=r'not supported for pods: "spec.image"; supported: .*spec.nodeName'):
        await cluster.names("pods", field_selector="spec.image=x")
    with pytest.raises(ApiError, match="is not of the form path=value"):
        await cluster.names("pods", field_selector="spec.nodeName")
