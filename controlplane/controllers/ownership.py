"""Who manages an object: the one owner reference that says ``controller``. Pure.

Owns how such a reference is made and found. Must not know what owners do with their objects.
"""

from __future__ import annotations

from controlplane.client.kinds import info_of
from controlplane.pb.k8s.apps_v1_pb2 import Deployment, ReplicaSet
from controlplane.pb.k8s.core_v1_pb2 import Service
from controlplane.pb.k8s.meta_v1_pb2 import ObjectMeta, OwnerReference

__all__ = ["controller_of", "controller_reference"]


def controller_of(meta: ObjectMeta) -> OwnerReference | None:
    """The reference to the controller that manages the object, if any."""
    return next((ref for ref in meta.ownerReferences if ref.controller), None)


def controller_reference(owner: Deployment | ReplicaSet | Service) -> OwnerReference:
    """The reference that makes ``owner`` the controller of the object that has it."""
    info = info_of(type(owner))
    return OwnerReference(
        apiVersion=info.api_version,
        kind=info.kind,
        name=owner.metadata.name,
        uid=owner.metadata.uid,
        controller=True,
        blockOwnerDeletion=True,
    )
