"""The indexes that controllers share, by name. Added once, by the manager, before informers run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from controlplane.client.caches import Caches
from controlplane.client.kinds import KINDS
from controlplane.controllers.ownership import controller_of
from controlplane.pb.k8s.apps_v1_pb2 import Deployment, ReplicaSet
from controlplane.pb.k8s.core_v1_pb2 import Pod, Service
from controlplane.pb.k8s.discovery_v1_pb2 import EndpointSlice

__all__ = [
    "BY_CONTROLLER",
    "BY_LABEL",
    "BY_NAMESPACE",
    "BY_NODE",
    "BY_OWNER",
    "BY_SERVICE",
    "ORPHANS",
    "add_indexes",
    "label_key",
]

#: uid of the managing controller -> its pods, its replica sets.
BY_CONTROLLER: Final = "controller"
#: namespace -> pods, replica sets that no controller manages.
ORPHANS: Final = "orphans"
#: node name -> pods bound to it.
BY_NODE: Final = "node"
#: namespace -> services, deployments, replica sets.
BY_NAMESPACE: Final = "namespace"
#: ``label_key()`` -> pods.
BY_LABEL: Final = "label"
#: uid of any owner -> dependents, for every kind.
BY_OWNER: Final = "owner"
#: namespace/name of a Service -> its endpoint slices.
BY_SERVICE: Final = "service"


def label_key(namespace: str, key: str, value: str) -> str:
    """A pod label within a namespace."""
    return f"{namespace}/{key}={value}"


def _controller(obj: Pod | ReplicaSet) -> Iterable[str]:
    owner = controller_of(obj.metadata)
    return () if owner is None else (owner.uid,)


def _orphan(obj: Pod | ReplicaSet) -> Iterable[str]:
    return (obj.metadata.namespace,) if controller_of(obj.metadata) is None else ()


def _node(pod: Pod) -> Iterable[str]:
    return (pod.spec.nodeName,) if pod.spec.nodeName else ()


def _namespace(obj: Service | Deployment | ReplicaSet) -> Iterable[str]:
    return (obj.metadata.namespace,)


def _labels(pod: Pod) -> Iterable[str]:
    return [label_key(pod.metadata.namespace, k, v) for k, v in pod.metadata.labels.items()]


def _service(slice_: EndpointSlice) -> Iterable[str]:
    name = slice_.metadata.labels.get("kubernetes.io/service-name")
    return (f"{slice_.metadata.namespace}/{name}",) if name else ()


def _owners(obj: Any) -> Iterable[str]:
    return [ref.uid for ref in obj.metadata.ownerReferences]


def add_indexes(caches: Caches) -> None:
    """Add all of the above."""
    pods, sets = caches.of(Pod), caches.of(ReplicaSet)
    pods.add_index(BY_CONTROLLER, _controller)
    pods.add_index(ORPHANS, _orphan)
    pods.add_index(BY_NODE, _node)
    pods.add_index(BY_LABEL, _labels)
    sets.add_index(BY_CONTROLLER, _controller)
    sets.add_index(ORPHANS, _orphan)
    sets.add_index(BY_NAMESPACE, _namespace)
    caches.of(Service).add_index(BY_NAMESPACE, _namespace)
    caches.of(Deployment).add_index(BY_NAMESPACE, _namespace)
    caches.of(EndpointSlice).add_index(BY_SERVICE, _service)
    for row in KINDS:
        caches.of(row.message).add_index(BY_OWNER, _owners)
