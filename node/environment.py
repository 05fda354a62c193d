"""The environment and the command line a container gets. Pure: ConfigMaps it needs are handed in.

A process gets what its pod asks for and a few names more, nothing of the agent's own environment but PATH: POD_NAME,
POD_NAMESPACE, POD_UID, POD_IP, NODE_NAME, HOSTNAME, QD_VOLUMES. What the pod sets itself wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from controlplane.base.errors import QuarterdeckError
from controlplane.pb.k8s.core_v1_pb2 import ConfigMap, Container, EnvVarSource, ObjectFieldSelector, Pod
from node.quantity import parse_quantity, whole

__all__ = ["ContainerConfigError", "PodFacts", "build_env", "config_maps_of", "expand"]

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.\-][A-Za-z0-9_.\-]*)\)")
_KEYED_PATH = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class ContainerConfigError(QuarterdeckError):
    """The container's configuration cannot be made (reason CreateContainerConfigError); it may be tomorrow."""


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What the node knows of a pod that the pod's object does not say yet."""

    node_name: str
    host_ip: str
    pod_ip: str
    volumes_dir: Path
    path: str


def config_maps_of(container: Container) -> frozenset[str]:
    """Names of the ConfigMaps whose values the container's environment takes."""
    names = {source.configMapRef.localObjectReference.name for source in container.envFrom}
    names |= {variable.valueFrom.configMapKeyRef.localObjectReference.name for variable in container.env}
    return frozenset(name for name in names if name)


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` by its value and ``$$`` by ``$``; an unknown name stays as it is written."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return "$"
        return variables.get(name, match.group(0))

    return _REFERENCE.sub(value, text)


def build_env(
    pod: Pod, container: Container, facts: PodFacts, config_maps: Mapping[str, ConfigMap | None]
) -> dict[str, str]:
    """The whole environment.

    Args:
        config_maps: every name of :func:`config_maps_of`; None if there is no such ConfigMap.

    Raises:
        ContainerConfigError: a source does not exist, or is of a kind this agent has not; the message names it.
    """
    env = {
        "PATH": facts.path,
        "POD_NAME": pod.metadata.name,
        "POD_NAMESPACE": pod.metadata.namespace,
        "POD_UID": pod.metadata.uid,
        "POD_IP": facts.pod_ip,
        "NODE_NAME": facts.node_name,
        "HOSTNAME": pod.spec.hostname or pod.metadata.name,
        "QD_VOLUMES": str(facts.volumes_dir),
    }
    for source in container.envFrom:
        if source.HasField("secretRef"):
            raise ContainerConfigError(
                f"envFrom secret {source.secretRef.localObjectReference.name!r}: there are no Secrets"
            )
        reference = source.configMapRef
        found = config_maps.get(reference.localObjectReference.name)
        if found is None:
            if not reference.optional:
                raise ContainerConfigError(f'configmap "{reference.localObjectReference.name}" not found')
            continue
        env.update((source.prefix + key, value) for key, value in sorted(found.data.items()))
    for variable in container.env:
        if variable.HasField("valueFrom"):
            resolved = _resolve(variable.name, variable.valueFrom, pod, container, facts, config_maps)
            if resolved is not None:
                env[variable.name] = resolved
        else:
            env[variable.name] = expand(variable.value, env)
    _refuse_nul(env.items())
    return env


def _refuse_nul(items: Iterable[tuple[str, str]]) -> None:
    for name, value in items:
        if "\0" in name or "\0" in value or "=" in name or not name:
            raise ContainerConfigError(f"environment variable {name!r} has a character that no environment can hold")


def _resolve(
    name: str,
    source: EnvVarSource,
    pod: Pod,
    container: Container,
    facts: PodFacts,
    config_maps: Mapping[str, ConfigMap | None],
) -> str | None:
    if source.HasField("fieldRef"):
        return _field(source.fieldRef, pod, facts)
    if source.HasField("resourceFieldRef"):
        return _resource(source, pod, container)
    if source.HasField("configMapKeyRef"):
        reference = source.configMapKeyRef
        wanted = reference.localObjectReference.name
        found = config_maps.get(wanted)
        if found is not None and reference.key in found.data:
            return found.data[reference.key]
        if reference.optional:
            return None
        if found is None:
            raise ContainerConfigError(f'configmap "{wanted}" not found')
        raise ContainerConfigError(f"couldn't find key {reference.key} in ConfigMap {pod.metadata.namespace}/{wanted}")
    raise ContainerConfigError(
        f"env {name!r}: want one of fieldRef, resourceFieldRef, configMapKeyRef; this source is not served"
    )


def _field(selector: ObjectFieldSelector, pod: Pod, facts: PodFacts) -> str:
    keyed = _KEYED_PATH.fullmatch(selector.fieldPath)
    if keyed is not None:
        holder = pod.metadata.labels if keyed.group(1) == "labels" else pod.metadata.annotations
        return holder.get(keyed.group(2), "")
    plain = {
        "metadata.name": pod.metadata.name,
        "metadata.namespace": pod.metadata.namespace,
        "metadata.uid": pod.metadata.uid,
        "spec.nodeName": facts.node_name,
        "spec.serviceAccountName": pod.spec.serviceAccountName,
        "status.hostIP": facts.host_ip,
        "status.hostIPs": facts.host_ip,
        "status.podIP": facts.pod_ip,
        "status.podIPs": facts.pod_ip,
    }
    try:
        return plain[selector.fieldPath]
    except KeyError:
        raise ContainerConfigError(
            f"fieldPath {selector.fieldPath!r}: want one of {', '.join(sorted(plain))}"
        ) from None


def _resource(source: EnvVarSource, pod: Pod, container: Container) -> str:
    reference = source.resourceFieldRef
    wanted = reference.containerName or container.name
    owner = next((c for c in (*pod.spec.containers, *pod.spec.initContainers) if c.name == wanted), None)
    side, _, resource = reference.resource.partition(".")
    if owner is None or side not in ("limits", "requests") or not resource:
        raise ContainerConfigError(f"resourceFieldRef {wanted}/{reference.resource}: want limits.NAME or requests.NAME")
    quantities = owner.resources.limits if side == "limits" else owner.resources.requests
    if resource not in quantities:
        return "0"
    divisor = parse_quantity(reference.divisor.string or "1") or parse_quantity("1")
    return str(whole(f"{parse_quantity(quantities[resource].string) / divisor:f}"))
