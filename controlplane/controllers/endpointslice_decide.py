"""What the EndpointSlices of a Service should be: pure decisions from Service, pods and nodes to slice writes.

Owns: which pods are endpoints, their conditions, named target ports, and the packing into slices with little churn.
Must not know: the API, proxies, clocks.

Invariants: an endpoint is ``ready`` only while its pod is ready, not terminating, and on a node that serves (not
Suspect, not NotReady); a slice holds at most ENDPOINTS_PER_SLICE endpoints; slices that someone else manages are left
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from controlplane.client.objects import pod_is_finished, pod_is_ready
from controlplane.controllers.ownership import controller_reference
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod, Service, ServicePort
from controlplane.pb.k8s.discovery_v1_pb2 import Endpoint, EndpointPort, EndpointSlice

__all__ = [
    "ENDPOINTS_PER_SLICE",
    "MANAGED_BY",
    "MANAGER",
    "SERVICE_NAME",
    "SlicePlan",
    "decide",
    "wants_slices",
]

ENDPOINTS_PER_SLICE = 100

SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
MANAGER = "endpointslice-controller.k8s.io"
HEADLESS = "service.kubernetes.io/headless"
ZONE = "topology.kubernetes.io/zone"

#: Ports of a slice as a hashable, ordered value.
_Ports = tuple[tuple[str, str, int, str], ...]


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """Slices to create (unnamed: generateName), to update (with the version read), and to delete."""

    create: tuple[EndpointSlice, ...] = field(default=())
    update: tuple[EndpointSlice, ...] = field(default=())
    delete: tuple[EndpointSlice, ...] = field(default=())

    @property
    def empty(self) -> bool:
        return not (self.create or self.update or self.delete)


def wants_slices(service: Service) -> bool:
    """Whether this controller makes slices for the Service: it selects pods and is not a mere name."""
    return bool(service.spec.selector) and service.spec.type != "ExternalName"


def is_managed(slice_: EndpointSlice) -> bool:
    """Whether the slice is ours to change."""
    return slice_.metadata.labels.get(MANAGED_BY) == MANAGER


def decide(
    service: Service,
    pods: Iterable[Pod],
    node_of: Callable[[str], Node | None],
    serves: Callable[[Node], bool],
    slices: Sequence[EndpointSlice],
) -> SlicePlan:
    """Bring the Service's managed slices to its pods.

    Args:
        service: as stored, not being deleted.
        pods: the pods of its namespace that its selector matches.
        node_of: the Node of a name, None if it is gone.
        serves: whether traffic may go to a node.
        slices: every slice labelled with the Service's name.
    """
    ours = sorted((s for s in slices if is_managed(s)), key=lambda s: s.metadata.name)
    if not wants_slices(service):
        return SlicePlan(delete=tuple(ours))
    wanted: dict[_Ports, dict[str, Endpoint]] = {}
    for pod in sorted(pods, key=lambda p: (p.metadata.name, p.metadata.uid)):
        endpoint = _endpoint(service, pod, node_of, serves)
        if endpoint is not None:
            wanted.setdefault(_ports(service, pod), {})[pod.metadata.uid] = endpoint
    if not wanted:
        wanted[_ports(service, None)] = {}  # an empty slice says "no endpoints", which is not "not looked yet"
    create: list[EndpointSlice] = []
    update: list[EndpointSlice] = []
    delete: list[EndpointSlice] = []
    by_ports: dict[_Ports, list[EndpointSlice]] = {}
    for slice_ in ours:
        by_ports.setdefault(_ports_of(slice_), []).append(slice_)
    for ports, present in by_ports.items():
        if ports not in wanted:
            delete.extend(present)
    for ports, endpoints in wanted.items():
        _pack(service, ports, endpoints, by_ports.get(ports, []), create, update, delete)
    return SlicePlan(tuple(create), tuple(update), tuple(delete))


def _endpoint(
    service: Service, pod: Pod, node_of: Callable[[str], Node | None], serves: Callable[[Node], bool]
) -> Endpoint | None:
    """The endpoint of a pod; None while it has no address or will never run again."""
    if not pod.status.podIP or not pod.spec.nodeName or pod_is_finished(pod):
        return None
    node = node_of(pod.spec.nodeName)
    reachable = node is not None and serves(node)
    serving = (pod_is_ready(pod) or service.spec.publishNotReadyAddresses) and reachable
    terminating = pod.metadata.HasField("deletionTimestamp")
    ready = serving and (not terminating or service.spec.publishNotReadyAddresses)
    endpoint = Endpoint(addresses=[pod.status.podIP], nodeName=pod.spec.nodeName)
    endpoint.conditions.ready = ready
    endpoint.conditions.serving = serving
    endpoint.conditions.terminating = terminating
    endpoint.targetRef.kind = "Pod"
    endpoint.targetRef.namespace = pod.metadata.namespace
    endpoint.targetRef.name = pod.metadata.name
    endpoint.targetRef.uid = pod.metadata.uid
    if pod.spec.hostname and pod.spec.subdomain == service.metadata.name:
        endpoint.hostname = pod.spec.hostname
    if node is not None and ZONE in node.metadata.labels:
        endpoint.zone = node.metadata.labels[ZONE]
    return endpoint


def _ports(service: Service, pod: Pod | None) -> _Ports:
    """The Service's ports as this pod serves them: a named target port is looked up in its containers; a pod without
    the name does not serve that port."""
    found: list[tuple[str, str, int, str]] = []
    for port in service.spec.ports:
        number = _target_port(port, pod)
        if number is not None:
            found.append((port.name, port.protocol or "TCP", number, port.appProtocol))
    return tuple(found)


def _target_port(port: ServicePort, pod: Pod | None) -> int | None:
    target = port.targetPort
    if target.strVal:
        if pod is None:
            return None
        return next(
            (
                p.containerPort
                for container in pod.spec.containers
                for p in container.ports
                if p.name == target.strVal and (p.protocol or "TCP") == (port.protocol or "TCP")
            ),
            None,
        )
    return target.intVal or port.port


def _ports_of(slice_: EndpointSlice) -> _Ports:
    return tuple((p.name, p.protocol, p.port, p.appProtocol) for p in slice_.ports)


def _pack(
    service: Service,
    ports: _Ports,
    endpoints: dict[str, Endpoint],
    present: Sequence[EndpointSlice],
    create: list[EndpointSlice],
    update: list[EndpointSlice],
    delete: list[EndpointSlice],
) -> None:
    """Endpoints stay in the slice they are in; new ones fill the slices with room, fullest first; then new slices."""
    homeless = dict(endpoints)
    kept: list[tuple[EndpointSlice, list[Endpoint]]] = []
    for slice_ in present:
        stay = [homeless.pop(e.targetRef.uid) for e in slice_.endpoints if e.targetRef.uid in homeless]
        kept.append((slice_, stay[:ENDPOINTS_PER_SLICE]))
    waiting = list(homeless.values())
    for _, stay in sorted(kept, key=lambda k: -len(k[1])):
        room = ENDPOINTS_PER_SLICE - len(stay)
        stay.extend(waiting[:room])
        del waiting[:room]
    for i, (slice_, stay) in enumerate(kept):
        last = i == len(kept) - 1 and not endpoints
        if not stay and not last:
            delete.append(slice_)
            continue
        new = _slice(service, ports, stay)
        if list(slice_.endpoints) != stay or dict(slice_.metadata.labels) != dict(new.metadata.labels):
            changed = EndpointSlice()
            changed.CopyFrom(slice_)
            del changed.endpoints[:]
            changed.endpoints.extend(stay)
            changed.metadata.labels.clear()
            changed.metadata.labels.update(new.metadata.labels)
            update.append(changed)
    while waiting or not (kept or _has(create, ports)):
        create.append(_slice(service, ports, waiting[:ENDPOINTS_PER_SLICE]))
        del waiting[:ENDPOINTS_PER_SLICE]


def _has(create: Sequence[EndpointSlice], ports: _Ports) -> bool:
    """Whether a slice with those ports is about to be made."""
    return any(_ports_of(s) == ports for s in create)


def _slice(service: Service, ports: _Ports, endpoints: Sequence[Endpoint]) -> EndpointSlice:
    slice_ = EndpointSlice(addressType="IPv4")
    slice_.metadata.generateName = f"{service.metadata.name}-"
    slice_.metadata.namespace = service.metadata.namespace
    slice_.metadata.labels.update(
        {k: v for k, v in service.metadata.labels.items() if k not in (SERVICE_NAME, MANAGED_BY, HEADLESS)}
    )
    slice_.metadata.labels[SERVICE_NAME] = service.metadata.name
    slice_.metadata.labels[MANAGED_BY] = MANAGER
    if service.spec.clusterIP == "None":
        slice_.metadata.labels[HEADLESS] = ""
    slice_.metadata.ownerReferences.append(controller_reference(service))
    slice_.endpoints.extend(endpoints)
    for name, protocol, port, app_protocol in ports:
        added = EndpointPort(name=name, protocol=protocol, port=port)
        if app_protocol:
            added.appProtocol = app_protocol
        slice_.ports.append(added)
    return slice_
