"""The cells that are more than a field: pod and node status, restarts, addresses."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from controlplane.cli.printers import node_status, pod_status, row
from controlplane.client.codec import from_dict
from controlplane.client.kinds import info_of
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod, Service

NOW_S = 1_700_000_000


def pod_of(status: str, *, spec: str = "containers: [{name: a}]", meta: str = "") -> Pod:
    text = f"{{apiVersion: v1, kind: Pod, metadata: {{name: p{meta}}}, spec: {{{spec}}}, status: {{{status}}}}}"
    pod: Pod = from_dict(yaml.safe_load(text))
    return pod


def ended(code: int, reason: str = "", signal: int = 0) -> str:
    return f"{{terminated: {{exitCode: {code}, reason: '{reason}', signal: {signal}}}}}"


RUNNING = "ready: true, state: {running: {}}"
READY = "conditions: [{type: Ready, status: 'True'}]"


def state(value: str) -> str:
    return f"state: {value}"


ERROR, DONE = state(ended(1, "Error")), state(ended(0, "Completed"))


def main(*containers: str) -> str:
    listed = ", ".join(f"{{name: c{number}, {text}}}" for number, text in enumerate(containers))
    return f"containerStatuses: [{listed}]"


def init(*containers: str) -> str:
    return main(*containers).replace("containerStatuses", "initContainerStatuses")


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("", "Pending"),
        ("phase: Running", "Running"),
        ("phase: Failed, reason: Evicted", "Evicted"),
        (f"phase: Running, {main('state: {waiting: {reason: CrashLoopBackOff}}')}", "CrashLoopBackOff"),
        (f"phase: Failed, {main(ERROR)}", "Error"),
        (f"phase: Failed, {main(state(ended(3)))}", "ExitCode:3"),
        (f"phase: Failed, {main(state(ended(137, signal=9)))}", "Signal:9"),
        (f"phase: Running, {main(ERROR, 'state: {waiting: {reason: ErrImagePull}}')}", "Error"),
        (f"phase: Running, {READY}, {main(DONE, RUNNING)}", "Running"),
        (f"phase: Running, {main(DONE, RUNNING)}", "NotReady"),
        (init(RUNNING), "Init:0/2"),
        (init(DONE, RUNNING), "Init:1/2"),
        (init(ERROR), "Init:Error"),
        (f"phase: Running, {init(DONE, DONE)}, {main(RUNNING)}", "Running"),
    ],
)
def test_a_pods_status_is_the_most_telling_word(status: str, shown: str) -> None:
    pod = pod_of(status, spec="containers: [{name: a}], initContainers: [{name: i}, {name: j}]")
    assert pod_status(pod) == shown


def test_a_pod_that_is_being_deleted_is_terminating_whatever_else() -> None:
    deleted = ", deletionTimestamp: '2024-01-01T00:00:00Z'"
    assert pod_status(pod_of("phase: Running", meta=deleted)) == "Terminating"
    assert pod_status(pod_of("phase: Running, reason: NodeLost", meta=deleted)) == "Unknown"


def test_restarts_say_when_the_last_was() -> None:
    ago = f"lastState: {{terminated: {{exitCode: 1, finishedAt: '{_time(NOW_S - 180)}'}}}}"
    pod = pod_of(f"containerStatuses: [{{name: a, restartCount: 2, {ago}}}, {{name: b, restartCount: 1}}]")
    assert row(info_of(Pod), pod, NOW_S, wide=False, namespaces=False)[3] == "3 (3m ago)"


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_readiness_gates_count_those_that_passed() -> None:
    pod = pod_of(
        "conditions: [{type: g1, status: 'True'}, {type: g2, status: 'False'}]",
        spec="containers: [{name: a}], readinessGates: [{conditionType: g1}, {conditionType: g2}]",
    )
    assert row(info_of(Pod), pod, NOW_S, wide=True, namespaces=False)[-1] == "1/2"


@pytest.mark.parametrize(
    ("ready", "suspect", "unschedulable", "shown"),
    [
        ("True", "", False, "Ready"),
        ("False", "", False, "NotReady"),
        ("Unknown", "", True, "NotReady,SchedulingDisabled"),
        ("True", "True", False, "Ready,Suspect"),
        ("True", "False", True, "Ready,SchedulingDisabled"),
        ("", "", False, "Unknown"),
    ],
)
def test_a_nodes_status(ready: str, suspect: str, unschedulable: bool, shown: str) -> None:
    node = Node()
    for kind, status in (("Ready", ready), ("Suspect", suspect)):
        if status:
            node.status.conditions.add(type=kind, status=status)
    node.spec.unschedulable = unschedulable
    assert node_status(node) == shown


@pytest.mark.parametrize(
    ("spec", "status", "external"),
    [
        ("type: ClusterIP", "", "<none>"),
        ("type: ClusterIP, externalIPs: [10.0.0.1, 10.0.0.2]", "", "10.0.0.1,10.0.0.2"),
        ("type: LoadBalancer", "", "<pending>"),
        (
            "type: LoadBalancer",
            "loadBalancer: {ingress: [{ip: 1.2.3.4}, {hostname: lb.example}]}",
            "1.2.3.4,lb.example",
        ),
        ("type: ExternalName, externalName: db.example", "", "db.example"),
    ],
)
def test_a_services_external_address(spec: str, status: str, external: str) -> None:
    text = f"{{apiVersion: v1, kind: Service, metadata: {{name: s}}, spec: {{{spec}}}, status: {{{status}}}}}"
    service: Any = from_dict(yaml.safe_load(text))
    assert row(info_of(Service), service, NOW_S, wide=False, namespaces=False)[3] == external


def test_a_node_port_stands_between_port_and_protocol() -> None:
    service = Service()
    service.spec.ports.add(port=80, nodePort=30080, protocol="TCP")
    assert row(info_of(Service), service, NOW_S, wide=False, namespaces=False)[4] == "80:30080/TCP"
