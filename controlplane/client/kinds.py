"""The kinds a client can name: message class, resource name, Object field, scope. One row per kind.

Owns the correspondence only; defaults and validation live with the API server (``api.registry``), which has its own
richer table. ``tests/unit/client/test_kinds.py`` holds the two, and the ``Object`` message, together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from controlplane.client.interface import K8sObject, ObjT
from controlplane.pb.k8s import apps_v1_pb2, core_v1_pb2, discovery_v1_pb2
from controlplane.pb.quarterdeck.v1 import api_pb2

__all__ = ["KINDS", "KindInfo", "info_for_field", "info_for_resource", "info_of", "unwrap", "unwrap_any", "wrap"]


@dataclass(frozen=True, slots=True)
class KindInfo:
    """One kind. ``field`` is its member of ``api_pb2.Object``, ``resource`` its plural name in requests."""

    message: type[Any]
    kind: str
    api_version: str
    resource: str
    field: str
    namespaced: bool


KINDS: tuple[KindInfo, ...] = (
    KindInfo(core_v1_pb2.Namespace, "Namespace", "v1", "namespaces", "namespace", False),
    KindInfo(core_v1_pb2.Node, "Node", "v1", "nodes", "node", False),
    KindInfo(core_v1_pb2.Pod, "Pod", "v1", "pods", "pod", True),
    KindInfo(apps_v1_pb2.ReplicaSet, "ReplicaSet", "apps/v1", "replicasets", "replica_set", True),
    KindInfo(apps_v1_pb2.Deployment, "Deployment", "apps/v1", "deployments", "deployment", True),
    KindInfo(core_v1_pb2.Service, "Service", "v1", "services", "service", True),
    KindInfo(
        discovery_v1_pb2.EndpointSlice, "EndpointSlice", "discovery.k8s.io/v1", "endpointslices", "endpoint_slice", True
    ),
    KindInfo(core_v1_pb2.ConfigMap, "ConfigMap", "v1", "configmaps", "config_map", True),
    KindInfo(core_v1_pb2.Event, "Event", "v1", "events", "event", True),
)

_BY_MESSAGE = {row.message: row for row in KINDS}
_BY_FIELD = {row.field: row for row in KINDS}
_BY_RESOURCE = {row.resource: row for row in KINDS}


def info_of(kind: type[Any]) -> KindInfo:
    """The row of a message class.

    Raises:
        KeyError: the class is not a kind of this API.
    """
    return _BY_MESSAGE[kind]


def info_for_resource(resource: str) -> KindInfo:
    """The row of a plural resource name; KeyError if there is none."""
    return _BY_RESOURCE[resource]


def info_for_field(field: str) -> KindInfo:
    """The row of a member of ``Object``; KeyError if there is none."""
    return _BY_FIELD[field]


def wrap(obj: K8sObject) -> api_pb2.Object:
    """The object (copied) as a member of ``Object``."""
    wrapped = api_pb2.Object()
    getattr(wrapped, info_of(type(obj)).field).CopyFrom(obj)
    return wrapped


def unwrap(kind: type[ObjT], wrapped: api_pb2.Object) -> ObjT:
    """The member of ``wrapped``, which must be of that kind; not copied.

    Raises:
        TypeError: it holds another kind, or none.
    """
    field = info_of(kind).field
    held = wrapped.WhichOneof("kind")
    if held != field:
        raise TypeError(f"expected an Object holding {field}, got {held or 'nothing'}")
    return cast(ObjT, getattr(wrapped, field))


def unwrap_any(wrapped: api_pb2.Object) -> K8sObject:
    """Whatever ``wrapped`` holds; TypeError if nothing."""
    held = wrapped.WhichOneof("kind")
    if held is None:
        raise TypeError("the Object holds nothing")
    return cast(K8sObject, getattr(wrapped, held))
