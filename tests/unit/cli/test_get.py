"""``qd get``: tables, other forms, selection, and what it says when there is nothing."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.unit.cli.manifests import CONFIG, DEPLOYMENT, NODE, SERVICE, pod, replica_set
from tests.unit.cli.rig import Rig

EVENT = """
apiVersion: v1
kind: Event
metadata: {name: web-1.1, namespace: default}
involvedObject: {kind: Pod, name: web-1, namespace: default}
reason: FailedScheduling
message: "0/1 nodes are available\\n"
type: Warning
count: 4
source: {component: scheduler}
"""
SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x, namespace: default}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
  - {addresses: [127.128.1.1], conditions: {ready: true}}
  - {addresses: [127.128.1.2], conditions: {ready: false}}
  - {addresses: [127.128.1.3], conditions: {ready: true}}
  - {addresses: [127.128.1.4], conditions: {ready: true}}
"""


def headings(text: str) -> list[str]:
    return [cell.strip() for cell in text.splitlines()[0].split("   ") if cell.strip()]


@pytest.mark.parametrize(
    ("kind", "manifest", "usual", "wide"),
    [
        ("ns", "", "NAME STATUS AGE", ""),
        ("nodes", NODE, "NAME STATUS ROLES AGE VERSION",
         "INTERNAL-IP EXTERNAL-IP OS-IMAGE KERNEL-VERSION CONTAINER-RUNTIME"),
        ("pods", pod("web-1"), "NAME READY STATUS RESTARTS AGE", "IP NODE NOMINATED_NODE READINESS_GATES"),
        ("deploy", DEPLOYMENT, "NAME READY UP-TO-DATE AVAILABLE AGE", "CONTAINERS IMAGES SELECTOR"),
        ("rs", replica_set("web-1", 1, "host", "u1"), "NAME DESIRED CURRENT READY AGE", "CONTAINERS IMAGES SELECTOR"),
        ("svc", SERVICE, "NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE", "SELECTOR"),
        ("endpointslices", SLICE, "NAME ADDRESSTYPE PORTS ENDPOINTS AGE", ""),
        ("cm", CONFIG, "NAME DATA AGE", ""),
        ("events", EVENT, "LAST_SEEN TYPE REASON OBJECT MESSAGE", "SOURCE NAME"),
    ],
)  # fmt: skip
def test_every_kind_has_kubectls_columns(rig: Rig, kind: str, manifest: str, usual: str, wide: str) -> None:
    if manifest:
        rig.put(manifest)
    usual_columns = [word.replace("_", " ") for word in usual.split()]
    wide_columns = [word.replace("_", " ") for word in wide.split()]
    assert headings(rig.ok("get", kind)) == usual_columns
    assert headings(rig.ok("get", kind, "-o", "wide")) == usual_columns + wide_columns


def test_a_pods_row(rig: Rig) -> None:
    rig.put(pod("web-1", node="node-1"))
    assert rig.rows("get", "pods", "-o", "wide")[1] == [
        "web-1", "1/1", "Running", "2", "Ns", "127.128.1.7", "node-1", "<none>", "<none>"
    ]  # fmt: skip


def test_rows_of_the_other_kinds(rig: Rig) -> None:
    for manifest in (NODE, DEPLOYMENT, SERVICE, CONFIG, EVENT, SLICE):
        rig.put(manifest)
    assert rig.rows("get", "nodes")[1] == ["node-1", "Ready", "worker", "Ns", "v0.1.0"]
    assert rig.rows("get", "deploy")[1] == ["web", "0/2", "0", "0", "Ns"]
    service = rig.rows("get", "svc", "-o", "wide")[1]
    assert service[0:2] == ["web", "ClusterIP"]
    assert service[3:] == ["<none>", "8080/TCP,53/UDP", "Ns", "app=web"]
    assert rig.rows("get", "cm")[1] == ["settings", "2", "Ns"]
    assert rig.rows("get", "events")[1][1:] == ["Warning", "FailedScheduling", "pod/web-1", "0/1 nodes are available"]
    assert rig.rows("get", "events")[1][0].endswith("(x4 over Ns)")
    assert rig.rows("get", "endpointslices")[1][3] == "127.128.1.1,127.128.1.2,127.128.1.3 + 1 more..."


def test_all_namespaces_adds_the_namespace_and_shows_every_one(rig: Rig) -> None:
    rig.put("{apiVersion: v1, kind: Namespace, metadata: {name: blue}}")
    rig.put(pod("b", namespace="blue"))
    rig.put(pod("a"))
    assert [row[:2] for row in rig.rows("get", "pods", "-A")] == [
        ["NAMESPACE", "NAME"],
        ["blue", "b"],
        ["default", "a"],
    ]
    assert [row[0] for row in rig.rows("get", "pods", "-n", "blue")] == ["NAME", "b"]


def test_selectors_choose(rig: Rig) -> None:
    rig.put(pod("a", app="web", node="node-1"))
    rig.put(pod("b", app="db"))
    assert rig.ok("get", "pods", "-l", "app=db", "-o", "name") == "pod/b\n"
    assert rig.ok("get", "pods", "--field-selector", "spec.nodeName=node-1", "-o", "name") == "pod/a\n"
    assert [row[0] for row in rig.rows("get", "po", "-l", "app in (web,db)", "--no-headers")] == ["a", "b"]


def test_json_and_yaml_are_kubernetes_own_and_apply_again(rig: Rig) -> None:
    rig.put(CONFIG)
    one = json.loads(rig.ok("get", "cm", "settings", "-o", "json"))
    assert (one["apiVersion"], one["kind"], one["data"]) == ("v1", "ConfigMap", {"colour": "blue", "size": "3"})
    assert yaml.safe_load(rig.ok("get", "cm/settings", "-o", "yaml"))["data"] == one["data"]
    many = rig.ok("get", "cm", "-o", "yaml")
    assert yaml.safe_load(many)["kind"] == "List"
    assert rig.ok("apply", "-f", "-", stdin=many) == "configmap/settings configured\n"


def test_an_empty_list_is_still_a_document(rig: Rig) -> None:
    assert json.loads(rig.ok("get", "pods", "-o", "json"))["items"] == []


def test_names_carry_the_group_and_can_be_given_back(rig: Rig) -> None:
    rig.put(DEPLOYMENT)
    assert rig.ok("get", "deploy", "-o", "name") == "deployment.apps/web\n"
    assert rig.rows("get", "deployment.apps/web")[1][0] == "web"


def test_several_kinds_are_tables_apart_with_the_kind_in_the_name(rig: Rig) -> None:
    rig.put(DEPLOYMENT)
    rig.put(SERVICE)
    tables = rig.ok("get", "deploy,svc").split("\n\n")
    assert [table.splitlines()[1].split()[0] for table in tables] == ["deployment.apps/web", "service/web"]
    everything = rig.ok("get", "all")
    assert "service/web" in everything
    assert "deployment.apps/web" in everything


def test_nothing_found_is_said_on_standard_error(rig: Rig) -> None:
    result = rig.run("get", "pods")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No resources found in default namespace.\n")
    assert rig.run("get", "nodes").stderr == "No resources found.\n"


def test_a_missing_object_is_refused_in_kubectls_words(rig: Rig) -> None:
    result = rig.run("get", "deploy", "nope")
    assert result.exit_code == 1
    assert result.stderr == 'Error from server (NotFound): deployments.apps "nope" not found\n'
    assert rig.ok("get", "deploy", "nope", "--ignore-not-found") == ""


def test_what_is_there_is_shown_beside_what_is_not(rig: Rig) -> None:
    rig.put(CONFIG)
    result = rig.run("get", "cm", "settings", "nope")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[1].startswith("settings")
    assert 'configmaps "nope" not found' in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("get", "deploymnt"), "did you mean 'deployment'?"),
        (("get", "zebra"), "there are: namespaces, nodes, pods"),
        (("get",), "name a kind"),
        (("get", "pod/a", "b"), "all must be"),
        (("get", "pods", "a", "-l", "x=y"), "cannot go together"),
        (("get", "pods", "a", "-A"), "across all namespaces"),
        (("get", "pods,svc", "-w"), "one kind or one object"),
        (("get", "pods", "-o", "jsn"), "'jsn' is not one of"),
        (("gte", "pods"), "Did you mean 'get'?"),
    ],
)
def test_wrong_words_are_wrong_usage(rig: Rig, words: tuple[str, ...], said: str) -> None:
    result = rig.run(*words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_a_malformed_selector_is_the_servers_to_refuse(rig: Rig) -> None:
    result = rig.run("get", "pods", "-l", "a in (")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error from server (BadRequest): ")


def test_without_a_quorum_the_exit_code_is_3_and_the_endpoints_are_named(rig: Rig) -> None:
    rig.raft.set_leader(None)
    result = rig.run("get", "pods")
    assert result.exit_code == 3
    assert "127.0.0.1:1" in result.stderr
    assert "qd status" in result.stderr


def test_events_are_oldest_first_and_can_be_of_one_object(rig: Rig) -> None:
    rig.put(EVENT)
    rig.put(EVENT.replace("web-1", "web-2").replace("count: 4", 'lastTimestamp: "2020-01-01T00:00:00Z"'))
    assert [row[3] for row in rig.rows("events")[1:]] == ["pod/web-2", "pod/web-1"]
    assert [row[3] for row in rig.rows("events", "--for", "pod/web-1")[1:]] == ["pod/web-1"]
    assert rig.run("events", "--for", "pods").exit_code == 2
    assert rig.run("events", "-n", "kube-system").stderr == "No events found in kube-system namespace.\n"


def test_describe_shows_fields_the_users_own_keys_as_they_are_and_events(rig: Rig) -> None:
    rig.put(pod("web-1", node="node-1"))
    rig.put(NODE)
    rig.put(EVENT)
    text = rig.ok("describe", "pod", "web-1")
    assert "Name:" in text
    assert "    app:" in text
    assert "FailedScheduling" in text
    assert "Events:  <none>" in rig.ok("describe", "node/node-1")
    assert "  default     web-1" in rig.ok("describe", "node/node-1")
    assert rig.ok("describe", "pods").count("Name:  ") >= 1
    assert rig.run("describe", "pod", "nope").exit_code == 1


def test_api_resources_lists_every_kind(rig: Rig) -> None:
    rows = rig.rows("api-resources")
    assert rows[0] == ["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"]
    assert ["deployments", "deploy", "apps/v1", "true", "Deployment"] in rows
