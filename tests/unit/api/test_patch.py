"""Patches and apply: pure merges, and what they do to stored objects."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from controlplane.api.codec import load_manifests, to_dict
from controlplane.api.errors import ApiError, ConflictError, InvalidError
from controlplane.api.manifests import LAST_APPLIED
from controlplane.api.patch import OPERATIONS_MAX, json_patch, merge_patch, three_way_merge
from controlplane.base.limits import OBJECT_BYTES_MAX
from controlplane.pb.quarterdeck.v1 import api_pb2
from tests.unit.api.support import Cluster, config_map, pod

CREATED, CONFIGURED, UNCHANGED = (
    api_pb2.ApplyResponse.CREATED,
    api_pb2.ApplyResponse.CONFIGURED,
    api_pb2.ApplyResponse.UNCHANGED,
)
DATA = Path(__file__).parent / "data"
FILES = {path.stem: path.read_text() for path in DATA.glob("*.yaml")}


def manifests_of(name: str) -> list[dict[str, Any]]:
    return load_manifests(FILES[name])


@pytest.fixture
async def cluster() -> Cluster:
    return await Cluster().start()


@pytest.mark.parametrize(
    ("target", "patch", "result"),  # the examples of RFC 7386, appendix A
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_is_rfc_7386s(target: Any, patch: Any, result: Any) -> None:
    before = copy.deepcopy(target)
    assert merge_patch(target, patch) == result
    assert target == before


@pytest.mark.parametrize(
    ("operations", "said"),
    [
        ({}, "must be a list of operations"),
        ([{"op": "add"}], "cannot be applied"),
        ([{"op": "fly", "path": "/a"}], "cannot be applied"),
        ([{"op": "remove", "path": "/x"}], "cannot be applied"),
        ([{"op": "test", "path": "/a", "value": 2}], "cannot be applied"),
        ([{"op": "add", "path": "a", "value": 2}], "cannot be applied"),
        ([{"op": "test", "path": "/a", "value": 1}] * (OPERATIONS_MAX + 1), f"at most {OPERATIONS_MAX} operations"),
    ],
)
def test_a_json_patch_that_does_not_fit_is_refused(operations: Any, said: str) -> None:
    with pytest.raises(ApiError, match=said):
        json_patch({"a": 1}, operations)


def test_apply_removes_what_the_manifest_says_no_more_and_leaves_the_rest() -> None:
    original = {"data": {"mine": "1", "gone": "1"}, "old": {"a": 1}}
    modified = {"data": {"mine": "2"}}
    live = {"data": {"mine": "1", "gone": "1", "others": "1"}, "old": {"a": 1}, "status": {"x": 1}}
    assert three_way_merge(original, modified, live) == {"data": {"mine": "2", "others": "1"}, "status": {"x": 1}}


def test_apply_merges_named_lists_by_name_in_the_manifests_order() -> None:
    original = {"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "1"}]}]}
    modified = {
        "containers": [{"name": "b", "image": "i"}, {"name": "a", "env": [{"name": "X", "value": "2"}]}],
        "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "name": "tcp"}],
    }
    live = {
        "containers": [
            {"name": "sidecar", "image": "s"},
            {
                "name": "a",
                "imagePullPolicy": "Always",
                "env": [
                    {"name": "X", "value": "1"},
                    {"name": "Y", "value": "1"},
                    {"name": "INJECTED", "value": "z"},
                ],
            },
        ],
        "ports": [{"port": 53, "protocol": "TCP", "name": "old", "nodePort": 30053}],
    }
    assert three_way_merge(original, modified, live) == {
        "containers": [
            {"name": "b", "image": "i"},
            {
                "name": "a",
                "imagePullPolicy": "Always",
                "env": [{"name": "X", "value": "2"}, {"name": "INJECTED", "value": "z"}],
            },
            {"name": "sidecar", "image": "s"},
        ],
        "ports": [
            {"port": 53, "protocol": "UDP"},
            {"port": 53, "protocol": "TCP", "name": "tcp", "nodePort": 30053},
        ],
    }


def test_apply_replaces_unnamed_lists_and_joins_sets() -> None:
    assert three_way_merge({}, {"args": ["b"]}, {"args": ["a"]}) == {"args": ["b"]}
    merged = three_way_merge(
        {"finalizers": ["mine", "gone"]}, {"finalizers": ["mine"]}, {"finalizers": ["mine", "gone", "theirs"]}
    )
    assert merged == {"finalizers": ["mine", "theirs"]}


def test_one_volume_source_or_strategy_replaces_another() -> None:
    live = {
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
        "volumes": [{"name": "v", "emptyDir": {}}],
    }
    modified = {"strategy": {"type": "Recreate"}, "volumes": [{"name": "v", "configMap": {"name": "c"}}]}
    assert three_way_merge({}, modified, live) == modified


@pytest.mark.parametrize("name", sorted(FILES))
async def test_ordinary_manifests_apply_unchanged_and_twice(cluster: Cluster, name: str) -> None:
    manifests = manifests_of(name)
    for expected in (CREATED, UNCHANGED):
        for manifest in manifests:
            response = await cluster.apply(manifest)
            assert response.outcome == expected, manifest["metadata"]["name"]


async def test_apply_creates_then_changes_what_the_manifest_says(cluster: Cluster) -> None:
    manifest = manifests_of("nginx-deployment")[0]
    made = await cluster.apply(manifest)
    assert made.outcome == CREATED
    assert json.loads(made.object.deployment.metadata.annotations[LAST_APPLIED])["spec"]["replicas"] == 3
    # somebody else scales it, and a controller writes its status
    await cluster.patch("deployments", "nginx-deployment", {"spec": {"minReadySeconds": 7}})
    await cluster.patch("deployments", "nginx-deployment", {"status": {"replicas": 3}}, subresource="status")
    manifest["spec"]["template"]["spec"]["containers"][0]["image"] = "nginx:1.16"
    del manifest["spec"]["template"]["spec"]["containers"][0]["resources"]
    changed = await cluster.apply(manifest)
    assert changed.outcome == CONFIGURED
    spec = changed.object.deployment.spec
    assert spec.template.spec.containers[0].image == "nginx:1.16"
    assert not spec.template.spec.containers[0].resources.limits
    assert spec.minReadySeconds == 7
    assert changed.object.deployment.status.replicas == 3
    assert changed.object.deployment.metadata.generation == 3
    assert (await cluster.apply(manifest)).outcome == UNCHANGED


def config_map_manifest(bytes_count: int, **more: str) -> dict[str, Any]:
    data = {"blob": "x" * bytes_count, **more}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "big"}, "data": data}


async def test_a_manifest_too_long_to_be_remembered_applies_and_says_what_that_means(cluster: Cluster) -> None:
    made = await cluster.apply(config_map_manifest(300_000, other="1"))
    assert made.outcome == CREATED
    assert LAST_APPLIED not in made.object.config_map.metadata.annotations
    assert any("131072" in warning and "not be removed" in warning for warning in made.warnings)
    again = await cluster.apply(config_map_manifest(300_000))
    assert again.object.config_map.data["other"] == "1"
    # Short again, it is remembered from then on.
    short = await cluster.apply(config_map_manifest(10))
    assert LAST_APPLIED in short.object.config_map.metadata.annotations
    assert not short.warnings


async def test_an_object_over_the_size_limit_is_refused_with_its_size_and_the_limit(cluster: Cluster) -> None:
    with pytest.raises(ApiError, match=rf'configmaps "big" is too large: 12\d+ bytes, at most {OBJECT_BYTES_MAX}'):
        await cluster.apply(config_map_manifest(1_200_000))


async def test_what_was_read_can_be_applied_again(cluster: Cluster) -> None:
    manifest = manifests_of("nginx-deployment")[0]
    made = await cluster.apply(manifest)
    read = to_dict(made.object.deployment)
    again = await cluster.apply(read)
    assert again.object.deployment.spec == made.object.deployment.spec
    await cluster.patch("deployments", "nginx-deployment", {"spec": {"replicas": 9}})
    with pytest.raises(ConflictError):  # it says which version it was read from
        await cluster.apply(read)


async def test_a_dry_run_of_apply_stores_nothing(cluster: Cluster) -> None:
    manifest = manifests_of("nginx-deployment")[0]
    assert (await cluster.apply(manifest, dry_run=True)).outcome == CREATED
    assert await cluster.names("deployments") == []
    await cluster.apply(manifest)
    manifest["spec"]["replicas"] = 8
    dry = await cluster.apply(manifest, dry_run=True)
    assert (dry.outcome, dry.object.deployment.spec.replicas) == (CONFIGURED, 8)
    assert (await cluster.get("deployments", "nginx-deployment")).spec.replicas == 3


async def test_a_retried_apply_happens_once(cluster: Cluster) -> None:
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": "v"}}
    rid = b"r" * 16
    cluster.raft.lose_next(applied=True)
    with pytest.raises(ApiError):
        await cluster.apply(manifest, request_id=rid)
    await cluster.apply(manifest, request_id=rid)
    assert await cluster.names("configmaps") == ["c"]


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("[]", "a manifest must be a mapping"),
        ("{apiVersion: v1, kind: Pod, metadata: {generateName: x-}}", "apply cannot generate one"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: x}}", "spec.containers: Required value"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: x}, specs: {}}", 'did you mean "spec"?'),
        ("{apiVersion: v1, kind: Node, metadata: {name: x, namespace: y}}", "a Node lives in no namespace"),
    ],
)
async def test_a_bad_manifest_is_refused_with_the_reason(cluster: Cluster, manifest: str, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        await cluster.apply(manifest)
    assert said in caught.value.message


async def test_apply_warns_of_fields_that_do_nothing_here(cluster: Cluster) -> None:
    manifest = manifests_of("full-pod")[0]
    manifest["spec"]["hostNetwork"] = True
    assert list((await cluster.apply(manifest)).warnings) == [
        "spec.hostNetwork: kept, but not acted on by this control plane"
    ]


async def test_patches_change_objects(cluster: Cluster) -> None:
    await cluster.create(config_map("c", a="1", b="2"))
    merged = await cluster.patch("configmaps", "c", {"data": {"a": None, "c": "3"}})
    assert dict(merged.data) == {"b": "2", "c": "3"}
    operations = [{"op": "replace", "path": "/data/b", "value": "9"}, {"op": "test", "path": "/data/c", "value": "3"}]
    assert dict((await cluster.patch("configmaps", "c", operations, json_patch=True)).data) == {"b": "9", "c": "3"}


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ([], "a merge patch must be a JSON object"),
        ({"metadata": None}, "may not remove the object or its metadata"),
        ({"metadata": {"name": "d"}}, "may not change metadata.name from 'c' to 'd'"),
        ({"kind": "Pod"}, "may not change kind from 'ConfigMap' to 'Pod'"),
        ({"dta": {}}, 'dta: unknown field; did you mean "data"?'),
        ({"data": {"a": 1}}, "data.a: must be a string (quote it), not the number 1"),
    ],
)
async def test_a_bad_patch_is_refused_with_the_reason(cluster: Cluster, patch: Any, said: str) -> None:
    await cluster.create(config_map("c"))
    with pytest.raises(ApiError) as caught:
        await cluster.patch("configmaps", "c", patch)
    assert said in caught.value.message


async def test_a_patch_that_names_a_version_is_guarded_by_it(cluster: Cluster) -> None:
    made = await cluster.create(config_map("c"))
    version = made.metadata.resourceVersion
    await cluster.patch("configmaps", "c", {"metadata": {"resourceVersion": version}, "data": {"k": "1"}})
    with pytest.raises(ConflictError):
        await cluster.patch("configmaps", "c", {"metadata": {"resourceVersion": version}, "data": {"k": "2"}})


async def test_a_patch_needs_a_known_type_and_subresource(cluster: Cluster) -> None:
    await cluster.create(pod("p"))
    with pytest.raises(ApiError, match=r'subresource: Unsupported value: "scale"'):
        await cluster.patch("pods", "p", {}, subresource="scale")
    request = api_pb2.PatchRequest(resource="pods", namespace="default", name="p", patch=b"{}")
    with pytest.raises(ApiError, match="type: Required value: MERGE"):
        await cluster.api.patch(request)


async def test_a_patch_is_validated_like_an_update(cluster: Cluster) -> None:
    await cluster.create(pod("p"))
    with pytest.raises(InvalidError, match=r"changed: spec\.hostname"):
        await cluster.patch("pods", "p", {"spec": {"hostname": "x"}})
