"""``qd apply``, ``delete``, ``scale``: what changes, what is said, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.client.interface import NotFoundError
from controlplane.pb.k8s.apps_v1_pb2 import Deployment
from controlplane.pb.k8s.core_v1_pb2 import ConfigMap, Pod
from tests.unit.cli.manifests import CONFIG, DEPLOYMENT, NODE, SERVICE, pod, replica_set
from tests.unit.cli.rig import Rig


def test_apply_says_created_configured_unchanged(rig: Rig, tmp_path: Path) -> None:
    file = tmp_path / "web.yaml"
    file.write_text(DEPLOYMENT)
    assert rig.ok("apply", "-f", str(file)) == "deployment.apps/web created\n"
    assert rig.ok("apply", "-f", str(file)) == "deployment.apps/web unchanged\n"
    file.write_text(DEPLOYMENT.replace("replicas: 2", "replicas: 3"))
    assert rig.ok("apply", "-f", str(file)) == "deployment.apps/web configured\n"
    assert rig.get(Deployment, "web").spec.replicas == 3


def test_apply_takes_many_documents_folders_and_standard_input(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "b.yml").write_text(f"{SERVICE}\n---\n{CONFIG}")
    (tmp_path / "a.json").write_text('{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}')
    (tmp_path / "notes.txt").write_text("not: [a manifest")
    said = rig.ok("apply", "-f", str(tmp_path))
    assert said.splitlines() == ["configmap/a created", "service/web created", "configmap/settings created"]
    assert rig.ok("apply", "-f", "-", stdin=DEPLOYMENT) == "deployment.apps/web created\n"


def test_a_manifest_without_a_namespace_goes_to_the_one_chosen(rig: Rig) -> None:
    rig.put("{apiVersion: v1, kind: Namespace, metadata: {name: blue}}")
    rig.ok("apply", "-n", "blue", "-f", "-", stdin="{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}")
    assert rig.get(ConfigMap, "a", "blue").metadata.namespace == "blue"


def test_warnings_go_to_standard_error(rig: Rig) -> None:
    text = DEPLOYMENT.replace("spec: {containers", "spec: {hostNetwork: true, containers")
    result = rig.run("apply", "-f", "-", stdin=text)
    assert result.stdout == "deployment.apps/web created\n"
    assert result.stderr.startswith("Warning: spec.template.spec.hostNetwork: ")


def test_an_unknown_field_is_refused_by_name_with_the_nearest(rig: Rig) -> None:
    result = rig.run("apply", "-f", "-", stdin=DEPLOYMENT.replace("replicas: 2", "replcas: 2"))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith('Error from server (Invalid): Deployment.apps "web" is invalid: spec.replcas: ')
    assert "replicas" in result.stderr
    assert result.stderr.count("spec.replcas") == 1


def test_one_refusal_does_not_keep_the_others_from_being_applied(rig: Rig) -> None:
    text = f"{DEPLOYMENT.replace('replicas: 2', 'replicas: -2')}\n---\n{CONFIG}\n---\n{NODE.replace('v1', 'v7', 1)}"
    result = rig.run("apply", "-f", "-", stdin=text)
    assert result.exit_code == 1
    assert result.stdout == "configmap/settings created\n"
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [
        "Error from server (Invalid)", "Error from server (BadRequest)"
    ]  # fmt: skip


@pytest.mark.parametrize("words", [("--dry-run",), ("--dry-run=server",)])
def test_a_dry_run_is_checked_and_changes_nothing(rig: Rig, words: tuple[str, ...]) -> None:
    assert rig.ok("apply", *words, "-f", "-", stdin=CONFIG) == "configmap/settings created (server dry run)\n"
    with pytest.raises(NotFoundError):
        rig.get(ConfigMap, "settings")
    assert rig.run("apply", *words, "-f", "-", stdin=CONFIG.replace("data: {c", "dta: {c")).exit_code == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "web.yaml: not valid YAML: line 2, column 1"),
        ("a: 1\na: 2", "duplicate key 'a'"),
        ("- 1", "must be a mapping"),
        ("", "no manifest in"),
    ],
)
def test_what_is_no_manifest_is_wrong_usage_with_its_place(rig: Rig, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "web.yaml").write_text(text)
    result = rig.run("apply", "-f", str(tmp_path / "web.yaml"))
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_file_that_cannot_be_read_is_named(rig: Rig, tmp_path: Path) -> None:
    result = rig.run("apply", "-f", str(tmp_path / "none.yaml"))
    assert result.exit_code == 2
    assert f"cannot read {tmp_path / 'none.yaml'}: No such file" in result.stderr
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    assert "not UTF-8" in rig.run("apply", "-f", str(tmp_path / "binary.yaml")).stderr


def test_a_write_of_unknown_fate_says_so(rig: Rig) -> None:
    for _ in range(50):
        rig.raft.lose_next(applied=False)
    result = rig.run("apply", "-f", "-", stdin=CONFIG)
    assert result.exit_code == 3
    assert "may or may not have happened" in result.stderr


def test_delete_by_name_in_every_form(rig: Rig) -> None:
    rig.put(CONFIG)
    rig.put(DEPLOYMENT)
    rig.put(SERVICE)
    assert rig.ok("delete", "cm", "settings") == 'configmap "settings" deleted\n'
    assert rig.ok("delete", "deploy/web", "svc/web").splitlines() == [
        'deployment.apps "web" deleted', 'service "web" deleted'
    ]  # fmt: skip
    assert (
        rig.ok("get", "all,cm", "-o", "name") == "service/kubernetes\n" or rig.ok("get", "all,cm", "-o", "name") == ""
    )


def test_delete_what_manifests_name_even_with_fields_of_another_version(rig: Rig) -> None:
    rig.put(CONFIG)
    rig.put(SERVICE)
    text = f"{CONFIG.replace('data: {c', 'dataOfTomorrow: {c')}\n---\n{SERVICE}"
    assert rig.ok("delete", "-f", "-", stdin=text) == 'configmap "settings" deleted\nservice "web" deleted\n'


def test_delete_by_selector_and_all(rig: Rig) -> None:
    for name, app in (("a", "web"), ("b", "db"), ("c", "web")):
        rig.put(pod(name, app=app))
    assert rig.ok("delete", "pods", "-l", "app=web") == 'pod "a" deleted\npod "c" deleted\n'
    assert rig.ok("delete", "pods", "--all") == 'pod "b" deleted\n'
    assert rig.run("delete", "pods", "--all").stderr == "No resources found.\n"


def test_delete_across_namespaces(rig: Rig) -> None:
    rig.put("{apiVersion: v1, kind: Namespace, metadata: {name: blue}}")
    rig.put(pod("a", namespace="blue"))
    assert rig.ok("delete", "pods", "-A", "--all") == 'pod "a" deleted\n'


def test_deleting_what_is_not_there_is_refused_unless_that_is_fine(rig: Rig) -> None:
    rig.put(CONFIG)
    result = rig.run("delete", "cm", "nope", "settings")
    assert result.exit_code == 1
    assert result.stdout == 'configmap "settings" deleted\n'
    assert result.stderr == 'Error from server (NotFound): configmaps "nope" not found\n'
    assert rig.ok("delete", "cm", "nope", "--ignore-not-found") == ""


@pytest.mark.parametrize(
    "words",
    [
        (), ("pods",), ("pods", "-f", "x.yaml"), ("pods", "a", "--all"), ("pods", "a", "-l", "x=y"),
        ("pods", "a", "-A"), ("pods", "a", "--grace-period", "-2"),
    ],
)  # fmt: skip
def test_delete_refuses_to_guess(rig: Rig, words: tuple[str, ...]) -> None:
    rig.put(pod("a"))
    assert rig.run("delete", *words).exit_code == 2
    assert rig.get(Pod, "a").metadata.name == "a"


def test_delete_waits_and_says_what_holds_an_object(rig: Rig) -> None:
    rig.put(CONFIG.replace("namespace: default", "namespace: default, finalizers: [example.com/keep]"))
    result = rig.run("delete", "cm", "settings", "--timeout", "0")
    assert result.exit_code == 1
    assert "finalizers hold it: example.com/keep" in result.stderr
    assert rig.run("delete", "cm", "settings", "--no-wait").exit_code == 0


def test_a_bound_pod_is_let_go_at_once_by_force(rig: Rig) -> None:
    rig.put(pod("a", node="node-1"))
    assert rig.run("delete", "pod", "a", "--timeout", "0").exit_code == 1
    assert rig.get(Pod, "a").metadata.HasField("deletionTimestamp")
    assert rig.ok("delete", "pod", "a", "--force") == 'pod "a" deleted\n'
    with pytest.raises(NotFoundError):
        rig.get(Pod, "a")


def test_scale_sets_replicas_and_nothing_else(rig: Rig) -> None:
    rig.put(DEPLOYMENT)
    rig.put(replica_set("web-1", 1, "host", "u"))
    assert rig.ok("scale", "deploy", "web", "--replicas", "7") == "deployment.apps/web scaled\n"
    assert rig.ok("scale", "--replicas=0", "deployment.apps/web", "rs/web-1").splitlines() == [
        "deployment.apps/web scaled", "replicaset.apps/web-1 scaled"
    ]  # fmt: skip
    deployment = rig.get(Deployment, "web")
    assert (deployment.spec.replicas, deployment.spec.template.spec.containers[0].name) == (0, "web")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("svc/web", "--replicas", "2"), 2, "services cannot be scaled"),
        (("deploy", "--replicas", "2"), 2, "name a deployment"),
        (("deploy/web", "--replicas", "-1"), 2, "not in the range"),
        (("deploy/web",), 2, "Missing option '--replicas'"),
        (("deploy/nope", "--replicas", "2"), 1, 'deployments.apps "nope" not found'),
    ],
)
def test_scale_refuses(rig: Rig, words: tuple[str, ...], code: int, said: str) -> None:
    result = rig.run("scale", *words)
    assert result.exit_code == code
    assert said in result.stderr
