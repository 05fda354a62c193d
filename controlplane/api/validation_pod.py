"""What makes a pod, or a pod template, acceptable, and what of a pod may change. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from controlplane.api.defaults import probes_of
from controlplane.api.faults import Faults
from controlplane.api.names import (
    check_env_name,
    check_label_key,
    check_label_value,
    check_name_label,
    check_name_subdomain,
    check_port_name,
)
from controlplane.api.quantity import QuantityError, to_nano
from controlplane.pb.k8s.core_v1_pb2 import (
    Container,
    ContainerPort,
    LifecycleHandler,
    NodeSelectorTerm,
    Pod,
    PodSpec,
    Probe,
    ProbeHandler,
    ResourceRequirements,
    Toleration,
)
from controlplane.pb.k8s.intstr_pb2 import IntOrString
from controlplane.pb.k8s.resource_pb2 import Quantity

__all__ = ["validate_pod", "validate_pod_template", "validate_pod_update"]

_PROTOCOLS: Final = ("TCP", "UDP", "SCTP")
_NODE_OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")
_EFFECTS: Final = ("", "NoSchedule", "PreferNoSchedule", "NoExecute")
_VOLUME_SOURCES: Final = (
    "emptyDir", "hostPath", "configMap", "secret", "projected", "downwardAPI", "persistentVolumeClaim",
)  # fmt: skip
_FIELD_PATHS: Final = (
    "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
    "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
)  # fmt: skip
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
_GRACE_S_MAX: Final = (1 << 31) - 1


def validate_pod(pod: Pod, faults: Faults) -> None:
    """Name and spec."""
    faults.check("metadata.name", pod.metadata.name, check_name_subdomain(pod.metadata.name))
    _validate_spec(pod.spec, "spec", faults)


def validate_pod_template(spec: PodSpec, path: str, faults: Faults) -> None:
    """A template of Deployment and ReplicaSet: its pods restart for ever and are placed by the scheduler."""
    _validate_spec(spec, path, faults)
    if spec.restartPolicy != "Always":
        faults.unsupported(f"{path}.restartPolicy", spec.restartPolicy, ("Always",))


def validate_pod_update(new: Pod, old: Pod, faults: Faults) -> None:
    """Of a pod's spec only images, the deadline, the grace period, further tolerations and fewer scheduling gates may
    change, and the node may be set once."""
    if old.spec.nodeName and new.spec.nodeName != old.spec.nodeName:
        faults.invalid(
            "spec.nodeName", new.spec.nodeName, f"field is immutable: the pod is bound to {old.spec.nodeName}"
        )
        return
    allowed = PodSpec()
    allowed.CopyFrom(new.spec)
    allowed.nodeName = old.spec.nodeName
    if not old.spec.HasField("nodeName"):
        allowed.ClearField("nodeName")
    for name in ("containers", "initContainers"):
        wanted, stored = getattr(allowed, name), getattr(old.spec, name)
        if len(wanted) == len(stored):
            for one, other in zip(wanted, stored, strict=True):
                one.image = other.image
    for field in ("activeDeadlineSeconds", "terminationGracePeriodSeconds"):
        if old.spec.HasField(field):
            setattr(allowed, field, getattr(old.spec, field))
        else:
            allowed.ClearField(field)
    kept = [t for t in new.spec.tolerations if t in list(old.spec.tolerations)]
    if kept == list(old.spec.tolerations):
        del allowed.tolerations[:]
        allowed.tolerations.extend(old.spec.tolerations)
    gates = [g for g in old.spec.schedulingGates if g in list(new.spec.schedulingGates)]
    if gates == list(new.spec.schedulingGates):
        del allowed.schedulingGates[:]
        allowed.schedulingGates.extend(old.spec.schedulingGates)
    if allowed != old.spec:
        changed = ", ".join(f"spec.{f}" for f in _changed_fields(allowed, old.spec))
        faults.forbidden(
            "spec",
            "pod updates may not change fields other than containers' and initContainers' `image`, "
            "`activeDeadlineSeconds`, `terminationGracePeriodSeconds`, additions to `tolerations` and removals from "
            "`schedulingGates`; "
            f"changed: {changed}",
        )


def _changed_fields(new: PodSpec, old: PodSpec) -> list[str]:
    names = (field.name for field in PodSpec.DESCRIPTOR.fields)
    return [name for name in names if getattr(new, name) != getattr(old, name)]


def _validate_spec(spec: PodSpec, path: str, faults: Faults) -> None:
    faults.one_of(f"{path}.restartPolicy", spec.restartPolicy, ("Always", "OnFailure", "Never"))
    faults.one_of(f"{path}.dnsPolicy", spec.dnsPolicy, ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"))
    faults.between(f"{path}.terminationGracePeriodSeconds", spec.terminationGracePeriodSeconds, 0, _GRACE_S_MAX)
    if spec.HasField("activeDeadlineSeconds"):
        faults.between(f"{path}.activeDeadlineSeconds", spec.activeDeadlineSeconds, 1, _GRACE_S_MAX)
    if spec.nodeName:
        faults.check(f"{path}.nodeName", spec.nodeName, check_name_subdomain(spec.nodeName))
    for key, value in spec.nodeSelector.items():
        faults.check(f"{path}.nodeSelector", key, check_label_key(key))
        faults.check(f"{path}.nodeSelector.{key}", value, check_label_value(value))
    if not spec.containers:
        faults.required(f"{path}.containers", "a pod has at least one container")
    volumes = _validate_volumes(spec, path, faults)
    names: set[str] = set()
    for group in ("initContainers", "containers"):
        for index, container in enumerate(getattr(spec, group)):
            at = f"{path}.{group}[{index}]"
            if container.name in names:
                faults.duplicate(f"{at}.name", container.name)
            names.add(container.name)
            _validate_container(container, at, volumes, faults)
    for index, toleration in enumerate(spec.tolerations):
        _validate_toleration(toleration, f"{path}.tolerations[{index}]", faults)
    _validate_node_affinity(spec, path, faults)
    for index, constraint in enumerate(spec.topologySpreadConstraints):
        at = f"{path}.topologySpreadConstraints[{index}]"
        faults.at_least(f"{at}.maxSkew", constraint.maxSkew, 1)
        faults.check(f"{at}.topologyKey", constraint.topologyKey, check_label_key(constraint.topologyKey))
        faults.one_of(f"{at}.whenUnsatisfiable", constraint.whenUnsatisfiable, ("DoNotSchedule", "ScheduleAnyway"))


def _validate_volumes(spec: PodSpec, path: str, faults: Faults) -> set[str]:
    names: set[str] = set()
    for index, volume in enumerate(spec.volumes):
        at = f"{path}.volumes[{index}]"
        faults.check(f"{at}.name", volume.name, check_name_label(volume.name))
        if volume.name in names:
            faults.duplicate(f"{at}.name", volume.name)
        names.add(volume.name)
        sources = [descriptor.name for descriptor, _ in volume.volumeSource.ListFields()]
        if not sources:
            faults.required(at, f"must specify a volume type, one of {', '.join(_VOLUME_SOURCES)}")
        elif len(sources) > 1:
            faults.forbidden(f"{at}.{sources[1]}", "may not specify more than 1 volume type")
        if volume.volumeSource.HasField("hostPath") and not volume.volumeSource.hostPath.path:
            faults.required(f"{at}.hostPath.path")
        if volume.volumeSource.HasField("configMap") and not volume.volumeSource.configMap.localObjectReference.name:
            faults.required(f"{at}.configMap.name")
    return names


def _validate_container(container: Container, path: str, volumes: set[str], faults: Faults) -> None:
    faults.check(f"{path}.name", container.name, check_name_label(container.name))
    if not container.image:
        faults.required(f"{path}.image")
    elif container.image.strip() != container.image:
        faults.invalid(f"{path}.image", container.image, "must not have leading or trailing whitespace")
    faults.one_of(f"{path}.imagePullPolicy", container.imagePullPolicy, ("Always", "IfNotPresent", "Never"))
    port_names = _validate_ports(container.ports, path, faults)
    for index, variable in enumerate(container.env):
        at = f"{path}.env[{index}]"
        faults.check(f"{at}.name", variable.name, check_env_name(variable.name))
        if variable.HasField("valueFrom"):
            sources = [descriptor.name for descriptor, _ in variable.valueFrom.ListFields()]
            if len(sources) != 1:
                faults.invalid(
                    f"{at}.valueFrom",
                    "",
                    "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef`",
                )
            if variable.value:
                faults.invalid(f"{at}.valueFrom", "", "may not be specified when `value` is not empty")
            if variable.valueFrom.HasField("fieldRef"):
                _validate_field_path(
                    variable.valueFrom.fieldRef.fieldPath, f"{at}.valueFrom.fieldRef.fieldPath", faults
                )
    for index, mount in enumerate(container.volumeMounts):
        at = f"{path}.volumeMounts[{index}]"
        if mount.name not in volumes:
            faults.invalid(
                f"{at}.name", mount.name, f"no such volume; the pod has: {', '.join(sorted(volumes)) or 'none'}"
            )
        if not mount.mountPath:
            faults.required(f"{at}.mountPath")
    _validate_resources(container.resources, f"{path}.resources", faults)
    for name, probe in probes_of(container).items():
        _validate_probe(probe, f"{path}.{name}", port_names, faults, one_success=name != "readinessProbe")
    for descriptor, handler in container.lifecycle.ListFields():
        if isinstance(handler, LifecycleHandler):
            _validate_handler(handler, f"{path}.lifecycle.{descriptor.name}", port_names, faults)


def _validate_field_path(field_path: str, path: str, faults: Faults) -> None:
    base, bracket, _ = field_path.partition("['")
    if bracket and base in ("metadata.labels", "metadata.annotations") and field_path.endswith("']"):
        return
    if field_path not in _FIELD_PATHS:
        faults.unsupported(
            path, field_path, (*_FIELD_PATHS, "metadata.labels['<KEY>']", "metadata.annotations['<KEY>']")
        )


def _validate_ports(ports: Iterable[ContainerPort], path: str, faults: Faults) -> set[str]:
    names: set[str] = set()
    for index, port in enumerate(ports):
        at = f"{path}.ports[{index}]"
        if port.name:
            faults.check(f"{at}.name", port.name, check_port_name(port.name))
            if port.name in names:
                faults.duplicate(f"{at}.name", port.name)
            names.add(port.name)
        faults.between(f"{at}.containerPort", port.containerPort, 1, 65_535)
        if port.hostPort:
            faults.between(f"{at}.hostPort", port.hostPort, 1, 65_535)
        faults.one_of(f"{at}.protocol", port.protocol, _PROTOCOLS)
    return names


def _validate_resources(resources: ResourceRequirements, path: str, faults: Faults) -> None:
    limits = _nanos(resources.limits, f"{path}.limits", faults)
    for name, wanted in _nanos(resources.requests, f"{path}.requests", faults).items():
        if name in limits and wanted > limits[name]:
            requested, limit = resources.requests[name].string, resources.limits[name].string
            faults.invalid(
                f"{path}.requests.{name}", requested, f"must be less than or equal to {name} limit of {limit}"
            )


def _nanos(quantities: Mapping[str, Quantity], path: str, faults: Faults) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, quantity in quantities.items():
        at = f"{path}.{name}"
        faults.check(at, name, check_label_key(name))
        try:
            found[name] = to_nano(quantity.string)
        except QuantityError as error:
            faults.invalid(at, quantity.string, str(error))
            continue
        if found[name] < 0:
            faults.invalid(at, quantity.string, "must be greater than or equal to 0")
    return found


def _validate_probe(probe: Probe, path: str, port_names: set[str], faults: Faults, *, one_success: bool) -> None:
    _validate_handler(probe.handler, path, port_names, faults)
    faults.at_least(f"{path}.initialDelaySeconds", probe.initialDelaySeconds, 0)
    for name in ("timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
        faults.at_least(f"{path}.{name}", getattr(probe, name), 1)
    if one_success and probe.successThreshold > 1:
        faults.invalid(f"{path}.successThreshold", probe.successThreshold, "must be 1")


def _validate_handler(
    handler: ProbeHandler | LifecycleHandler, path: str, port_names: set[str], faults: Faults
) -> None:
    kinds = [descriptor.name for descriptor, _ in handler.ListFields()]
    known = [descriptor.name for descriptor in handler.DESCRIPTOR.fields]
    if not kinds:
        faults.required(path, f"must specify a handler type, one of {', '.join(known)}")
        return
    if len(kinds) > 1:
        faults.forbidden(f"{path}.{kinds[1]}", "may not specify more than 1 handler type")
    if handler.HasField("exec") and not handler.exec.command:
        faults.required(f"{path}.exec.command")
    if handler.HasField("httpGet"):
        get = handler.httpGet
        _validate_port_ref(get.port, f"{path}.httpGet.port", port_names, faults)
        if get.scheme:
            faults.one_of(f"{path}.httpGet.scheme", get.scheme, ("HTTP", "HTTPS"))
        if isinstance(handler, ProbeHandler) and not get.path:
            faults.required(f"{path}.httpGet.path")
    if handler.HasField("tcpSocket"):
        _validate_port_ref(handler.tcpSocket.port, f"{path}.tcpSocket.port", port_names, faults)
    if isinstance(handler, ProbeHandler) and handler.HasField("grpc"):
        faults.between(f"{path}.grpc.port", handler.grpc.port, 1, 65_535)


def _validate_port_ref(port: IntOrString, path: str, port_names: set[str], faults: Faults) -> None:
    if port.type == 0:
        faults.between(path, port.intVal, 1, 65_535)
        return
    faults.check(path, port.strVal, check_port_name(port.strVal))
    if check_port_name(port.strVal) is None and port.strVal not in port_names:
        faults.invalid(
            path, port.strVal, f"no such port of the container; it has: {', '.join(sorted(port_names)) or 'none'}"
        )


def _validate_toleration(toleration: Toleration, path: str, faults: Faults) -> None:
    if toleration.key:
        faults.check(f"{path}.key", toleration.key, check_label_key(toleration.key))
    elif toleration.operator != "Exists":
        faults.invalid(
            f"{path}.operator", toleration.operator, "must be 'Exists' when `key` is empty, which means 'match all'"
        )
    faults.one_of(f"{path}.operator", toleration.operator or "Equal", ("Equal", "Exists"))
    if toleration.operator == "Exists" and toleration.value:
        faults.invalid(f"{path}.value", toleration.value, "must be empty when `operator` is 'Exists'")
    faults.one_of(f"{path}.effect", toleration.effect, _EFFECTS)
    if toleration.HasField("tolerationSeconds") and toleration.effect != "NoExecute":
        faults.invalid(f"{path}.effect", toleration.effect, "must be 'NoExecute' when `tolerationSeconds` is set")


def _validate_node_affinity(spec: PodSpec, path: str, faults: Faults) -> None:
    at = f"{path}.affinity.nodeAffinity"
    affinity = spec.affinity.nodeAffinity
    required = f"{at}.requiredDuringSchedulingIgnoredDuringExecution"
    if affinity.HasField("requiredDuringSchedulingIgnoredDuringExecution"):
        terms = affinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms
        if not terms:
            faults.required(f"{required}.nodeSelectorTerms", "must have at least one node selector term")
        for index, term in enumerate(terms):
            _validate_term(term, f"{required}.nodeSelectorTerms[{index}]", faults)
    for index, preferred in enumerate(affinity.preferredDuringSchedulingIgnoredDuringExecution):
        where = f"{at}.preferredDuringSchedulingIgnoredDuringExecution[{index}]"
        faults.between(f"{where}.weight", preferred.weight, 1, 100)
        _validate_term(preferred.preference, f"{where}.preference", faults)


def _validate_term(term: NodeSelectorTerm, path: str, faults: Faults) -> None:
    for name in ("matchExpressions", "matchFields"):
        for index, requirement in enumerate(getattr(term, name)):
            at = f"{path}.{name}[{index}]"
            faults.check(f"{at}.key", requirement.key, check_label_key(requirement.key))
            faults.one_of(f"{at}.operator", requirement.operator, _NODE_OPERATORS)
            count = len(requirement.values)
            if requirement.operator in ("In", "NotIn") and not count:
                faults.required(f"{at}.values", "must be specified when `operator` is 'In' or 'NotIn'")
            if requirement.operator in ("Exists", "DoesNotExist") and count:
                faults.forbidden(f"{at}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
            if requirement.operator in ("Gt", "Lt") and (count != 1 or not _INTEGER.fullmatch(requirement.values[0])):
                faults.invalid(
                    f"{at}.values", ", ".join(requirement.values), "must be one integer when `operator` is 'Lt' or 'Gt'"
                )
