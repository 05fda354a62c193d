"""What the API server fills in when a manifest says nothing. Pure; every function completes its message in place.

The values are Kubernetes' documented defaults, so that a manifest means here what it means there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from controlplane.pb.k8s.apps_v1_pb2 import Deployment, ReplicaSet
from controlplane.pb.k8s.core_v1_pb2 import Container, Event, Namespace, Pod, PodSpec, PodTemplateSpec, Probe, Service
from controlplane.pb.k8s.discovery_v1_pb2 import EndpointSlice
from controlplane.pb.k8s.intstr_pb2 import IntOrString

__all__ = [
    "NAMESPACE_FINALIZER",
    "carry_over_service",
    "default_deployment",
    "default_endpoint_slice",
    "default_event",
    "default_namespace",
    "default_pod",
    "default_pod_spec",
    "default_replica_set",
    "default_service",
    "probes_of",
    "qos_class",
]

#: Held by a namespace until its controller has emptied it.
NAMESPACE_FINALIZER: Final = "kubernetes"
_AFFINITY_TIMEOUT_S: Final = 10_800


def default_namespace(namespace: Namespace) -> None:
    """The finalizer that keeps it until it is empty, and the label selectors can name it by."""
    if not namespace.metadata.HasField("deletionTimestamp") and not namespace.spec.finalizers:
        namespace.spec.finalizers.append(NAMESPACE_FINALIZER)
    if namespace.metadata.name:
        namespace.metadata.labels["kubernetes.io/metadata.name"] = namespace.metadata.name


def default_pod(pod: Pod) -> None:
    """A pod's spec."""
    default_pod_spec(pod.spec)


def default_deployment(deployment: Deployment) -> None:
    """apps/v1: one replica, rolling update by a quarter, ten old revisions, ten minutes to make progress."""
    spec = deployment.spec
    if not spec.HasField("replicas"):
        spec.replicas = 1
    spec.strategy.type = spec.strategy.type or "RollingUpdate"
    if spec.strategy.type == "RollingUpdate":
        rolling = spec.strategy.rollingUpdate
        for name in ("maxUnavailable", "maxSurge"):
            if not rolling.HasField(name):
                getattr(rolling, name).CopyFrom(IntOrString(type=1, strVal="25%"))
    if not spec.HasField("revisionHistoryLimit"):
        spec.revisionHistoryLimit = 10
    if not spec.HasField("progressDeadlineSeconds"):
        spec.progressDeadlineSeconds = 600
    _default_template(spec.template)


def default_replica_set(replica_set: ReplicaSet) -> None:
    """One replica, of a complete template."""
    if not replica_set.spec.HasField("replicas"):
        replica_set.spec.replicas = 1
    _default_template(replica_set.spec.template)


def default_service(service: Service) -> None:
    """A ClusterIP service on TCP, to the same port, without affinity."""
    spec = service.spec
    spec.type = spec.type or "ClusterIP"
    spec.sessionAffinity = spec.sessionAffinity or "None"
    if spec.sessionAffinity == "ClientIP" and not spec.sessionAffinityConfig.clientIP.HasField("timeoutSeconds"):
        spec.sessionAffinityConfig.clientIP.timeoutSeconds = _AFFINITY_TIMEOUT_S
    for port in spec.ports:
        port.protocol = port.protocol or "TCP"
        unset = not port.HasField("targetPort") or (port.targetPort.type == 0 and port.targetPort.intVal == 0)
        if unset:
            port.targetPort.CopyFrom(IntOrString(type=0, intVal=port.port))
    if spec.type == "ExternalName":
        return
    spec.internalTrafficPolicy = spec.internalTrafficPolicy or "Cluster"
    spec.ipFamilyPolicy = spec.ipFamilyPolicy or "SingleStack"
    if not spec.ipFamilies:
        spec.ipFamilies.append("IPv4")
    if spec.type in ("NodePort", "LoadBalancer"):
        spec.externalTrafficPolicy = spec.externalTrafficPolicy or "Cluster"
    if spec.clusterIP and not spec.clusterIPs:
        spec.clusterIPs.append(spec.clusterIP)


def carry_over_service(new: Service, old: Service) -> None:
    """An update that says nothing of the address keeps it; one to ExternalName that still says it loses it."""
    if new.spec.type == "ExternalName":
        if old.spec.type != "ExternalName" and new.spec.clusterIP == old.spec.clusterIP:
            for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"):
                new.spec.ClearField(name)
    elif not new.spec.clusterIP and old.spec.clusterIP:
        new.spec.clusterIP = old.spec.clusterIP
    if len(new.spec.clusterIPs) <= 1:
        del new.spec.clusterIPs[:]
        new.spec.clusterIPs.extend([new.spec.clusterIP] if new.spec.clusterIP else [])


def default_endpoint_slice(endpoint_slice: EndpointSlice) -> None:
    """Ports on TCP."""
    for port in endpoint_slice.ports:
        port.protocol = port.protocol or "TCP"


def default_event(event: Event) -> None:
    """An event happened once, and is normal, unless it says otherwise."""
    event.type = event.type or "Normal"
    if not event.HasField("count") and not event.HasField("series"):
        event.count = 1


def _default_template(template: PodTemplateSpec) -> None:
    default_pod_spec(template.spec)


def default_pod_spec(spec: PodSpec) -> None:
    """Everything below a pod's or a template's ``spec``."""
    spec.restartPolicy = spec.restartPolicy or "Always"
    spec.dnsPolicy = spec.dnsPolicy or "ClusterFirst"
    spec.schedulerName = spec.schedulerName or "default-scheduler"
    if not spec.HasField("terminationGracePeriodSeconds"):
        spec.terminationGracePeriodSeconds = 30
    if spec.serviceAccountName and not spec.serviceAccount:
        spec.serviceAccount = spec.serviceAccountName
    for container in (*spec.initContainers, *spec.containers):
        _default_container(container)
    for volume in spec.volumes:
        source = volume.volumeSource
        for name in ("configMap", "secret", "projected", "downwardAPI"):
            if source.HasField(name):
                member = getattr(source, name)
                if not member.HasField("defaultMode"):
                    member.defaultMode = 0o644
    for constraint in spec.topologySpreadConstraints:
        constraint.whenUnsatisfiable = constraint.whenUnsatisfiable or "DoNotSchedule"


def _default_container(container: Container) -> None:
    container.terminationMessagePath = container.terminationMessagePath or "/dev/termination-log"
    container.terminationMessagePolicy = container.terminationMessagePolicy or "File"
    if not container.imagePullPolicy:
        tag = container.image.rpartition("/")[2].partition(":")[2]
        latest = tag in ("", "latest") and "@" not in container.image and container.image != "host"
        container.imagePullPolicy = "Always" if latest else "IfNotPresent"
    for port in container.ports:
        port.protocol = port.protocol or "TCP"
    for name, limit in container.resources.limits.items():
        if name not in container.resources.requests:
            container.resources.requests[name].CopyFrom(limit)
    for probe in probes_of(container).values():
        _default_probe(probe)
    for variable in container.env:
        if variable.valueFrom.HasField("fieldRef"):
            variable.valueFrom.fieldRef.apiVersion = variable.valueFrom.fieldRef.apiVersion or "v1"


def probes_of(container: Container) -> dict[str, Probe]:
    """The probes a container has, by field name."""
    return {d.name: value for d, value in container.ListFields() if isinstance(value, Probe)}


def _default_probe(probe: Probe) -> None:
    probe.timeoutSeconds = probe.timeoutSeconds or 1
    probe.periodSeconds = probe.periodSeconds or 10
    probe.successThreshold = probe.successThreshold or 1
    probe.failureThreshold = probe.failureThreshold or 3
    if probe.handler.HasField("httpGet"):
        get = probe.handler.httpGet
        get.scheme = get.scheme or "HTTP"
        get.path = get.path or "/"


def qos_class(spec: PodSpec) -> str:
    """Guaranteed, Burstable or BestEffort, from the containers' CPU and memory."""
    containers = (*spec.initContainers, *spec.containers)
    named = [c for c in containers if _computes(c.resources.requests) or _computes(c.resources.limits)]
    if not named:
        return "BestEffort"
    guaranteed = all(
        all(
            name in c.resources.limits
            and c.resources.limits[name].string not in ("", "0")
            and (name not in c.resources.requests or c.resources.requests[name] == c.resources.limits[name])
            for name in ("cpu", "memory")
        )
        for c in containers
    )
    return "Guaranteed" if guaranteed else "Burstable"


def _computes(names: Iterable[str]) -> bool:
    return any(name in ("cpu", "memory") for name in names)
