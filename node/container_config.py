"""From a pod's container to what the runtime is told to run. Owns the gathering: ConfigMaps, volumes, limits.

Limits of the ``process`` runtime: a memory limit is the address space of each process (RLIMIT_AS), a CPU limit is not
enforced, and a container that asks for no CPU runs niced behind those that do. The annotation
``quarterdeck.dev/open-files-max`` on the pod sets RLIMIT_NOFILE.
"""

from __future__ import annotations

import os
from typing import Final, Protocol

from controlplane.client.interface import ApiClient, ApiError, NotFoundError
from controlplane.pb.k8s.core_v1_pb2 import ConfigMap, Container, Pod
from node.environment import ContainerConfigError, PodFacts, build_env, config_maps_of, expand
from node.layout import Layout
from node.quantity import parse_quantity, whole
from node.runtime.base import ContainerConfig, CreateError
from node.volumes import config_maps_of_volumes, links_of, make_volumes

__all__ = ["OPEN_FILES_ANNOTATION", "ApiConfigMaps", "ConfigMaps", "ContainerConfigs"]

OPEN_FILES_ANNOTATION: Final = "quarterdeck.dev/open-files-max"
_NICE_WITHOUT_REQUEST: Final = 5


class ConfigMaps(Protocol):
    """Where ConfigMaps come from."""

    async def get(self, namespace: str, name: str) -> ConfigMap | None:
        """The object, None if there is none. Raises ContainerConfigError if that cannot be known now."""
        ...


class ApiConfigMaps:
    """ConfigMaps read through the API when a container starts."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def get(self, namespace: str, name: str) -> ConfigMap | None:
        try:
            return await self._client.get(ConfigMap, name, namespace=namespace, serializable=True)
        except NotFoundError:
            return None
        except ApiError as error:
            raise ContainerConfigError(f"configmap {namespace}/{name} cannot be read now: {error}") from error


class ContainerConfigs:
    """Makes :class:`ContainerConfig` of pods on this node."""

    def __init__(self, layout: Layout, config_maps: ConfigMaps, *, node_name: str, host_ip: str) -> None:
        self._layout = layout
        self._config_maps = config_maps
        self._node_name = node_name
        self._host_ip = host_ip

    async def make(self, pod: Pod, container: Container, ip: str, attempt: int) -> ContainerConfig:
        """Gather everything one run needs; creates the pod's volumes.

        Raises:
            ContainerConfigError: something it refers to is missing or cannot be read now.
            CreateError: the disk refused, or a quantity or annotation is not one.
        """
        names = config_maps_of(container) | config_maps_of_volumes(pod)
        found = {name: await self._config_maps.get(pod.metadata.namespace, name) for name in sorted(names)}
        facts = PodFacts(
            node_name=self._node_name,
            host_ip=self._host_ip,
            pod_ip=ip,
            volumes_dir=self._layout.volumes(pod.metadata.uid),
            path=os.environ.get("PATH", os.defpath),
        )
        env = build_env(pod, container, facts, found)
        try:
            make_volumes(self._layout, pod, found)
        except OSError as error:
            raise CreateError("CreateContainerError", f"volumes: {error}") from error
        argv = tuple(expand(part, env) for part in (*container.command, *container.args))
        if any("\0" in part for part in argv):
            raise ContainerConfigError("command and args cannot contain a NUL character")
        try:
            memory = container.resources.limits["memory"].string if "memory" in container.resources.limits else "0"
            requests = container.resources.requests
            asks_cpu = "cpu" in requests and parse_quantity(requests["cpu"].string) > 0
            open_files = int(pod.metadata.annotations.get(OPEN_FILES_ANNOTATION, "0"))
            memory_bytes = whole(memory)
        except ValueError as error:
            raise CreateError("CreateContainerError", f"resources: {error}") from error
        return ContainerConfig(
            name=container.name,
            attempt=attempt,
            image=container.image,
            argv=argv,
            env=env,
            working_dir=container.workingDir,
            links=links_of(self._layout, pod, container),
            memory_bytes_max=memory_bytes,
            open_files_max=open_files,
            nice=0 if asks_cpu else _NICE_WITHOUT_REQUEST,
            stop_signal=container.lifecycle.stopSignal or "SIGTERM",
        )
