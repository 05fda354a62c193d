"""One row of columns per kind, as kubectl prints them. Pure: object and time in, cells out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.cli.kinds import label_of
from controlplane.cli.tables import age
from controlplane.client.kinds import KindInfo
from controlplane.pb.k8s import core_v1_pb2 as core

__all__ = ["Printer", "headings", "node_status", "pod_status", "printer_of", "row"]


@dataclass(frozen=True, slots=True)
class Printer:
    """Columns of a kind: the usual ones, and those that ``-o wide`` adds."""

    columns: tuple[str, ...]
    wide: tuple[str, ...]
    cells: Callable[[Any, float], Sequence[str]]


def headings(info: KindInfo, *, wide: bool, namespaces: bool) -> list[str]:
    """The heading row."""
    printer = printer_of(info)
    first = ["NAMESPACE"] if namespaces and info.namespaced else []
    return [*first, *printer.columns, *(printer.wide if wide else ())]


def row(
    info: KindInfo, obj: Any, now_s: float, *, wide: bool, namespaces: bool, kind_in_name: bool = False
) -> list[str]:
    """The object's row under :func:`headings`. ``now_s``: seconds since 1970. ``kind_in_name``: names as
    ``pod/web-1``, for where tables of several kinds follow each other."""
    printer = printer_of(info)
    cells = list(printer.cells(obj, now_s))
    if kind_in_name and printer.columns[0] == "NAME":
        cells[0] = label_of(info, cells[0])
    first = [obj.metadata.namespace] if namespaces and info.namespaced else []
    return [*first, *cells[: len(printer.columns) + (len(printer.wide) if wide else 0)]]


def printer_of(info: KindInfo) -> Printer:
    """The printer of a kind."""
    return _PRINTERS[info.kind]


def _age(obj: Any, now_s: float) -> str:
    created = obj.metadata.creationTimestamp
    return age(now_s - created.seconds) if created.seconds else "<unknown>"


def pod_status(pod: core.Pod) -> str:
    """The STATUS column as kubectl has it: the phase, or the most telling reason of a container.

    A container that starts first (``Init:...``) comes before the others; Terminating before everything.
    """
    if pod.metadata.HasField("deletionTimestamp"):
        return "Unknown" if pod.status.reason == "NodeLost" else "Terminating"
    starting = _init_status(pod)
    if starting:
        return starting
    reason = pod.status.reason or pod.status.phase or "Pending"
    running = False
    # Kubernetes reports the first container that has something to say: from the last to the first, each overwrites.
    for status in reversed(pod.status.containerStatuses):
        running = running or (status.ready and status.state.HasField("running"))
        reason = _state_reason(status.state) or reason
    if reason == "Completed" and running:
        ready = any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions)
        return "Running" if ready else "NotReady"
    return reason


def _init_status(pod: core.Pod) -> str:
    total = len(pod.spec.initContainers)
    for number, status in enumerate(pod.status.initContainerStatuses):
        state = status.state
        if state.HasField("terminated") and state.terminated.exitCode == 0:
            continue
        reason = _state_reason(state)
        return f"Init:{reason}" if reason and reason != "PodInitializing" else f"Init:{number}/{total}"
    return ""


def _state_reason(state: core.ContainerState) -> str:
    if state.HasField("waiting"):
        return state.waiting.reason
    if state.HasField("terminated"):
        ended = state.terminated
        return ended.reason or (f"Signal:{ended.signal}" if ended.signal else f"ExitCode:{ended.exitCode}")
    return ""


def _restarts(pod: core.Pod, now_s: float) -> str:
    count = sum(status.restartCount for status in pod.status.containerStatuses)
    last_s = max((s.lastState.terminated.finishedAt.seconds for s in pod.status.containerStatuses), default=0)
    return f"{count} ({age(now_s - last_s)} ago)" if count and last_s else str(count)


def _pod(pod: core.Pod, now_s: float) -> list[str]:
    ready = sum(status.ready for status in pod.status.containerStatuses)
    gates = [gate.conditionType for gate in pod.spec.readinessGates]
    passed = sum(1 for c in pod.status.conditions if c.type in gates and c.status == "True")
    return [
        pod.metadata.name,
        f"{ready}/{len(pod.spec.containers)}",
        pod_status(pod),
        _restarts(pod, now_s),
        _age(pod, now_s),
        pod.status.podIP or "<none>",
        pod.spec.nodeName or "<none>",
        pod.status.nominatedNodeName or "<none>",
        f"{passed}/{len(gates)}" if gates else "<none>",
    ]


def node_status(node: core.Node) -> str:
    """The STATUS column: Ready, NotReady or Unknown, then Suspect and SchedulingDisabled."""
    conditions = {condition.type: condition.status for condition in node.status.conditions}
    ready = conditions.get("Ready")
    words = ["Unknown" if ready is None else "Ready" if ready == "True" else "NotReady"]
    if conditions.get("Suspect") == "True":
        words.append("Suspect")
    if node.spec.unschedulable:
        words.append("SchedulingDisabled")
    return ",".join(words)


def _node(node: core.Node, now_s: float) -> list[str]:
    roles = [label.split("/", 1)[1] for label in node.metadata.labels if label.startswith("node-role.kubernetes.io/")]
    addresses = {address.type: address.address for address in node.status.addresses}
    info = node.status.nodeInfo
    return [
        node.metadata.name,
        node_status(node),
        ",".join(sorted(roles)) or "<none>",
        _age(node, now_s),
        info.kubeletVersion,
        addresses.get("InternalIP", "<none>"),
        addresses.get("ExternalIP", "<none>"),
        info.osImage or "<unknown>",
        info.kernelVersion or "<unknown>",
        info.containerRuntimeVersion or "<unknown>",
    ]


def _template(obj: Any) -> list[str]:
    containers = obj.spec.template.spec.containers
    labels = ",".join(f"{key}={value}" for key, value in sorted(obj.spec.selector.matchLabels.items()))
    return [",".join(c.name for c in containers), ",".join(c.image for c in containers), labels or "<none>"]


def _deployment(obj: Any, now_s: float) -> list[str]:
    status = obj.status
    return [
        obj.metadata.name,
        f"{status.readyReplicas}/{obj.spec.replicas}",
        str(status.updatedReplicas),
        str(status.availableReplicas),
        _age(obj, now_s),
        *_template(obj),
    ]


def _replica_set(obj: Any, now_s: float) -> list[str]:
    status = obj.status
    counts = [str(obj.spec.replicas), str(status.replicas), str(status.readyReplicas)]
    return [obj.metadata.name, *counts, _age(obj, now_s), *_template(obj)]


def _external(obj: core.Service) -> str:
    if obj.spec.type == "ExternalName":
        return obj.spec.externalName
    given = [*(i.ip or i.hostname for i in obj.status.loadBalancer.ingress), *obj.spec.externalIPs]
    return ",".join(given) or ("<pending>" if obj.spec.type == "LoadBalancer" else "<none>")


def _service(obj: core.Service, now_s: float) -> list[str]:
    ports = ",".join(
        f"{port.port}{f':{port.nodePort}' if port.nodePort else ''}/{port.protocol or 'TCP'}" for port in obj.spec.ports
    )
    selector = ",".join(f"{key}={value}" for key, value in sorted(obj.spec.selector.items()))
    return [
        obj.metadata.name,
        obj.spec.type or "ClusterIP",
        obj.spec.clusterIP or "<none>",
        _external(obj),
        ports or "<none>",
        _age(obj, now_s),
        selector or "<none>",
    ]


def _endpoint_slice(obj: Any, now_s: float) -> list[str]:
    ports = ",".join(str(port.port) for port in obj.ports) or "<unset>"
    # All of them, ready or not, as kubectl does: `-o yaml` tells which are ready.
    found = [address for endpoint in obj.endpoints for address in endpoint.addresses]
    shown = ",".join(found[:3]) + (f" + {len(found) - 3} more..." if len(found) > 3 else "")
    return [obj.metadata.name, obj.addressType, ports, shown or "<unset>", _age(obj, now_s)]


def _config_map(obj: core.ConfigMap, now_s: float) -> list[str]:
    return [obj.metadata.name, str(len(obj.data) + len(obj.binaryData)), _age(obj, now_s)]


def _event(obj: core.Event, now_s: float) -> list[str]:
    created = obj.metadata.creationTimestamp.seconds
    last_s = obj.lastTimestamp.seconds or obj.eventTime.seconds or created
    first_s = obj.firstTimestamp.seconds or obj.eventTime.seconds or created
    often = f" (x{obj.count} over {age(now_s - first_s)})" if obj.count > 1 else ""
    involved = obj.involvedObject
    return [
        f"{age(now_s - last_s)}{often}",
        obj.type,
        obj.reason,
        f"{involved.kind.lower()}/{involved.name}",
        " ".join(obj.message.split()),
        obj.source.component or obj.reportingComponent or "<none>",
        obj.metadata.name,
    ]


_PRINTERS: dict[str, Printer] = {
    "Namespace": Printer(
        ("NAME", "STATUS", "AGE"), (), lambda o, now: [o.metadata.name, o.status.phase or "Active", _age(o, now)]
    ),
    "Node": Printer(
        ("NAME", "STATUS", "ROLES", "AGE", "VERSION"),
        ("INTERNAL-IP", "EXTERNAL-IP", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME"),
        _node,
    ),
    "Pod": Printer(
        ("NAME", "READY", "STATUS", "RESTARTS", "AGE"), ("IP", "NODE", "NOMINATED NODE", "READINESS GATES"), _pod
    ),
    "ReplicaSet": Printer(
        ("NAME", "DESIRED", "CURRENT", "READY", "AGE"), ("CONTAINERS", "IMAGES", "SELECTOR"), _replica_set
    ),
    "Deployment": Printer(
        ("NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"), ("CONTAINERS", "IMAGES", "SELECTOR"), _deployment
    ),
    "Service": Printer(("NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"), ("SELECTOR",), _service),
    "EndpointSlice": Printer(("NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"), (), _endpoint_slice),
    "ConfigMap": Printer(("NAME", "DATA", "AGE"), (), _config_map),
    "Event": Printer(("LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"), ("SOURCE", "NAME"), _event),
}
