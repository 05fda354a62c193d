"""What makes an object of each kind acceptable, except pods (``validation_pod``). Pure.

Every function adds to a :class:`Faults`; every fault names the field and what is allowed. ``*_update`` functions see
the stored object too and guard what may not change.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any, Final

from controlplane.api.faults import Faults
from controlplane.api.names import (
    check_label_key,
    check_label_value,
    check_name_label,
    check_name_service,
    check_name_subdomain,
    check_port_name,
)
from controlplane.api.validation_pod import validate_pod_template
from controlplane.base.limits import ANNOTATIONS_BYTES_MAX
from controlplane.pb.k8s.apps_v1_pb2 import Deployment, ReplicaSet
from controlplane.pb.k8s.core_v1_pb2 import ConfigMap, Event, Namespace, Node, Service
from controlplane.pb.k8s.discovery_v1_pb2 import EndpointSlice
from controlplane.pb.k8s.intstr_pb2 import IntOrString
from controlplane.pb.k8s.meta_v1_pb2 import LabelSelector, ObjectMeta

__all__ = [
    "selector_matches_labels",
    "validate_config_map",
    "validate_config_map_update",
    "validate_deployment",
    "validate_deployment_update",
    "validate_endpoint_slice",
    "validate_endpoint_slice_update",
    "validate_event",
    "validate_label_selector",
    "validate_meta",
    "validate_namespace",
    "validate_node",
    "validate_replica_set",
    "validate_replica_set_update",
    "validate_service",
    "validate_service_update",
]

_OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist")
_PROTOCOLS: Final = ("TCP", "UDP", "SCTP")
_TAINT_EFFECTS: Final = ("NoSchedule", "PreferNoSchedule", "NoExecute")


# -- metadata -------------------------------------------------------------------------------------------------------


def validate_meta(meta: ObjectMeta, faults: Faults, path: str = "metadata") -> None:
    """Labels, annotations, owners and finalizers; names are checked per kind."""
    validate_labels(meta.labels, f"{path}.labels", faults)
    size = 0
    for key, value in meta.annotations.items():
        faults.check(f"{path}.annotations", key, check_label_key(key.lower()))
        size += len(key) + len(value)
    if size > ANNOTATIONS_BYTES_MAX:
        faults.invalid(f"{path}.annotations", f"{size} bytes", f"must have at most {ANNOTATIONS_BYTES_MAX} bytes")
    controllers = 0
    for index, owner in enumerate(meta.ownerReferences):
        at = f"{path}.ownerReferences[{index}]"
        for name in ("apiVersion", "kind", "name", "uid"):
            if not getattr(owner, name):
                faults.required(f"{at}.{name}")
        controllers += owner.controller
    if controllers > 1:
        faults.invalid(f"{path}.ownerReferences", f"{controllers} controllers", "only one owner may be the controller")
    for index, finalizer in enumerate(meta.finalizers):
        faults.check(f"{path}.finalizers[{index}]", finalizer, check_label_key(finalizer))


def validate_labels(labels: Mapping[str, str], path: str, faults: Faults) -> None:
    """Keys and values of a set of labels."""
    for key, value in labels.items():
        faults.check(path, key, check_label_key(key))
        faults.check(f"{path}.{key}", value, check_label_value(value))


def validate_label_selector(selector: LabelSelector, path: str, faults: Faults) -> None:
    """Keys, operators and values."""
    validate_labels(selector.matchLabels, f"{path}.matchLabels", faults)
    for index, requirement in enumerate(selector.matchExpressions):
        at = f"{path}.matchExpressions[{index}]"
        faults.check(f"{at}.key", requirement.key, check_label_key(requirement.key))
        faults.one_of(f"{at}.operator", requirement.operator, _OPERATORS)
        if requirement.operator in ("In", "NotIn") and not requirement.values:
            faults.required(f"{at}.values", "must be specified when `operator` is 'In' or 'NotIn'")
        if requirement.operator in ("Exists", "DoesNotExist") and requirement.values:
            faults.forbidden(f"{at}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
        for number, value in enumerate(requirement.values):
            faults.check(f"{at}.values[{number}]", value, check_label_value(value))


def selector_matches_labels(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether all requirements hold; an empty selector matches everything."""
    if any(labels.get(key) != value for key, value in selector.matchLabels.items()):
        return False
    for requirement in selector.matchExpressions:
        value = labels.get(requirement.key)
        if requirement.operator == "In":
            holds = value is not None and value in requirement.values
        elif requirement.operator == "NotIn":
            holds = value is None or value not in requirement.values
        else:
            holds = (value is not None) == (requirement.operator == "Exists")
        if not holds:
            return False
    return True


# -- cluster-scoped kinds -------------------------------------------------------------------------------------------


def validate_namespace(namespace: Namespace, faults: Faults) -> None:
    """Its name becomes part of DNS names, so it is a label."""
    faults.check("metadata.name", namespace.metadata.name, check_name_label(namespace.metadata.name))
    for index, finalizer in enumerate(namespace.spec.finalizers):
        faults.check(f"spec.finalizers[{index}]", finalizer, check_label_key(finalizer))


def validate_node(node: Node, faults: Faults) -> None:
    """Name, taints and pod ranges."""
    faults.check("metadata.name", node.metadata.name, check_name_subdomain(node.metadata.name))
    seen: set[tuple[str, str]] = set()
    for index, taint in enumerate(node.spec.taints):
        at = f"spec.taints[{index}]"
        faults.check(f"{at}.key", taint.key, check_label_key(taint.key))
        faults.check(f"{at}.value", taint.value, check_label_value(taint.value))
        faults.one_of(f"{at}.effect", taint.effect, _TAINT_EFFECTS)
        if (taint.key, taint.effect) in seen:
            faults.duplicate(at, f"{taint.key}:{taint.effect}")
        seen.add((taint.key, taint.effect))
    for at, cidr in (
        ("spec.podCIDR", node.spec.podCIDR),
        *((f"spec.podCIDRs[{i}]", c) for i, c in enumerate(node.spec.podCIDRs)),
    ):
        if cidr:
            _check_cidr(cidr, at, faults)


# -- workloads ------------------------------------------------------------------------------------------------------


def validate_deployment(deployment: Deployment, faults: Faults) -> None:
    """Replicas, selector, template and strategy."""
    spec = deployment.spec
    faults.check("metadata.name", deployment.metadata.name, check_name_subdomain(deployment.metadata.name))
    _validate_replicated(spec, faults)
    for name in ("minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"):
        faults.at_least(f"spec.{name}", getattr(spec, name), 0)
    if spec.HasField("progressDeadlineSeconds") and spec.progressDeadlineSeconds <= spec.minReadySeconds:
        faults.invalid(
            "spec.progressDeadlineSeconds", spec.progressDeadlineSeconds, "must be greater than minReadySeconds"
        )
    strategy = spec.strategy
    faults.one_of("spec.strategy.type", strategy.type, ("Recreate", "RollingUpdate"))
    if strategy.type == "Recreate" and strategy.HasField("rollingUpdate"):
        faults.forbidden("spec.strategy.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'")
    if strategy.type == "RollingUpdate":
        rolling = strategy.rollingUpdate
        unavailable = _int_or_percent(rolling.maxUnavailable, "spec.strategy.rollingUpdate.maxUnavailable", faults)
        surge = _int_or_percent(rolling.maxSurge, "spec.strategy.rollingUpdate.maxSurge", faults)
        if unavailable == 0 and surge == 0:
            faults.invalid("spec.strategy.rollingUpdate.maxUnavailable", 0, "may not be 0 when `maxSurge` is 0")
        if rolling.maxUnavailable.type == 1 and unavailable > 100:
            faults.invalid(
                "spec.strategy.rollingUpdate.maxUnavailable",
                rolling.maxUnavailable.strVal,
                "must not be greater than 100%",
            )


def validate_deployment_update(new: Deployment, old: Deployment, faults: Faults) -> None:
    """The selector says whose the pods are: it never changes."""
    _immutable("spec.selector", new.spec.selector, old.spec.selector, faults)


def validate_replica_set(replica_set: ReplicaSet, faults: Faults) -> None:
    """Replicas, selector and template."""
    faults.check("metadata.name", replica_set.metadata.name, check_name_subdomain(replica_set.metadata.name))
    faults.at_least("spec.minReadySeconds", replica_set.spec.minReadySeconds, 0)
    _validate_replicated(replica_set.spec, faults)


def validate_replica_set_update(new: ReplicaSet, old: ReplicaSet, faults: Faults) -> None:
    """The selector never changes."""
    _immutable("spec.selector", new.spec.selector, old.spec.selector, faults)


def _validate_replicated(spec: Any, faults: Faults) -> None:
    faults.at_least("spec.replicas", spec.replicas, 0)
    if not spec.HasField("selector"):
        faults.required("spec.selector")
    elif not spec.selector.matchLabels and not spec.selector.matchExpressions:
        faults.invalid("spec.selector", "", "empty selector is invalid: give matchLabels or matchExpressions")
    else:
        validate_label_selector(spec.selector, "spec.selector", faults)
        if not selector_matches_labels(spec.selector, spec.template.metadata.labels):
            faults.invalid(
                "spec.template.metadata.labels",
                dict(spec.template.metadata.labels),
                "`selector` does not match template `labels`",
            )
    validate_meta(spec.template.metadata, faults, "spec.template.metadata")
    validate_pod_template(spec.template.spec, "spec.template.spec", faults)


def _int_or_percent(value: IntOrString, path: str, faults: Faults) -> int:
    """The number, for comparing with zero and 100; faults for what is neither a count nor a percentage."""
    if value.type == 0:
        faults.at_least(path, value.intVal, 0)
        return value.intVal
    digits = value.strVal.removesuffix("%")
    if not value.strVal.endswith("%") or not (digits.isascii() and digits.isdigit()):
        faults.invalid(path, value.strVal, "a valid percent string must be digits followed by '%' (e.g. '25%')")
        return -1
    return int(digits[:9])


# -- services and endpoints -----------------------------------------------------------------------------------------


def validate_service(service: Service, faults: Faults) -> None:
    """Type, ports, addresses, affinity."""
    spec = service.spec
    faults.check("metadata.name", service.metadata.name, check_name_service(service.metadata.name))
    faults.one_of("spec.type", spec.type, ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"))
    faults.one_of("spec.sessionAffinity", spec.sessionAffinity, ("ClientIP", "None"))
    if spec.sessionAffinity == "ClientIP":
        path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
        faults.between(path, spec.sessionAffinityConfig.clientIP.timeoutSeconds, 1, 86_400)
    validate_labels(spec.selector, "spec.selector", faults)
    headless = spec.clusterIP == "None"
    if spec.type == "ExternalName":
        faults.check(
            "spec.externalName", spec.externalName, check_name_subdomain(spec.externalName.rstrip(".").lower())
        )
        if spec.clusterIP:
            faults.forbidden("spec.clusterIP", "may not be set for ExternalName services")
    elif not spec.ports and not headless:
        faults.required("spec.ports")
    if headless and spec.type in ("NodePort", "LoadBalancer"):
        faults.invalid("spec.clusterIP", "None", f"may not be set to 'None' for {spec.type} services")
    elif spec.clusterIP and not headless:
        _check_ip(spec.clusterIP, "spec.clusterIP", faults)
    if spec.clusterIPs and (len(spec.clusterIPs) > 1 or spec.clusterIPs[0] != spec.clusterIP):
        faults.invalid(
            "spec.clusterIPs",
            ", ".join(spec.clusterIPs),
            "must be exactly [spec.clusterIP]: services here have one address",
        )
    if spec.internalTrafficPolicy:
        faults.one_of("spec.internalTrafficPolicy", spec.internalTrafficPolicy, ("Cluster", "Local"))
    for index, address in enumerate(spec.externalIPs):
        _check_ip(address, f"spec.externalIPs[{index}]", faults)
    _validate_service_ports(service, faults)


def _validate_service_ports(service: Service, faults: Faults) -> None:
    names: set[str] = set()
    numbers: set[tuple[str, int]] = set()
    for index, port in enumerate(service.spec.ports):
        at = f"spec.ports[{index}]"
        if not port.name and len(service.spec.ports) > 1:
            faults.required(f"{at}.name", "services with several ports must name each")
        elif port.name:
            faults.check(f"{at}.name", port.name, check_name_label(port.name))
            if port.name in names:
                faults.duplicate(f"{at}.name", port.name)
            names.add(port.name)
        faults.between(f"{at}.port", port.port, 1, 65_535)
        faults.one_of(f"{at}.protocol", port.protocol, _PROTOCOLS)
        if port.targetPort.type == 1:
            faults.check(f"{at}.targetPort", port.targetPort.strVal, check_port_name(port.targetPort.strVal))
        else:
            faults.between(f"{at}.targetPort", port.targetPort.intVal, 1, 65_535)
        if port.nodePort:
            faults.between(f"{at}.nodePort", port.nodePort, 1, 65_535)
            if service.spec.type not in ("NodePort", "LoadBalancer"):
                faults.forbidden(f"{at}.nodePort", f"may not be used when `type` is '{service.spec.type}'")
        if (port.protocol, port.port) in numbers:
            faults.duplicate(at, f"{port.protocol}/{port.port}")
        numbers.add((port.protocol, port.port))


def validate_service_update(new: Service, old: Service, faults: Faults) -> None:
    """An address, once given, stays, unless the type changes to or from ExternalName."""
    if "ExternalName" not in (new.spec.type, old.spec.type) and old.spec.clusterIP:
        _immutable("spec.clusterIP", new.spec.clusterIP, old.spec.clusterIP, faults)


def validate_endpoint_slice(endpoint_slice: EndpointSlice, faults: Faults) -> None:
    """Address family, addresses and ports."""
    faults.check("metadata.name", endpoint_slice.metadata.name, check_name_subdomain(endpoint_slice.metadata.name))
    faults.one_of("addressType", endpoint_slice.addressType, ("IPv4", "IPv6", "FQDN"))
    if len(endpoint_slice.endpoints) > 1000:
        faults.invalid("endpoints", f"{len(endpoint_slice.endpoints)} endpoints", "must have at most 1000 items")
    for index, endpoint in enumerate(endpoint_slice.endpoints):
        at = f"endpoints[{index}]"
        if not 1 <= len(endpoint.addresses) <= 100:
            faults.invalid(f"{at}.addresses", f"{len(endpoint.addresses)} addresses", "must have 1 to 100 items")
        for number, address in enumerate(endpoint.addresses):
            where = f"{at}.addresses[{number}]"
            if endpoint_slice.addressType == "FQDN":
                faults.check(where, address, check_name_subdomain(address))
            else:
                _check_ip(address, where, faults, version=6 if endpoint_slice.addressType == "IPv6" else 4)
        if endpoint.nodeName:
            faults.check(f"{at}.nodeName", endpoint.nodeName, check_name_subdomain(endpoint.nodeName))
    names: set[str] = set()
    for index, port in enumerate(endpoint_slice.ports):
        at = f"ports[{index}]"
        if port.name in names:
            faults.duplicate(f"{at}.name", port.name)
        names.add(port.name)
        if port.name:
            faults.check(f"{at}.name", port.name, check_name_label(port.name))
        faults.one_of(f"{at}.protocol", port.protocol, _PROTOCOLS)
        if port.HasField("port"):
            faults.between(f"{at}.port", port.port, 1, 65_535)


def validate_endpoint_slice_update(new: EndpointSlice, old: EndpointSlice, faults: Faults) -> None:
    """The address family never changes."""
    _immutable("addressType", new.addressType, old.addressType, faults)


# -- data and events ------------------------------------------------------------------------------------------------


def validate_config_map(config_map: ConfigMap, faults: Faults) -> None:
    """Keys are file names, each in one of data and binaryData."""
    faults.check("metadata.name", config_map.metadata.name, check_name_subdomain(config_map.metadata.name))
    for path, keys in (("data", config_map.data), ("binaryData", config_map.binaryData)):
        _check_config_keys(keys, path, faults)
    for key in set(config_map.data) & set(config_map.binaryData):
        faults.invalid(f"data.{key}", key, "a key may not be in both data and binaryData")


def _check_config_keys(keys: Iterable[str], path: str, faults: Faults) -> None:
    for key in keys:
        valid = 0 < len(key) <= 253 and key not in (".", "..") and all(c.isalnum() or c in "-_." for c in key)
        if not valid or not key.isascii() or key.startswith(".."):
            faults.invalid(
                f"{path}.{key}",
                key,
                "a valid config key is 1 to 253 letters, digits, '-', '_' or '.', and does not start with '..'",
            )


def validate_config_map_update(new: ConfigMap, old: ConfigMap, faults: Faults) -> None:
    """Immutable means immutable, also of itself."""
    if not old.immutable:
        return
    if not new.immutable:
        faults.forbidden("immutable", "field is immutable when `immutable` is set")
    for name in ("data", "binaryData"):
        if dict(getattr(new, name)) != dict(getattr(old, name)):
            faults.forbidden(name, "field is immutable when `immutable` is set")


def validate_event(event: Event, faults: Faults) -> None:
    """It is about an object of its own namespace (cluster-scoped ones: of `default`)."""
    faults.check("metadata.name", event.metadata.name, check_name_subdomain(event.metadata.name))
    faults.one_of("type", event.type, ("Normal", "Warning"))
    involved = event.involvedObject.namespace
    if involved and involved != event.metadata.namespace:
        faults.invalid(
            "involvedObject.namespace", involved, f"must be the event's own namespace, {event.metadata.namespace}"
        )
    if len(event.message) > 16_384:
        faults.invalid("message", f"{len(event.message)} characters", "must have at most 16384 characters")


# -- shared ---------------------------------------------------------------------------------------------------------


def _immutable(path: str, new: object, old: object, faults: Faults) -> None:
    if new != old:
        faults.invalid(path, new if isinstance(new, str) else "(changed)", "field is immutable")


def _check_ip(text: str, path: str, faults: Faults, *, version: int = 4) -> None:
    try:
        if ipaddress.ip_address(text).version == version:
            return
    except ValueError:
        pass  # reported below, with the other family
    faults.invalid(
        path, text, f"must be a valid IPv{version} address (e.g. {'10.9.8.7' if version == 4 else '2001:db8::ffff'})"
    )


def _check_cidr(text: str, path: str, faults: Faults) -> None:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        faults.invalid(path, text, f"must be a network such as 10.9.8.0/24: {error}")
