"""Validation: every rule refuses what breaks it, by field, with what is allowed; selectors, names, update rules."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.api.codec import decode
from controlplane.api.errors import InvalidError
from controlplane.api.registry import KINDS


def pod(**spec: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"containers": [{"name": "a", "image": "host"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "d"}, "spec": {**base, **spec}}


def container(**fields: Any) -> dict[str, Any]:
    return pod(containers=[{"name": "a", "image": "host", **fields}])


def deployment(**spec: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "a", "image": "host"}]}},
    }
    meta = {"name": "x", "namespace": "d"}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": {**base, **spec}}


def service(**spec: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"ports": [{"port": 80}]}
    meta = {"name": "x", "namespace": "d"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {**base, **spec}}


def meta(kind: str = "ConfigMap", **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": "x", "namespace": "d", **metadata}}


def endpoints(**fields: Any) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "x", "namespace": "d"},
        "addressType": "IPv4", **fields,
    }  # fmt: skip


def probe(**fields: Any) -> dict[str, Any]:
    return container(ports=[{"name": "http", "containerPort": 80}], readinessProbe=fields)


def rolling(**fields: Any) -> dict[str, Any]:
    return deployment(strategy={"rollingUpdate": fields})


WRONG = [
    (meta(labels={"-a": "b"}), "metadata.labels", "name part must be 1 to 63"),
    (meta(labels={"a": "b c"}), "metadata.labels.a", "a valid label value is empty, or"),
    (meta(labels={"UP/x": "b"}), "metadata.labels", "prefix part a lowercase RFC 1123 subdomain"),
    (meta(annotations={"a b": ""}), "metadata.annotations", "name part must be"),
    (meta(annotations={"a": "x" * 262144}), "metadata.annotations", "must have at most 262144 bytes"),
    (meta(finalizers=["a b"]), "metadata.finalizers[0]", "name part must be"),
    (meta(ownerReferences=[{"kind": "Pod"}]), "metadata.ownerReferences[0].apiVersion", "Required value"),
    (meta(name="A"), "metadata.name", "must consist of lower case letters"),
    (meta("Namespace", name="a.b", namespace=""), "metadata.name", "a lowercase RFC 1123 label"),
    ({**meta(), "data": {"a/b": "x"}}, "data.a/b", "a valid config key is"),
    ({**meta(), "data": {"a": "x"}, "binaryData": {"a": "AA=="}}, "data.a", "may not be in both"),
    ({**meta("Event"), "type": "Odd"}, "type", 'supported values: "Normal", "Warning"'),
    ({**meta("Event"), "involvedObject": {"namespace": "o"}}, "involvedObject.namespace", "the event's own namespace"),
    ({**meta("Node", namespace=""), "spec": {"podCIDR": "10.0.0.1/24"}}, "spec.podCIDR", "must be a network such as"),
    (
        {**meta("Node", namespace=""), "spec": {"taints": [{"key": "a", "effect": "Go"}]}},
        "spec.taints[0].effect",
        'supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"',
    ),
    (pod(containers=[]), "spec.containers", "a pod has at least one container"),
    (pod(restartPolicy="No"), "spec.restartPolicy", 'supported values: "Always", "OnFailure", "Never"'),
    (pod(nodeName="A"), "spec.nodeName", "a lowercase RFC 1123 subdomain"),
    (pod(nodeSelector={"a": "!"}), "spec.nodeSelector.a", "a valid label value"),
    (pod(terminationGracePeriodSeconds=-1), "spec.terminationGracePeriodSeconds", "must be between 0 and"),
    (pod(activeDeadlineSeconds=0), "spec.activeDeadlineSeconds", "must be between 1 and"),
    (pod(tolerations=[{"operator": "Equal"}]), "spec.tolerations[0].operator", "must be 'Exists' when `key` is empty"),
    (pod(tolerations=[{"key": "a", "effect": "x"}]), "spec.tolerations[0].effect", "supported values"),
    (
        pod(tolerations=[{"key": "a", "tolerationSeconds": 1}]),
        "spec.tolerations[0].effect",
        "must be 'NoExecute' when `tolerationSeconds` is set",
    ),
    (pod(volumes=[{"name": "v"}]), "spec.volumes[0]", "must specify a volume type, one of emptyDir"),
    (
        pod(volumes=[{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]),
        "spec.volumes[0].emptyDir",
        "may not specify more than 1 volume type",
    ),
    (pod(volumes=[{"name": "v", "emptyDir": {}}] * 2), "spec.volumes[1].name", 'Duplicate value: "v"'),
    (pod(containers=[{"name": "a", "image": "b"}] * 2), "spec.containers[1].name", 'Duplicate value: "a"'),
    (pod(containers=[{"name": "A", "image": "b"}]), "spec.containers[0].name", "a lowercase RFC 1123 label"),
    (pod(containers=[{"name": "a"}]), "spec.containers[0].image", "Required value"),
    (
        pod(affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}}),
        "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms",
        "must have at least one node selector term",
    ),
    (
        pod(
            affinity={
                "nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "weight": 5,
                            "preference": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["²"]}]},
                        }
                    ]
                }
            }
        ),
        (
            "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference"
            ".matchExpressions[0].values"
        ),
        "must be one integer when `operator` is 'Lt' or 'Gt'",
    ),
    (
        pod(topologySpreadConstraints=[{"topologyKey": "a"}]),
        "spec.topologySpreadConstraints[0].maxSkew",
        "must be greater than or equal to 1",
    ),
    (container(ports=[{"containerPort": 65536}]), "spec.containers[0].ports[0].containerPort", "between 1 and 65535"),
    (
        container(ports=[{"containerPort": 1, "protocol": "ICMP"}]),
        "spec.containers[0].ports[0].protocol",
        '"TCP", "UDP"',
    ),
    (container(ports=[{"containerPort": 1, "name": "80"}]), "spec.containers[0].ports[0].name", "at least one letter"),
    (container(env=[{"name": "A=B"}]), "spec.containers[0].env[0].name", "printable ASCII characters other than '='"),
    (
        container(env=[{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
        "spec.containers[0].env[0].valueFrom",
        "may not be specified when `value` is not empty",
    ),
    (
        container(env=[{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]),
        "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath",
        '"status.podIP"',
    ),
    (
        container(volumeMounts=[{"name": "v", "mountPath": "/x"}]),
        "spec.containers[0].volumeMounts[0].name",
        "no such volume",
    ),
    (
        container(resources={"requests": {"cpu": 2}, "limits": {"cpu": 1}}),
        "spec.containers[0].resources.requests.cpu",
        "must be less than or equal to cpu limit of 1",
    ),
    (
        container(resources={"limits": {"cpu": "-1"}}),
        "spec.containers[0].resources.limits.cpu",
        "greater than or equal to 0",
    ),
    (
        container(livenessProbe={}),
        "spec.containers[0].livenessProbe",
        "must specify a handler type, one of exec, httpGet",
    ),
    (
        container(livenessProbe={"tcpSocket": {"port": 1}, "successThreshold": 2}),
        "spec.containers[0].livenessProbe.successThreshold",
        "must be 1",
    ),
    (probe(httpGet={"port": "web"}), "spec.containers[0].readinessProbe.httpGet.port", "it has: http"),
    (probe(httpGet={"port": 0}), "spec.containers[0].readinessProbe.httpGet.port", "between 1 and 65535"),
    (
        probe(httpGet={"port": 1, "scheme": "FTP"}),
        "spec.containers[0].readinessProbe.httpGet.scheme",
        '"HTTP", "HTTPS"',
    ),
    (probe(exec={}), "spec.containers[0].readinessProbe.exec.command", "Required value"),
    (probe(exec={"command": ["a"]}, periodSeconds=-1), "spec.containers[0].readinessProbe.periodSeconds", "equal to 1"),
    (deployment(replicas=-1), "spec.replicas", "must be greater than or equal to 0"),
    (deployment(selector=None), "spec.selector", "Required value"),
    (deployment(selector={}), "spec.selector", "empty selector is invalid"),
    (
        deployment(selector={"matchLabels": {"app": "y"}}),
        "spec.template.metadata.labels",
        "`selector` does not match template `labels`",
    ),
    (
        deployment(selector={"matchExpressions": [{"key": "app", "operator": "Is"}]}),
        "spec.selector.matchExpressions[0].operator",
        'supported values: "In", "NotIn", "Exists", "DoesNotExist"',
    ),
    (
        deployment(progressDeadlineSeconds=5, minReadySeconds=5),
        "spec.progressDeadlineSeconds",
        "greater than minReadySeconds",
    ),
    (deployment(strategy={"type": "Blue"}), "spec.strategy.type", 'supported values: "Recreate", "RollingUpdate"'),
    (
        deployment(strategy={"type": "Recreate", "rollingUpdate": {}}),
        "spec.strategy.rollingUpdate",
        "may not be specified when strategy `type` is 'Recreate'",
    ),
    (
        rolling(maxSurge=0, maxUnavailable=0),
        "spec.strategy.rollingUpdate.maxUnavailable",
        "may not be 0 when `maxSurge` is 0",
    ),
    (rolling(maxSurge="many"), "spec.strategy.rollingUpdate.maxSurge", "digits followed by '%'"),
    (rolling(maxUnavailable="101%"), "spec.strategy.rollingUpdate.maxUnavailable", "must not be greater than 100%"),
    (service(type="Cluster"), "spec.type", 'supported values: "ClusterIP", "NodePort"'),
    (service(ports=[]), "spec.ports", "Required value"),
    (service(ports=[{"port": 0}]), "spec.ports[0].port", "between 1 and 65535"),
    (service(ports=[{"port": 1}, {"port": 2}]), "spec.ports[0].name", "services with several ports must name each"),
    (
        service(ports=[{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]),
        "spec.ports[1]",
        'Duplicate value: "TCP/1"',
    ),
    (service(ports=[{"port": 1, "targetPort": "Web"}]), "spec.ports[0].targetPort", "lower case letters"),
    (
        service(ports=[{"port": 1, "nodePort": 30000}]),
        "spec.ports[0].nodePort",
        "may not be used when `type` is 'ClusterIP'",
    ),
    (service(sessionAffinity="IP"), "spec.sessionAffinity", 'supported values: "ClientIP", "None"'),
    (service(type="ExternalName", externalName="a b"), "spec.externalName", "a lowercase RFC 1123 subdomain"),
    (service(type="NodePort", clusterIP="None"), "spec.clusterIP", "may not be set to 'None' for NodePort"),
    (service(clusterIP="1.2.3.4", clusterIPs=["1.2.3.4", "::1"]), "spec.clusterIPs", "services here have one address"),
    (endpoints(addressType=""), "addressType", 'supported values: "IPv4", "IPv6", "FQDN"'),
    (endpoints(endpoints=[{"addresses": []}]), "endpoints[0].addresses", "must have 1 to 100 items"),
    (endpoints(endpoints=[{"addresses": ["::1"]}]), "endpoints[0].addresses[0]", "must be a valid IPv4 address"),
    (endpoints(ports=[{"name": "a"}, {"name": "a"}]), "ports[1].name", 'Duplicate value: "a"'),
]


@pytest.mark.parametrize(("manifest", "field", "said"), WRONG, ids=[f"{m['kind']}-{f}" for m, f, _ in WRONG])
def test_what_breaks_a_rule_is_refused_by_field(manifest: dict[str, Any], field: str, said: str) -> None:
    decoded = decode(manifest)
    decoded.kind.default(decoded.message)
    with pytest.raises(InvalidError) as caught:
        decoded.kind.check(decoded.message)
    causes = {cause.field: cause.message for cause in caught.value.causes}
    assert field in causes, causes
    assert said in causes[field]
    assert f"{field}: " in caught.value.message


@pytest.mark.parametrize(
    "manifest",
    [
        pod(tolerations=[{"operator": "Exists"}]),
        container(env=[{"name": "A.b-c", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}]),
        deployment(selector={"matchExpressions": [{"key": "app", "operator": "In", "values": ["x", "y"]}]}),
        deployment(strategy={"type": "Recreate"}),
        rolling(maxSurge="100%", maxUnavailable=0),
        service(ports=[{"port": 53, "name": "a"}, {"port": 53, "name": "b", "protocol": "UDP"}]),
        service(ports=[], clusterIP="None"),
        endpoints(addressType="FQDN", endpoints=[{"addresses": ["example.com"]}]),
        meta(labels={"example.com/a": ""}, annotations={"Example.com/A": "anything at all"}),
    ],
)
def test_what_kubernetes_allows_is_allowed(manifest: dict[str, Any]) -> None:
    decoded = decode(manifest)
    decoded.kind.default(decoded.message)
    decoded.kind.check(decoded.message)


def update(kind: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    row = next(row for row in KINDS if row.kind == kind)
    before, after = decode(old).message, decode(new).message
    for obj in (before, after):
        row.default(obj)
    row.check_update(after, before)


@pytest.mark.parametrize(
    "change",
    [
        {"containers": [{"name": "a", "image": "host:2"}]},
        {"terminationGracePeriodSeconds": 5},
        {"activeDeadlineSeconds": 60},
        {"tolerations": [{"key": "a", "operator": "Exists"}]},
        {"nodeName": "n1"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_may_change_of_a_pod_may(change: dict[str, Any]) -> None:
    update("Pod", container(imagePullPolicy="Never"), pod(**_never(change)))


def _never(change: dict[str, Any]) -> dict[str, Any]:
    base = {"containers": [{"name": "a", "image": "host"}], **change}
    return {**base, "containers": [{**c, "imagePullPolicy": "Never"} for c in base["containers"]]}


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"containers": [{"name": "a", "image": "host", "command": ["x"]}]}, "spec.containers"),
        ({"containers": [{"name": "a", "image": "h"}, {"name": "b", "image": "h"}]}, "spec.containers"),
        ({"restartPolicy": "Never"}, "spec.restartPolicy"),
        ({"nodeSelector": {"a": "b"}}, "spec.nodeSelector"),
    ],
)
def test_what_may_not_change_of_a_pod_is_named(change: dict[str, Any], changed: str) -> None:
    with pytest.raises(InvalidError, match=f"changed: {changed}"):
        update("Pod", pod(), pod(**change))


def test_a_toleration_cannot_be_taken_away() -> None:
    with pytest.raises(InvalidError, match="additions to `tolerations`"):
        update("Pod", pod(tolerations=[{"key": "a", "operator": "Exists"}]), pod())


def test_scheduling_gates_are_only_ever_removed() -> None:
    gated, more = [{"name": "a"}, {"name": "b"}], [{"name": "a"}, {"name": "c"}]
    update("Pod", pod(schedulingGates=gated), pod(schedulingGates=gated[:1]))
    update("Pod", pod(schedulingGates=gated), pod())
    with pytest.raises(InvalidError, match=r"changed: spec\.schedulingGates"):
        update("Pod", pod(schedulingGates=gated), pod(schedulingGates=more))


def test_an_immutable_config_map_stays_as_it_is() -> None:
    old = {**meta(), "data": {"a": "1"}, "immutable": True}
    update("ConfigMap", old, {**old, "metadata": {**old["metadata"], "labels": {"x": "y"}}})
    for new in ({**old, "data": {"a": "2"}}, {**old, "immutable": False}):
        with pytest.raises(InvalidError, match="field is immutable when `immutable` is set"):
            update("ConfigMap", old, new)


def test_an_endpoint_slices_family_stays() -> None:
    with pytest.raises(InvalidError, match=r"addressType: .*field is immutable"):
        update("EndpointSlice", endpoints(), endpoints(addressType="FQDN"))
