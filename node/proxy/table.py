"""From Services and EndpointSlices to what must be listened on, and where connections may go. Pure.

Source: the Service API of Kubernetes (port, targetPort and endpoint port matched by *name*; one EndpointSlice may
carry several ports; an unset ``ready`` means ready).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from controlplane.pb.k8s.core_v1_pb2 import Service
from controlplane.pb.k8s.discovery_v1_pb2 import EndpointSlice

__all__ = ["Frontend", "ServicePort", "build"]

_SERVICE_LABEL = "kubernetes.io/service-name"
_AFFINITY_DEFAULT_S = 10_800
_SUPPORTED = frozenset({"TCP", "UDP"})


@dataclass(frozen=True, slots=True, order=True)
class Frontend:
    """An address to listen on."""

    ip: str
    port: int
    protocol: str  # TCP | UDP


@dataclass(frozen=True, slots=True)
class ServicePort:
    """What stands behind a frontend. ``affinity_s`` 0: none. ``endpoints``: sorted (ip, port) of the ready ones."""

    namespace: str
    service: str
    uid: str
    port_name: str
    endpoints: tuple[tuple[str, int], ...]
    affinity_s: int


def build(services: Iterable[Service], slices: Iterable[EndpointSlice]) -> dict[Frontend, ServicePort]:
    """The whole table. Of two services that claim one frontend the older keeps it (then the lower name)."""
    by_service: dict[tuple[str, str], list[EndpointSlice]] = {}
    for endpoint_slice in slices:
        owner = endpoint_slice.metadata.labels.get(_SERVICE_LABEL)
        if owner:
            by_service.setdefault((endpoint_slice.metadata.namespace, owner), []).append(endpoint_slice)
    table: dict[Frontend, ServicePort] = {}
    for service in sorted(services, key=_seniority):
        meta, spec = service.metadata, service.spec
        if spec.clusterIP in {"", "None"} or spec.type == "ExternalName":
            continue
        affinity_s = _affinity_s(service)
        mine = by_service.get((meta.namespace, meta.name), [])
        for port in spec.ports:
            protocol = port.protocol or "TCP"
            if protocol not in _SUPPORTED:
                continue
            endpoints = _endpoints(mine, port.name, protocol, unready_too=spec.publishNotReadyAddresses)
            for ip in (spec.clusterIP, *spec.externalIPs):
                table.setdefault(
                    Frontend(ip, port.port, protocol),
                    ServicePort(meta.namespace, meta.name, meta.uid, port.name, endpoints, affinity_s),
                )
    return table


def _seniority(service: Service) -> tuple[int, str, str]:
    meta = service.metadata
    return meta.creationTimestamp.seconds, meta.namespace, meta.name


def _affinity_s(service: Service) -> int:
    if service.spec.sessionAffinity != "ClientIP":
        return 0
    return service.spec.sessionAffinityConfig.clientIP.timeoutSeconds or _AFFINITY_DEFAULT_S


def _endpoints(
    slices: list[EndpointSlice], port_name: str, protocol: str, *, unready_too: bool
) -> tuple[tuple[str, int], ...]:
    found: set[tuple[str, int]] = set()
    for endpoint_slice in slices:
        numbers = [p.port for p in endpoint_slice.ports if p.name == port_name and (p.protocol or "TCP") == protocol]
        for endpoint in endpoint_slice.endpoints:
            ready = endpoint.conditions.ready or not endpoint.conditions.HasField("ready")
            if (ready or unready_too) and endpoint.addresses:
                found.update((endpoint.addresses[0], number) for number in numbers)
    return tuple(sorted(found))
