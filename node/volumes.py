"""Volumes of the ``process`` runtime: directories beside the container, reached by links.

A process cannot have something mounted at ``mountPath`` without privileges, so ``mountPath: /data/x`` is the link
``data/x`` in the container's working directory, and every volume is also ``$QD_VOLUMES/NAME``. emptyDir, configMap and
hostPath are served; other kinds are refused with a message. A ConfigMap is written when a container starts and does
not change under it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from controlplane.pb.k8s.core_v1_pb2 import ConfigMap, ConfigMapVolumeSource, Container, Pod, Volume
from node.environment import ContainerConfigError
from node.layout import Layout, write_atomic

__all__ = ["config_maps_of_volumes", "links_of", "make_volumes"]


def config_maps_of_volumes(pod: Pod) -> frozenset[str]:
    """Names of the ConfigMaps that volumes show."""
    names = {volume.volumeSource.configMap.localObjectReference.name for volume in pod.spec.volumes}
    return frozenset(name for name in names if name)


def make_volumes(layout: Layout, pod: Pod, config_maps: Mapping[str, ConfigMap | None]) -> None:
    """Create what the pod's volumes hold.

    Raises:
        ContainerConfigError: a kind this runtime has not, or a ConfigMap or key that is not there.
        OSError: the disk refused.
    """
    for volume in pod.spec.volumes:
        source = volume.volumeSource
        if source.HasField("emptyDir"):
            layout.volume(pod.metadata.uid, volume.name).mkdir(parents=True, exist_ok=True)
        elif source.HasField("configMap"):
            directory = layout.volume(pod.metadata.uid, volume.name)
            directory.mkdir(parents=True, exist_ok=True)
            _write_config_map(directory, volume.name, source.configMap, config_maps)
        elif not source.HasField("hostPath"):
            raise ContainerConfigError(
                f"volume {volume.name!r}: the process runtime has emptyDir, configMap and hostPath volumes only"
            )


def links_of(layout: Layout, pod: Pod, container: Container) -> dict[str, Path]:
    """Path inside the container's directory -> what it leads to. Raises ContainerConfigError."""
    volumes = {volume.name: volume for volume in pod.spec.volumes}
    links: dict[str, Path] = {}
    for mount in container.volumeMounts:
        if mount.name not in volumes:
            raise ContainerConfigError(f"volumeMount {mount.name!r}: the pod has no such volume")
        inside = _inside(mount.mountPath, "mountPath")
        target = _directory(layout, pod, volumes[mount.name])
        links[inside] = target / _inside(mount.subPath, "subPath") if mount.subPath else target
    return links


def _directory(layout: Layout, pod: Pod, volume: Volume) -> Path:
    if volume.volumeSource.HasField("hostPath"):
        return Path(volume.volumeSource.hostPath.path)
    return layout.volume(pod.metadata.uid, volume.name)


def _inside(path: str, field: str) -> str:
    relative = PurePosixPath(path.lstrip("/"))
    if not relative.parts or ".." in relative.parts or "\0" in path:
        raise ContainerConfigError(f"{field} {path!r}: want a path without '..'")
    return str(relative)


def _write_config_map(
    directory: Path, volume_name: str, source: ConfigMapVolumeSource, config_maps: Mapping[str, ConfigMap | None]
) -> None:
    name = source.localObjectReference.name
    found = config_maps.get(name)
    if found is None:
        if source.optional:
            return
        raise ContainerConfigError(f'volume {volume_name!r}: configmap "{name}" not found')
    content = {key: value.encode() for key, value in found.data.items()} | dict(found.binaryData)
    items = {item.key: item.path for item in source.items} if source.items else {key: key for key in content}
    for key, path in items.items():
        if key not in content:
            if source.optional:
                continue
            raise ContainerConfigError(f"volume {volume_name!r}: ConfigMap {name} has no key {key!r}")
        target = directory / _inside(path, "items.path")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, content[key])
        target.chmod(source.defaultMode if source.HasField("defaultMode") else 0o644)
