"""Objects for decision tests, in few words."""

from __future__ import annotations

from collections.abc import Mapping

from controlplane.controllers.deployment_decide import DESIRED_REPLICAS, REVISION, new_replica_set
from controlplane.pb.k8s.apps_v1_pb2 import Deployment, ReplicaSet
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod, Service

__all__ = ["deployment", "node", "pod", "replica_set", "service", "set_of"]


def pod(
    name: str,
    *,
    node: str = "n1",
    phase: str = "Running",
    ready: bool = True,
    labels: Mapping[str, str] | None = None,
    owner_uid: str = "",
    deleting: bool = False,
    created_s: int = 0,
    ip: str = "127.0.0.9",
) -> Pod:
    """A running, ready pod labelled app=web."""
    made = Pod()
    made.metadata.name, made.metadata.namespace, made.metadata.uid = name, "default", f"uid-{name}"
    made.metadata.labels.update({"app": "web"} if labels is None else labels)
    made.metadata.creationTimestamp.seconds = created_s
    if owner_uid:
        made.metadata.ownerReferences.add(kind="ReplicaSet", name="rs", uid=owner_uid, controller=True)
    if deleting:
        made.metadata.deletionTimestamp.seconds = 1
    made.spec.nodeName = node
    made.status.phase = phase
    made.status.podIP = ip
    made.status.conditions.add(type="Ready", status="True" if ready else "False")
    return made


def node(name: str, *, ready: bool = True, suspect: bool = False) -> Node:
    """A node as node lifecycle marks it."""
    made = Node()
    made.metadata.name = name
    made.status.conditions.add(type="Ready", status="True" if ready else "Unknown")
    if suspect:
        made.status.conditions.add(type="Suspect", status="True")
    return made


def service(**selector: str) -> Service:
    """A Service named web with one port, 80 to 8080."""
    made = Service()
    made.metadata.name, made.metadata.namespace, made.metadata.uid = "web", "default", "uid-web"
    made.spec.selector.update(selector or {"app": "web"})
    made.spec.ports.add(name="http", port=80, protocol="TCP").targetPort.intVal = 8080
    return made


def replica_set(replicas: int = 3) -> ReplicaSet:
    """A ReplicaSet named rs that selects app=web."""
    made = ReplicaSet()
    made.metadata.name, made.metadata.namespace, made.metadata.uid = "rs", "default", "uid-rs"
    made.metadata.generation = 1
    made.spec.replicas = replicas
    made.spec.selector.matchLabels["app"] = "web"
    made.spec.template.metadata.labels["app"] = "web"
    made.spec.template.spec.containers.add(name="web", image="v1")
    return made


def deployment(replicas: int = 4, image: str = "v1") -> Deployment:
    """A Deployment named web."""
    made = Deployment()
    made.metadata.name, made.metadata.namespace, made.metadata.uid = "web", "default", "uid-deployment"
    made.metadata.generation = 1
    made.spec.replicas = replicas
    made.spec.selector.matchLabels["app"] = "web"
    made.spec.template.metadata.labels["app"] = "web"
    made.spec.template.spec.containers.add(name="web", image=image)
    return made


def set_of(
    owner: Deployment, image: str, *, wanted: int, available: int | None = None, revision: int = 1, desired: int = 4
) -> ReplicaSet:
    """The ReplicaSet that the Deployment would have made for an image."""
    template = Deployment()
    template.CopyFrom(owner)
    template.spec.template.spec.containers[0].image = image
    made = new_replica_set(template, wanted, revision, {DESIRED_REPLICAS: str(desired)})
    made.metadata.uid = f"uid-{image}"
    made.metadata.annotations[REVISION] = str(revision)
    made.metadata.creationTimestamp.seconds = revision
    made.status.replicas = wanted
    made.status.availableReplicas = made.status.readyReplicas = wanted if available is None else available
    return made
