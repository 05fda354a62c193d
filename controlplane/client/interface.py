"""ApiClient: how every component and user talks to the resource API. Protocol and values only.

Two implementations with the same behaviour: in-process (controllers and scheduler inside a replica) and gRPC with
several endpoints (agents, CLI, chaos, users). Objects are Kubernetes' own protobuf messages; the message class
names the kind, so ``await client.get(Pod, "web-1", namespace="default")`` is a ``Pod``.

Errors: :class:`ApiError` and its children; nothing of grpc leaks out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, Protocol, TypeVar

from controlplane.api.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    ExpiredError,
    FencedError,
    FieldCause,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from controlplane.pb.k8s.apps_v1_pb2 import Deployment, ReplicaSet
from controlplane.pb.k8s.core_v1_pb2 import ConfigMap, Event, Namespace, Node, Pod, Service
from controlplane.pb.k8s.discovery_v1_pb2 import EndpointSlice
from controlplane.pb.quarterdeck.v1 import api_pb2

__all__ = [
    "AlreadyExistsError",
    "ApiClient",
    "ApiError",
    "ConflictError",
    "ExpiredError",
    "FencedError",
    "FieldCause",
    "InvalidError",
    "K8sObject",
    "ListResult",
    "NotFoundError",
    "ObjT",
    "UnavailableError",
    "WatchEvent",
    "WatchType",
]

K8sObject = Namespace | Node | Pod | ReplicaSet | Deployment | Service | EndpointSlice | ConfigMap | Event
ObjT = TypeVar("ObjT", Namespace, Node, Pod, ReplicaSet, Deployment, Service, EndpointSlice, ConfigMap, Event)


class WatchType(Enum):
    """What happened to an object."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


@dataclass(frozen=True, slots=True)
class WatchEvent(Generic[ObjT]):
    """One change. ``object`` is None for a bookmark; for DELETED it is the last state."""

    type: WatchType
    object: ObjT | None
    resource_version: str


@dataclass(frozen=True, slots=True)
class ListResult(Generic[ObjT]):
    """A page of objects at one revision."""

    items: list[ObjT]
    resource_version: str
    continue_token: str = ""
    remaining: int = 0
    warnings: tuple[str, ...] = field(default=())


class ApiClient(Protocol):
    """The resource API. ``namespace=""`` means cluster scope for get and writes of cluster-scoped kinds, and all
    namespaces for list and watch. ``timeout_ms=None`` is the client's default (10 s, retries included)."""

    async def get(self, kind: type[ObjT], name: str, *, namespace: str = "", serializable: bool = False) -> ObjT: ...

    async def list(
        self,
        kind: type[ObjT],
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 0,
        continue_token: str = "",
        serializable: bool = False,
    ) -> ListResult[ObjT]: ...

    async def create(self, obj: ObjT, *, fence: api_pb2.Fence | None = None, dry_run: bool = False) -> ObjT: ...

    async def update(self, obj: ObjT, *, fence: api_pb2.Fence | None = None, dry_run: bool = False) -> ObjT: ...

    async def update_status(self, obj: ObjT, *, fence: api_pb2.Fence | None = None) -> ObjT: ...

    async def patch(
        self,
        kind: type[ObjT],
        name: str,
        patch: object,
        *,
        namespace: str = "",
        json_patch: bool = False,
        subresource: str = "",
        fence: api_pb2.Fence | None = None,
    ) -> ObjT:
        """``patch``: a JSON-able dict (RFC 7386 merge) or, with ``json_patch``, a list of RFC 6902 operations."""
        ...

    async def apply(
        self, manifest: dict[str, object], *, default_namespace: str = "default", dry_run: bool = False
    ) -> api_pb2.ApplyResponse: ...

    async def delete(
        self,
        kind: type[ObjT],
        name: str,
        *,
        namespace: str = "",
        grace_period_s: int | None = None,
        propagation_policy: str = "",
        uid: str = "",
        resource_version: str = "",
        fence: api_pb2.Fence | None = None,
    ) -> ObjT: ...

    def watch(
        self,
        kind: type[ObjT],
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str = "",
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchEvent[ObjT]]]:
        """Events after ``resource_version``, bookmarks included. Raises ExpiredError when it is compacted. One
        attempt: it ends with UnavailableError when the replica goes; Informer does the resuming."""
        ...

    async def bind(
        self, bindings: Sequence[api_pb2.Binding], *, fence: api_pb2.Fence | None = None
    ) -> Sequence[api_pb2.BindResult]: ...

    async def evict(self, name: str, *, namespace: str, grace_period_s: int | None = None) -> Pod: ...
