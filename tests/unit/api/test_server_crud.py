"""Create, read, update, status, delete: Kubernetes' object semantics on the real store."""

from __future__ import annotations

import pytest

from controlplane.api.errors import AlreadyExistsError, ApiError, ConflictError, InvalidError, NotFoundError
from controlplane.base.errors import Code
from controlplane.base.limits import OBJECT_BYTES_MAX
from controlplane.pb.k8s.apps_v1_pb2 import Deployment
from controlplane.pb.k8s.core_v1_pb2 import Namespace
from controlplane.pb.quarterdeck.v1 import api_pb2
from tests.unit.api.support import Cluster, config_map, node, pod


@pytest.fixture
async def cluster() -> Cluster:
    return await Cluster().start()


def deployment(name: str = "web") -> Deployment:
    made = Deployment()
    made.metadata.name, made.metadata.namespace = name, "default"
    made.spec.selector.matchLabels["app"] = name
    made.spec.template.metadata.labels["app"] = name
    made.spec.template.spec.containers.add(name="web", image="host")
    return made


async def test_a_new_object_gets_identity_defaults_and_its_first_status(cluster: Cluster) -> None:
    asked = pod("a")
    asked.status.phase = "Running"
    asked.metadata.generation = 7
    made = await cluster.create(asked)
    assert made.metadata.uid
    assert made.metadata.creationTimestamp.seconds == cluster.clock.wall_ms() // 1000
    assert made.metadata.generation == 1
    assert made.metadata.resourceVersion == str(cluster.kv.revision)
    assert (made.status.phase, made.status.qosClass) == ("Pending", "BestEffort")
    assert made.spec.restartPolicy == "Always"
    assert await cluster.get("pods", "a") == made


async def test_a_node_keeps_the_status_it_registers_with(cluster: Cluster) -> None:
    asked = node("n1")
    asked.status.conditions.add(type="Ready", status="True")
    assert (await cluster.create(asked)).status.conditions[0].status == "True"


async def test_a_name_is_unique(cluster: Cluster) -> None:
    await cluster.create(config_map("a"))
    with pytest.raises(AlreadyExistsError, match='configmaps "a" already exists'):
        await cluster.create(config_map("a"))
    with pytest.raises(AlreadyExistsError):
        await cluster.create(config_map("a"), dry_run=True)


async def test_a_generated_name_is_new_each_time(cluster: Cluster) -> None:
    asked = pod("")
    asked.metadata.generateName = "web-"
    names = {(await cluster.create(asked)).metadata.name for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith("web-") and len(name) == 9 for name in names)


@pytest.mark.parametrize(
    ("name", "namespace", "said"),
    [
        ("", "default", "metadata.name: Required value: name or generateName is required"),
        ("a/b", "default", 'metadata.name: Invalid value: "a/b": may not be empty'),
        ("UP", "default", 'metadata.name: Invalid value: "UP": a lowercase RFC 1123 subdomain must'),
        ("a", "", "metadata.namespace: Required value: a ConfigMap lives in a namespace"),
        ("a" * 254, "default", "must be no more than 253 characters"),
    ],
)
async def test_a_bad_name_says_what_a_good_one_is(cluster: Cluster, name: str, namespace: str, said: str) -> None:
    with pytest.raises(InvalidError) as caught:
        await cluster.create(config_map(name, namespace=namespace))
    assert said in caught.value.message
    assert caught.value.causes[0].field.startswith("metadata.")


async def test_cluster_scoped_objects_have_no_namespace(cluster: Cluster) -> None:
    asked = node("n1")
    asked.metadata.namespace = "default"
    with pytest.raises(InvalidError, match=r"metadata.namespace: Forbidden: a Node lives in no namespace"):
        await cluster.create(asked)


async def test_an_object_needs_its_namespace(cluster: Cluster) -> None:
    with pytest.raises(NotFoundError, match='namespaces "nowhere" not found'):
        await cluster.create(config_map("a", namespace="nowhere"))


async def test_an_object_too_large_is_refused_by_its_size(cluster: Cluster) -> None:
    with pytest.raises(ApiError, match=f"is too large: .* bytes, at most {OBJECT_BYTES_MAX}") as caught:
        await cluster.create(config_map("big", blob="x" * OBJECT_BYTES_MAX))
    assert caught.value.reason == "RequestEntityTooLarge"
    await cluster.create(config_map("fits", blob="x" * (OBJECT_BYTES_MAX - 1000)))


async def test_an_empty_request_or_unknown_resource_names_what_there_is(cluster: Cluster) -> None:
    with pytest.raises(ApiError, match="the object is empty: set one of namespace, node, pod"):
        await cluster.api.create(api_pb2.CreateRequest())
    with pytest.raises(ApiError, match="doesn't have a resource type 'pod'; it has: namespaces, nodes, pods"):
        await cluster.get("pod", "a")
    with pytest.raises(ApiError, match="namespace: Required value"):
        await cluster.get("pods", "a", namespace="")


async def test_a_missing_object_is_not_found_by_kubernetes_words(cluster: Cluster) -> None:
    with pytest.raises(NotFoundError, match='pods "x" not found') as caught:
        await cluster.get("pods", "x")
    assert caught.value.reason == "NotFound"
    with pytest.raises(NotFoundError, match=r'deployments\.apps "x" not found'):
        await cluster.delete("deployments", "x")


async def test_a_dry_run_validates_and_stores_nothing(cluster: Cluster) -> None:
    revision = cluster.kv.revision
    assert (await cluster.create(pod("a"), dry_run=True)).spec.restartPolicy == "Always"
    assert cluster.kv.revision == revision
    made = await cluster.create(config_map("c", k="1"))
    made.data["k"] = "2"
    assert (await cluster.update(made, dry_run=True)).data["k"] == "2"
    await cluster.delete("configmaps", "c", options=api_pb2.WriteOptions(dry_run=True))
    assert (await cluster.get("configmaps", "c")).data["k"] == "1"


async def test_an_update_on_an_old_version_is_a_conflict(cluster: Cluster) -> None:
    first = await cluster.create(config_map("c", k="1"))
    second = await cluster.get("configmaps", "c")
    second.data["k"] = "2"
    await cluster.update(second)
    first.data["k"] = "3"
    for options in ({}, {"request_id": b"0123456789abcdef"}, {"dry_run": True}):
        with pytest.raises(ConflictError, match='Operation cannot be fulfilled on configmaps "c"') as caught:
            await cluster.update(first, **options)
        assert (caught.value.code, caught.value.reason) == (Code.ABORTED, "Conflict")
    assert (await cluster.get("configmaps", "c")).data["k"] == "2"


async def test_an_update_without_a_version_takes_the_present_one(cluster: Cluster) -> None:
    made = await cluster.create(config_map("c", k="1"))
    asked = config_map("c", k="2")
    updated = await cluster.update(asked)
    assert updated.data["k"] == "2"
    assert updated.metadata.uid == made.metadata.uid
    assert updated.metadata.creationTimestamp == made.metadata.creationTimestamp


async def test_a_replaced_object_is_a_conflict_by_its_uid(cluster: Cluster) -> None:
    made = await cluster.create(config_map("c"))
    await cluster.delete("configmaps", "c")
    await cluster.create(config_map("c"))
    made.metadata.resourceVersion = ""
    with pytest.raises(ConflictError, match="UID in precondition"):
        await cluster.update(made)


async def test_generation_counts_changes_of_the_spec_alone(cluster: Cluster) -> None:
    made = await cluster.create(deployment())
    made.metadata.labels["a"] = "b"
    made = await cluster.update(made)
    assert made.metadata.generation == 1
    made.spec.replicas = 5
    made.metadata.generation = 99
    made = await cluster.update(made)
    assert made.metadata.generation == 2


async def test_an_update_leaves_the_status_and_a_status_update_the_rest(cluster: Cluster) -> None:
    made = await cluster.create(deployment())
    made.status.replicas = 3
    made.spec.replicas = 7
    made.metadata.labels["x"] = "y"
    after_status = await cluster.update_status(made)
    assert (after_status.status.replicas, after_status.spec.replicas) == (3, 1)
    assert after_status.metadata.generation == 1
    assert "x" not in after_status.metadata.labels
    after_status.status.replicas = 9
    after_status.spec.replicas = 2
    after_update = await cluster.update(after_status)
    assert (after_update.status.replicas, after_update.spec.replicas) == (3, 2)


async def test_a_kind_without_status_has_none_to_update(cluster: Cluster) -> None:
    made = await cluster.create(config_map("c"))
    with pytest.raises(ApiError, match="configmaps have no status to update"):
        await cluster.update_status(made)


async def test_a_write_that_changes_nothing_makes_no_revision(cluster: Cluster) -> None:
    made = await cluster.create(deployment())
    revision = cluster.kv.revision
    assert (await cluster.update(made)).metadata.resourceVersion == made.metadata.resourceVersion
    assert (await cluster.update_status(made)).metadata.resourceVersion == made.metadata.resourceVersion
    assert cluster.kv.revision == revision


async def test_a_selector_never_changes(cluster: Cluster) -> None:
    made = await cluster.create(deployment())
    made.spec.selector.matchLabels["more"] = made.spec.template.metadata.labels["more"] = "x"
    with pytest.raises(InvalidError, match=r"spec.selector: Invalid value: .*field is immutable"):
        await cluster.update(made)


async def test_bootstrap_is_idempotent_and_gives_the_standing_namespaces(cluster: Cluster) -> None:
    await cluster.api.bootstrap()
    assert await cluster.names("namespaces") == ["default", "kube-system"]
    made: Namespace = await cluster.get("namespaces", "default", "")
    assert made.status.phase == "Active"
    assert made.metadata.labels["kubernetes.io/metadata.name"] == "default"


async def test_what_lies_under_a_key_but_is_no_object_is_named(cluster: Cluster) -> None:
    await cluster.put_raw(b"/registry/configmaps/default/odd", b"garbage")
    with pytest.raises(ApiError, match="stored at /registry/configmaps/default/odd is no ConfigMap") as caught:
        await cluster.get("configmaps", "odd")
    assert caught.value.code is Code.INTERNAL


async def test_the_kinds_are_listed_with_their_short_names(cluster: Cluster) -> None:
    kinds = (await cluster.api.kinds(api_pb2.KindsRequest())).kinds
    deploy = next(k for k in kinds if k.kind == "Deployment")
    assert (deploy.api_version, deploy.resource, list(deploy.short_names), deploy.namespaced) == (
        "apps/v1", "deployments", ["deploy"], True,
    )  # fmt: skip
    assert len(kinds) == 9
