"""Nodes and pods for scheduler tests, in few words."""

from __future__ import annotations

from collections.abc import Mapping

from controlplane.pb.k8s.core_v1_pb2 import Node, Pod
from controlplane.scheduler.plan import Candidate
from controlplane.scheduler.table import NodeTable

__all__ = ["candidates", "node", "pod", "table"]


def node(
    name: str,
    *,
    cpu: str = "4",
    memory: str = "8Gi",
    pods: str = "110",
    labels: Mapping[str, str] | None = None,
    taints: tuple[tuple[str, str, str], ...] = (),
    unschedulable: bool = False,
    ready: bool = True,
    **resources: str,
) -> Node:
    """A ready node."""
    made = Node()
    made.metadata.name = name
    made.metadata.labels["kubernetes.io/hostname"] = name
    made.metadata.labels.update(labels or {})
    for resource, amount in {"cpu": cpu, "memory": memory, "pods": pods, **resources}.items():
        made.status.allocatable[resource.replace("__", "/")].string = amount
    for key, value, effect in taints:
        made.spec.taints.add(key=key, value=value, effect=effect)
    made.spec.unschedulable = unschedulable
    made.status.conditions.add(type="Ready", status="True" if ready else "Unknown")
    return made


def pod(
    name: str,
    *,
    cpu: str = "",
    memory: str = "",
    node_name: str = "",
    labels: Mapping[str, str] | None = None,
    owner: str = "",
    priority: int = 0,
    **resources: str,
) -> Pod:
    """A pod with one container."""
    made = Pod()
    made.metadata.name, made.metadata.namespace, made.metadata.uid = name, "default", f"uid-{name}"
    made.metadata.labels.update(labels or {})
    if owner:
        made.metadata.ownerReferences.add(kind="ReplicaSet", name=owner, uid=f"uid-{owner}", controller=True)
    container = made.spec.containers.add(name="c")
    for resource, amount in {"cpu": cpu, "memory": memory, **resources}.items():
        if amount:
            container.resources.requests[resource.replace("__", "/")].string = amount
    made.spec.priority = priority
    if node_name:
        made.spec.nodeName = node_name
    return made


def table(*nodes: Node, pods: tuple[Pod, ...] = ()) -> NodeTable:
    """A node table that has heard of these."""
    made = NodeTable()
    for n in nodes:
        made.set_node(n)
    for p in pods:
        made.set_pod(p)
    return made


def candidates(*pods: Pod) -> list[Candidate]:
    """Pods as the queue hands them out."""
    return [Candidate.of(p) for p in pods]
