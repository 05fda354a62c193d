"""What is in a snapshot: objects and keys, what differs, and what a manifest of it may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from controlplane.api.registry import KINDS
from controlplane.api.storage import encode, key_of
from controlplane.cli.diff import diff
from controlplane.cli.snapshot.export import export
from controlplane.cli.snapshot.import_ import _read
from controlplane.contents import (
    LAST_APPLIED,
    Contents,
    ObjectId,
    contents_of,
    differences,
    is_derived,
    without_server_fields,
)
from controlplane.pb.etcd.kv_pb2 import KeyValue
from controlplane.pb.etcd.rpc_pb2 import PutRequest
from controlplane.pb.k8s.apps_v1_pb2 import Deployment
from controlplane.pb.k8s.core_v1_pb2 import ConfigMap, Event, Namespace, Node, Pod
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, Proposal
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader
from controlplane.raft.snapshot_format import encode_snapshot_file
from controlplane.store.store import Store

_BY_MESSAGE = {kind.message: kind for kind in KINDS}


def stored(obj: Any, revision: int = 7) -> KeyValue:
    kind = _BY_MESSAGE[type(obj)]
    value, _ = encode(kind, obj)
    return KeyValue(key=key_of(kind, obj.metadata.namespace, obj.metadata.name), value=value, mod_revision=revision)


def config(name: str, uid: str = "u1", **data: str) -> ConfigMap:
    obj = ConfigMap()
    obj.metadata.name, obj.metadata.namespace, obj.metadata.uid = name, "team", uid
    obj.data.update(data)
    return obj


def deployment(replicas: int, ready: int = 0) -> Deployment:
    obj = Deployment()
    obj.metadata.name, obj.metadata.namespace = "web", "team"
    obj.spec.replicas = replicas
    if ready:
        obj.status.readyReplicas = ready
    return obj


def pod(name: str, *, owned: bool) -> Pod:
    obj = Pod()
    obj.metadata.name, obj.metadata.namespace = name, "team"
    obj.spec.nodeName = "node-1"
    if owned:
        reference = obj.metadata.ownerReferences.add()
        reference.kind, reference.controller = "ReplicaSet", True
    return obj


def team() -> Namespace:
    obj = Namespace()
    obj.metadata.name = "team"
    return obj


def file_of(path: Path, *kvs: KeyValue) -> Path:
    store = Store(cluster_id=1)
    for index, kv in enumerate(kvs, start=1):
        command = Command(put=PutRequest(key=kv.key, value=kv.value))
        store.apply(index, 1, [Proposal(payload=command.SerializeToString())])
    header = SnapshotHeader(cluster_id=1, index=len(kvs), term=1, revision=store.revision)
    path.write_bytes(b"".join(encode_snapshot_file(header, store.snapshot())))
    return path


def test_objects_are_read_back_and_the_control_planes_own_keys_are_left_out() -> None:
    found = contents_of(
        [
            stored(config("a", x="1")),
            KeyValue(key=b"plain", value=b"v"),
            KeyValue(key=b"/quarterdeck/leader", value=b"r1"),
        ]
    )
    assert list(found.objects) == [ObjectId("ConfigMap", "team", "a")]
    assert list(found.keys) == ["plain"]


def test_namespaces_come_first() -> None:
    found = contents_of([stored(pod("p", owned=False)), stored(config("a")), stored(team())])
    assert [which.kind for which in found.ordered()] == ["Namespace", "ConfigMap", "Pod"]


def test_differences_name_the_fields() -> None:
    first = contents_of([stored(config("a", x="1", gone="2")), stored(deployment(3, ready=3)), stored(team())])
    second = contents_of(
        [stored(config("a", uid="u2", x="9", new="3"), 8), stored(deployment(5, ready=1)), stored(config("b"))]
    )
    found = {str(difference.id): difference for difference in differences(first, second)}
    assert {name: difference.change for name, difference in found.items()} == {
        "configmap/a in namespace team": "changed",
        "configmap/b in namespace team": "added",
        "deployment/web in namespace team": "changed",
        "namespace/team": "removed",
    }
    assert found["configmap/a in namespace team"].fields == (
        ("data.gone", "2", None),
        ("data.new", None, "3"),
        ("data.x", "1", "9"),
    )
    assert found["deployment/web in namespace team"].fields == (("spec.replicas", 3, 5),)
    whole = {str(difference.id): difference for difference in differences(first, second, status=True)}
    assert ("status.readyReplicas", 3, 1) in whole["deployment/web in namespace team"].fields
    assert ("metadata.uid", "u1", "u2") in whole["configmap/a in namespace team"].fields


def test_events_and_what_apply_remembers_are_no_difference() -> None:
    event = Event()
    event.metadata.name, event.metadata.namespace = "e", "team"
    applied = config("a", x="1")
    applied.metadata.annotations[LAST_APPLIED] = "{}"
    first, second = contents_of([stored(config("a", x="1"))]), contents_of([stored(applied), stored(event)])
    assert list(differences(first, second)) == []
    assert [difference.change for difference in differences(first, second, events=True)] == ["added"]


def test_keys_that_are_no_objects_are_compared_as_bytes() -> None:
    first = contents_of([KeyValue(key=b"a", value=b"1"), KeyValue(key=b"b", value=b"1")])
    second = contents_of([KeyValue(key=b"a", value=b"2")])
    assert [(d.id.name, d.change) for d in differences(first, second)] == [("a", "changed"), ("b", "removed")]


def test_what_the_server_sets_is_no_part_of_a_manifest() -> None:
    obj = deployment(3, ready=2)
    obj.metadata.uid, obj.metadata.generation, obj.metadata.resourceVersion = "u", 4, "17"
    said = without_server_fields(obj)
    assert said == deployment(3)
    assert obj.metadata.uid == "u"
    assert without_server_fields(pod("p", owned=False)).spec.nodeName == ""


def test_what_controllers_and_agents_make_again_is_derived() -> None:
    assert [is_derived(obj) for obj in (pod("p", owned=True), Node(), Event(), pod("p", owned=False), team())] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_an_export_is_read_back_as_it_was(tmp_path: Path) -> None:
    saved = file_of(tmp_path / "a.qdsnap", stored(team()), stored(config("a", x="1")), stored(deployment(2)))
    done = CliRunner().invoke(export, [str(saved), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert sorted(str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.yaml")) == [
        "_cluster/namespaces.yaml", "team/configmaps.yaml", "team/deployments.yaml",
    ]  # fmt: skip
    back = _read(tmp_path / "out")
    assert list(differences(contents_of(saved), Contents(back.objects))) == []
    again = CliRunner().invoke(export, [str(saved), str(tmp_path / "out")])
    assert again.exit_code == 2
    assert "is not empty" in again.output


def test_diff_of_two_files_says_by_its_exit_code_whether_they_differ(tmp_path: Path) -> None:
    one = file_of(tmp_path / "a.qdsnap", stored(config("a", x="1")))
    two = file_of(tmp_path / "b.qdsnap", stored(config("a", x="2")))
    assert CliRunner().invoke(diff, [str(one), str(one)]).exit_code == 0
    done = CliRunner().invoke(diff, [str(one), str(two), "-o", "json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout) == [
        {
            "change": "changed", "kind": "ConfigMap", "namespace": "team", "name": "a",
            "fields": [{"path": "data.x", "snapshot": "1", "live": "2"}],
        }
    ]  # fmt: skip


def test_what_could_not_be_compared_is_no_difference(tmp_path: Path) -> None:
    one = file_of(tmp_path / "a.qdsnap", stored(config("a", x="1")))
    damaged = tmp_path / "damaged.qdsnap"
    damaged.write_bytes(one.read_bytes()[:-1])
    for argv in ([str(damaged), str(one)], [str(one), str(damaged)], [str(one), str(tmp_path / "none")]):
        done = CliRunner().invoke(diff, argv)
        assert done.exit_code == 2, done.output
        assert "error: " in done.output
