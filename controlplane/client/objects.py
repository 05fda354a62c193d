"""What components agree on about objects: their keys, and how the state of a node or pod is read.

Pure. Owns no state; must not know who asks.
"""

from __future__ import annotations

from typing import Final

from controlplane.client.interface import K8sObject
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod

__all__ = [
    "SUSPECT_CONDITION",
    "key_of",
    "node_is_ready",
    "node_is_suspect",
    "node_serves",
    "pod_is_finished",
    "pod_is_ready",
    "split_key",
]

#: Node condition (status True) between "its session broke or it is late" and NotReady (Ready != True). A Suspect
#: node's endpoints leave load balancing; its pods stay.
SUSPECT_CONDITION: Final = "Suspect"


def key_of(obj: K8sObject) -> str:
    """``namespace/name``, or ``name`` for a cluster-scoped object."""
    meta = obj.metadata
    return f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name


def split_key(key: str) -> tuple[str, str]:
    """``(namespace, name)``; the namespace of a cluster-scoped key is empty."""
    namespace, _, name = key.rpartition("/")
    return namespace, name


def _condition_status(node: Node, condition_type: str) -> str:
    return next((c.status for c in node.status.conditions if c.type == condition_type), "")


def node_is_ready(node: Node) -> bool:
    """The agent reports and the leader hears it: condition Ready is True."""
    return _condition_status(node, "Ready") == "True"


def node_is_suspect(node: Node) -> bool:
    """Its session broke or its heartbeat is late, but it is not declared dead."""
    return _condition_status(node, SUSPECT_CONDITION) == "True"


def node_serves(node: Node) -> bool:
    """Whether traffic may be sent to pods of this node: ready and not suspect."""
    return node_is_ready(node) and not node_is_suspect(node)


def pod_is_finished(pod: Pod) -> bool:
    """Succeeded or Failed: it will never run again."""
    return pod.status.phase in ("Succeeded", "Failed")


def pod_is_ready(pod: Pod) -> bool:
    """Condition Ready is True."""
    return any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions)
