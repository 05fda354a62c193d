"""Resource quantities as integers, and what a pod asks for.

CPU counts in thousandths of a core, everything else in whole units (bytes, pieces), rounded up as Kubernetes does: a
pod is never thought smaller than it is. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from controlplane.api.quantity import to_nano
from controlplane.pb.k8s.core_v1_pb2 import Container, Node, Pod
from controlplane.pb.k8s.resource_pb2 import Quantity

__all__ = ["CPU", "MEMORY", "PODS", "allocatable", "pod_requests", "scoring_requests", "units"]

CPU = "cpu"
MEMORY = "memory"
PODS = "pods"

#: What a container without requests is taken to use when nodes are *scored* (it still fits anywhere): else a thousand
#: pods without requests would all go to one node.
SCORING_CPU_M = 100
SCORING_MEMORY_BYTES = 200 * 1024 * 1024

PODS_DEFAULT = 110


@lru_cache(maxsize=4096)
def units(resource: str, text: str, round_up: bool = True) -> int:
    """A quantity in the resource's unit. Raises QuantityError for text that is none (validation refuses it before it
    gets here)."""
    nano = to_nano(text)
    unit = 10**6 if resource == CPU else 10**9
    return -(-nano // unit) if round_up else nano // unit


def _amounts(quantities: Mapping[str, Quantity], round_up: bool = True) -> dict[str, int]:
    return {name: units(name, q.string, round_up) for name, q in quantities.items()}


def allocatable(node: Node) -> dict[str, int]:
    """What pods may use of a node: allocatable, or capacity where the agent reports no allocatable. Rounded down.

    A node that does not say how many pods it takes gets Kubernetes' usual 110.
    """
    return {PODS: PODS_DEFAULT, **_amounts(node.status.allocatable or node.status.capacity, round_up=False)}


def _container_requests(container: Container) -> dict[str, int]:
    """Requests; a limit without a request is a request of that much."""
    return {**_amounts(container.resources.limits), **_amounts(container.resources.requests)}


def pod_requests(pod: Pod) -> dict[str, int]:
    """What a pod needs at its peak: its containers and sidecars together, or an init container with the sidecars
    started before it; plus overhead. Pod-level requests, where set, replace the sum."""
    total: dict[str, int] = {}
    for container in pod.spec.containers:
        _add(total, _container_requests(container))
    sidecars: dict[str, int] = {}
    peak: dict[str, int] = {}
    for container in pod.spec.initContainers:
        asked = _container_requests(container)
        if container.restartPolicy == "Always":
            _add(total, asked)
            _add(sidecars, asked)
            asked = dict(sidecars)
        else:
            _add(asked, sidecars)
        for name, amount in asked.items():
            peak[name] = max(peak.get(name, 0), amount)
    for name, amount in peak.items():
        total[name] = max(total.get(name, 0), amount)
    if pod.spec.HasField("resources"):
        total.update(_amounts(pod.spec.resources.requests))
    _add(total, _amounts(pod.spec.overhead))
    return total


def scoring_requests(pod: Pod, requests: Mapping[str, int]) -> tuple[int, int]:
    """(cpu, memory) to score with: the requests, or a small share per container where it asks for nothing."""
    count = len(pod.spec.containers)
    return requests.get(CPU) or SCORING_CPU_M * count, requests.get(MEMORY) or SCORING_MEMORY_BYTES * count


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, 0) + amount
