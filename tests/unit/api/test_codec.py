"""Manifests become messages and back without loss; what is wrong is named with its path and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.api.codec import decode, dump_yaml, from_dict, load_manifests, to_dict
from controlplane.api.documents import DEPTH_MAX, DocumentError, load_json, load_yaml_documents
from controlplane.api.errors import ApiError, InvalidError
from controlplane.api.ignored import IGNORED_FIELDS
from controlplane.api.jsonpb import FAULTS_MAX
from controlplane.pb.k8s.core_v1_pb2 import Event, Pod

DATA = Path(__file__).parent / "data"
EXAMPLES = Path(__file__).parents[3] / "examples"
MANIFESTS = [
    pytest.param(manifest, id=f"{path.stem}-{manifest['kind']}-{manifest['metadata']['name']}")
    for path in (*sorted(DATA.glob("*.yaml")), EXAMPLES / "web.yaml")
    for manifest in load_manifests(path.read_text())
]


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_ordinary_manifests_are_read_defaulted_and_valid(manifest: dict[str, Any]) -> None:
    decoded = decode(manifest)
    if decoded.kind.namespaced and not decoded.message.metadata.namespace:
        decoded.message.metadata.namespace = "default"
    decoded.kind.default(decoded.message)
    decoded.kind.check(decoded.message)


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_message_survives_the_way_through_yaml(manifest: dict[str, Any]) -> None:
    decoded = decode(manifest)
    decoded.kind.default(decoded.message)
    text = dump_yaml(to_dict(decoded.message))
    assert from_dict(load_manifests(text)[0]) == decoded.message


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_another_yaml_reader_sees_the_same_values(manifest: dict[str, Any]) -> None:
    values = to_dict(from_dict(manifest))
    assert yaml.safe_load(dump_yaml(values)) == values


def full_pod() -> dict[str, Any]:
    return load_manifests((DATA / "full-pod.yaml").read_text())[0]


def test_irregular_fields_have_kubernetes_json() -> None:
    values = to_dict(from_dict(full_pod()))
    container = values["spec"]["containers"][0]
    assert container["livenessProbe"]["httpGet"]["port"] == "http"
    assert container["startupProbe"]["tcpSocket"]["port"] == 8080
    assert container["resources"]["limits"] == {"cpu": "500m", "memory": "128974848"}
    assert container["env"][2]["valueFrom"]["configMapKeyRef"] == {"name": "settings", "key": "level", "optional": True}
    assert values["spec"]["volumes"][0] == {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}
    assert values["spec"]["volumes"][1]["configMap"]["defaultMode"] == 0o400
    assert values["spec"]["terminationGracePeriodSeconds"] == 0
    assert values["apiVersion"] == "v1"
    assert list(values)[:2] == ["apiVersion", "kind"]


def test_times_are_utc_with_the_precision_of_their_type() -> None:
    event: Event = from_dict(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"creationTimestamp": "2024-05-01T12:00:00.75+02:00"},
            "eventTime": "2024-05-01T12:00:00.123456789+02:00",
            "firstTimestamp": None,
        }
    )
    values = to_dict(event)
    assert values["metadata"]["creationTimestamp"] == "2024-05-01T10:00:00Z"
    assert values["eventTime"] == "2024-05-01T10:00:00.123456Z"
    assert "firstTimestamp" not in values


def test_a_time_beyond_any_calendar_is_shown_as_unset() -> None:
    pod = Pod()
    pod.metadata.creationTimestamp.seconds = 1 << 62
    assert "creationTimestamp" not in to_dict(pod).get("metadata", {})


def test_empty_and_unset_fields_are_left_out_but_explicit_zeros_stay() -> None:
    values = to_dict(
        from_dict(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "x", "labels": {}, "namespace": ""},
                "spec": {"replicas": 0, "paused": False, "template": {"spec": {"containers": []}}},
            }
        )
    )
    assert values["metadata"] == {"name": "x"}
    assert values["spec"] == {"replicas": 0, "paused": False, "template": {"spec": {}}}


def _pod(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (_pod(contaners=[]), 'spec.contaners: unknown field; did you mean "containers"?'),
        (_pod(nodename="a"), 'spec.nodename: unknown field; did you mean "nodeName"?'),
        (_pod(zzz=1), "spec.zzz: unknown field; known here: "),
        (_pod(restartPolicy=True), "spec.restartPolicy: must be a string (quote it), not the boolean true"),
        (_pod(hostNetwork="yes"), "spec.hostNetwork: must be true or false, not the string 'yes'"),
        (_pod(priority=1 << 31), "spec.priority: must be an integer from -2147483648 to 2147483647, not 2147483648"),
        (_pod(priority=1.5), "spec.priority: must be an integer, not the number 1.5"),
        (_pod(priority=True), "spec.priority: must be an integer, not the boolean true"),
        (_pod(containers={}), "spec.containers: must be a list, not a mapping"),
        (_pod(containers=["a"]), "spec.containers[0]: must be a mapping, not the string 'a'"),
        (_pod(nodeSelector=["a"]), "spec.nodeSelector: must be a mapping, not a list"),
        (_pod(nodeSelector={"a": 1}), "spec.nodeSelector.a: must be a string (quote it), not the number 1"),
        (
            _pod(containers=[{"resources": {"limits": {"cpu": "lots"}}}]),
            "spec.containers[0].resources.limits.cpu: 'lots' is not a quantity",
        ),
        (
            _pod(containers=[{"readinessProbe": {"tcpSocket": {"port": 1.5}}}]),
            "spec.containers[0].readinessProbe.tcpSocket.port: must be an integer or a string, not the number 1.5",
        ),
        (
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "creationTimestamp": "yesterday"}},
            "metadata.creationTimestamp: must be an RFC 3339 time such as 2006-01-02T15:04:05Z, not the string",
        ),
        (
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "creationTimestamp": "2024-13-01T00:00:00Z"}},
            "metadata.creationTimestamp: is no such time",
        ),
        (
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "binaryData": {"a": "!"}},
            "binaryData.a: must be base64 text",
        ),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(manifest: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidError) as caught:
        from_dict(manifest)
    assert said in caught.value.message
    assert caught.value.message.startswith(f'{manifest["kind"]} "x" is invalid: ')
    assert caught.value.reason == "Invalid"
    assert len(caught.value.causes) == 1
    assert caught.value.causes[0].field == said.partition(":")[0]


def test_all_faults_are_reported_together_up_to_a_bound() -> None:
    with pytest.raises(InvalidError) as caught:
        from_dict(_pod(**{f"bad{i}": 1 for i in range(50)}))
    assert len(caught.value.causes) == FAULTS_MAX


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ([], "a manifest must be a mapping"),
        ({"kind": "Pod"}, "the manifest names no apiVersion"),
        ({"apiVersion": "v1"}, "the manifest names no kind"),
        ({"apiVersion": "v1", "kind": "Deployment"}, "Deployment is served in version apps/v1"),
        ({"apiVersion": "apps/v1", "kind": "Deploymnt"}, 'did you mean "Deployment"?'),
        ({"apiVersion": "batch/v1", "kind": "CronJob"}, "kinds served here: Namespace, Node, Pod"),
    ],
)
def test_an_unknown_kind_is_named_with_the_nearest(manifest: Any, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode(manifest)
    assert said in caught.value.message


def test_fields_kept_but_not_acted_on_are_warned_of() -> None:
    manifest = _pod(
        hostNetwork=True,
        dnsPolicy="ClusterFirst",
        securityContext={},
        containers=[{"name": "a", "image": "host", "tty": True, "livenessProbe": {"grpc": {"port": 1}}}],
        volumes=[{"name": "v", "secret": {"secretName": "s"}}],
    )
    assert decode(manifest).warnings == (
        "spec.hostNetwork: kept, but not acted on by this control plane",
        "spec.containers[0].tty: kept, but not acted on by this control plane",
        "spec.containers[0].livenessProbe.grpc: kept, but not acted on by this control plane",
        "spec.volumes[0].secret: kept, but not acted on by this control plane",
    )


def test_every_field_warned_of_exists() -> None:
    pool = Pod.DESCRIPTOR.file.pool
    for message, fields in IGNORED_FIELDS.items():
        known = pool.FindMessageTypeByName(message).fields_by_name
        assert set(fields) <= set(known), message


def test_yaml_scalars_are_read_as_kubernetes_tools_read_them() -> None:
    text = "a: 0644\nb: 12:30\nc: 2024-01-01\nd: yes\ne: 1.5\nf:\ng: ''\nh: 1e3\ni: 0o17\n1: x\nyes: z"
    assert load_yaml_documents(text) == [
        {
            "a": 0o644, "b": "12:30", "c": "2024-01-01", "d": True, "e": 1.5, "f": None, "g": "", "h": "1e3",
            "i": "0o17", "1": "x", "yes": "z",
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: duplicate key 'a'"),
        ("a: [1", "line 2, column 1: did not find expected"),
        ("? [a]\n: b", "a mapping key must be a string"),
        ("a: !!python/object:os.system 1", "could not determine a constructor"),
        ("[" * 100_000, f"nested deeper than {DEPTH_MAX} levels"),
        ("a: \x00", "not valid YAML"),
        (b"\xff\xfe\xff", "not valid YAML"),
        ("x" * (5 << 20), "the document has 5242880 bytes; at most 4194304"),
    ],
)
def test_text_that_is_not_yaml_is_refused_with_its_place(text: str | bytes, said: str) -> None:
    with pytest.raises(DocumentError) as caught:
        load_yaml_documents(text)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ("[" * 1_000_000, "not valid JSON"),
        (b"\xff", "not valid JSON"),
    ],
)
def test_text_that_is_not_json_is_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(DocumentError, match="not valid JSON") as caught:
        load_json(text)
    assert said in caught.value.message


def test_an_alias_bomb_costs_little() -> None:
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(DocumentError, match="aliases stand for more than"):
        load_yaml_documents("\n".join(lines))


def test_values_that_are_shared_like_a_bomb_cost_little() -> None:
    shared: object = {"k": "v"}
    for _ in range(11):
        shared = [shared] * 10
    with pytest.raises(InvalidError):
        from_dict({"apiVersion": "v1", "kind": "Pod", "spec": {"tolerations": shared}})


def test_documents_that_are_not_mappings_are_refused() -> None:
    with pytest.raises(DocumentError, match="every document must be a mapping"):
        load_manifests("- a")
    with pytest.raises(DocumentError, match="a List must have `items`"):
        load_manifests("kind: List")
