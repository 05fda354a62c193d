"""One row of columns per kind, as kubectl prints them. Pure: object and time in, cells out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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


def row(info: KindInfo, obj: Any, now_s: float, *, wide: bool, namespaces: bool) -> list[str]:
    """The object's row under :func:`headings`. ``now_s``: seconds since 1970."""
    printer = printer_of(info)
    cells = list(printer.cells(obj, now_s))
    first = [obj.metadata.namespace] if namespaces and info.namespaced else []
    return [*first, *cells[: len(printer.columns) + (len(printer.wide) if wide else 0)]]


def printer_of(info: KindInfo) -> Printer:
    """The printer of a kind."""
    return _PRINTERS[info.kind]


def _age(obj: Any, now_s: float) -> str:
    created = obj.metadata.creationTimestamp
    return age(now_s - created.seconds) if created.seconds else "<unknown>"


def pod_status(pod: core.Pod) -> str:
    """The STATUS column: the phase, or the most telling reason of a container; Terminating wins."""
    reason = pod.status.reason or pod.status.phase or "Pending"
    for status in pod.status.containerStatuses:
        if status.state.HasField("waiting") and status.state.waiting.reason:
            reason = status.state.waiting.reason
        elif status.state.HasField("terminated"):
            ended = status.state.terminated
            reason = ended.reason or (f"ExitCode:{ended.exitCode}" if not ended.signal else f"Signal:{ended.signal}")
    return "Terminating" if pod.metadata.HasField("deletionTimestamp") else reason


def _pod(pod: core.Pod, now_s: float) -> list[str]:
    statuses = pod.status.containerStatuses
    ready = sum(status.ready for status in statuses)
    restarts = sum(status.restartCount for status in statuses)
    return [
        pod.metadata.name,
        f"{ready}/{len(pod.spec.containers)}",
        pod_status(pod),
        str(restarts),
        _age(pod, now_s),
        pod.status.podIP or "<none>",
        pod.spec.nodeName or "<none>",
    ]


def node_status(node: core.Node) -> str:
    """The STATUS column: Ready, NotReady or Unknown, then Suspect and SchedulingDisabled."""
    conditions = {condition.type: condition.status for condition in node.status.conditions}
    words = ["Ready" if conditions.get("Ready") == "True" else "NotReady"]
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


def _service(obj: core.Service, now_s: float) -> list[str]:
    ports = ",".join(f"{port.port}/{port.protocol or 'TCP'}" for port in obj.spec.ports)
    selector = ",".join(f"{key}={value}" for key, value in sorted(obj.spec.selector.items()))
    return [
        obj.metadata.name,
        obj.spec.type or "ClusterIP",
        obj.spec.clusterIP or "None",
        ",".join(obj.spec.externalIPs) or "<none>",
        ports or "<none>",
        _age(obj, now_s),
        selector or "<none>",
    ]


def _endpoint_slice(obj: Any, now_s: float) -> list[str]:
    ports = ",".join(str(port.port) for port in obj.ports) or "<unset>"
    ready = [address for endpoint in obj.endpoints if endpoint.conditions.ready for address in endpoint.addresses]
    shown = ",".join(ready[:3]) + (f" + {len(ready) - 3} more..." if len(ready) > 3 else "")
    return [obj.metadata.name, obj.addressType, ports, shown or "<unset>", _age(obj, now_s)]


def _config_map(obj: core.ConfigMap, now_s: float) -> list[str]:
    return [obj.metadata.name, str(len(obj.data) + len(obj.binaryData)), _age(obj, now_s)]


def _event(obj: core.Event, now_s: float) -> list[str]:
    seen = obj.lastTimestamp.seconds or obj.eventTime.seconds or obj.metadata.creationTimestamp.seconds
    count = f" (x{obj.count})" if obj.count > 1 else ""
    involved = obj.involvedObject
    return [
        age(now_s - seen) + count,
        obj.type,
        obj.reason,
        f"{involved.kind.lower()}/{involved.name}",
        obj.message.strip(),
        obj.source.component or obj.reportingComponent,
    ]


_PRINTERS: dict[str, Printer] = {
    "Namespace": Printer(
        ("NAME", "STATUS", "AGE"), (), lambda o, now: [o.metadata.name, o.status.phase or "Active", _age(o, now)]
    ),
    "Node": Printer(
        ("NAME", "STATUS", "ROLES", "AGE", "VERSION"),
        ("INTERNAL-IP", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME"),
        _node,
    ),
    "Pod": Printer(("NAME", "READY", "STATUS", "RESTARTS", "AGE"), ("IP", "NODE"), _pod),
    "ReplicaSet": Printer(
        ("NAME", "DESIRED", "CURRENT", "READY", "AGE"), ("CONTAINERS", "IMAGES", "SELECTOR"), _replica_set
    ),
    "Deployment": Printer(
        ("NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"), ("CONTAINERS", "IMAGES", "SELECTOR"), _deployment
    ),
    "Service": Printer(("NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"), ("SELECTOR",), _service),
    "EndpointSlice": Printer(("NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"), (), _endpoint_slice),
    "ConfigMap": Printer(
        ("NAME", "DATA", "AGE"),
        (),
        lambda o, now: [o.metadata.name, str(len(o.data) + len(o.binaryData)), _age(o, now)],
    ),
    "Event": Printer(("LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"), ("SOURCE",), _event),
}
