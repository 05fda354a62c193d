"""What the agent says of its machine: the Node object of its Hello. Owns reading the machine; conditions and the pod
range are the control plane's."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Final

import psutil

from controlplane.base.version import version
from controlplane.pb.k8s.core_v1_pb2 import Node, Taint
from controlplane.pb.k8s.resource_pb2 import Quantity
from node.config import AgentConfig
from node.runtime.base import Runtime

__all__ = ["node_object"]

_PODS_MAX: Final = 110


def node_object(config: AgentConfig, runtime: Runtime, *, agent_port: int) -> Node:
    """The Node as this agent describes it."""
    node = Node()
    node.metadata.name = config.name
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    node.metadata.labels.update(
        {
            "kubernetes.io/hostname": config.name,
            "kubernetes.io/os": platform.system().lower(),
            "kubernetes.io/arch": machine,
            **config.labels,
        }
    )
    node.spec.taints.extend(Taint(key=t.key, value=t.value, effect=t.effect) for t in config.taints)
    status = node.status
    for name, quantity in (_machine(config.state_dir) | config.capacity).items():
        status.capacity[name].CopyFrom(Quantity(string=quantity))
        status.allocatable[name].CopyFrom(Quantity(string=quantity))
    status.addresses.add(type="InternalIP", address=config.host_ip)
    status.addresses.add(type="Hostname", address=config.name)
    status.daemonEndpoints.kubeletEndpoint.Port = agent_port
    info = status.nodeInfo
    info.machineID = _read("/etc/machine-id")
    info.systemUUID = info.machineID
    info.bootID = _read("/proc/sys/kernel/random/boot_id")
    info.kernelVersion = platform.release()
    info.osImage = _os_image()
    info.containerRuntimeVersion = f"{runtime.name}://{runtime.version}"
    info.kubeletVersion = info.kubeProxyVersion = f"v{version()}"
    info.operatingSystem = platform.system().lower()
    info.architecture = machine
    return node


def _machine(state_dir: Path) -> dict[str, str]:
    return {
        "cpu": str(os.cpu_count() or 1),
        "memory": f"{psutil.virtual_memory().total // 1024}Ki",
        "ephemeral-storage": f"{shutil.disk_usage(state_dir).total // 1024}Ki",
        "pods": str(_PODS_MAX),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _os_image() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return platform.system()
