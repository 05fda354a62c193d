"""The kinds this API serves: one row each. Adding a kind is its message, its row here, and its tests.

A row says what a kind is called, where it lives, and how it behaves: defaults, validation, what may change, what of
its status a client sets, which fields can be selected. Pure data and pure functions; the server owns the effects.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import Message

from controlplane.api import defaults, validation, validation_pod
from controlplane.api.errors import ApiError, InvalidError, bad_request
from controlplane.api.faults import Faults
from controlplane.base.errors import Code
from controlplane.pb.k8s import apps_v1_pb2, core_v1_pb2, discovery_v1_pb2
from controlplane.pb.quarterdeck.v1 import api_pb2

__all__ = ["KINDS", "Kind", "invalid", "kind_of", "kind_of_field", "kind_of_manifest", "kind_of_resource"]


def _nothing(*_: Any) -> None:
    """The strategy of a kind with nothing to say."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind.

    Attributes:
        api_version, kind, resource, short_names: ``apps/v1``, ``Deployment``, ``deployments``, ``("deploy",)``.
        namespaced: whether its objects live in a namespace.
        message: its class; ``field`` is its member of ``Object``.
        default: completes an object in place.
        carry_over: completes an update with what the server once filled in and the client does not repeat.
        validate, validate_update: add what is wrong (of the object; of the change from the stored one).
        on_create: sets the status a new object starts with.
        status_on_create: a creator's status is kept (nodes register with theirs).
        selectable: field path → its value as text; besides ``metadata.name`` and ``metadata.namespace``.
    """

    api_version: str
    kind: str
    resource: str
    short_names: tuple[str, ...]
    namespaced: bool
    message: type[Any]
    field: str
    default: Callable[[Any], None] = _nothing
    carry_over: Callable[[Any, Any], None] = _nothing
    validate: Callable[[Any, Faults], None] = _nothing
    validate_update: Callable[[Any, Any, Faults], None] = _nothing
    on_create: Callable[[Any], None] = _nothing
    status_on_create: bool = False
    selectable: Mapping[str, Callable[[Any], str]] = dataclasses.field(default_factory=dict)

    @property
    def group(self) -> str:
        """The API group; empty for the core group."""
        group, slash, _ = self.api_version.partition("/")
        return group if slash else ""

    @property
    def qualified(self) -> str:
        """``deployments.apps``: the resource as Kubernetes' messages name it."""
        return f"{self.resource}.{self.group}" if self.group else self.resource

    @property
    def has_status(self) -> bool:
        """Whether status is a subresource of its own."""
        return "status" in self.message.DESCRIPTOR.fields_by_name

    @property
    def has_generation(self) -> bool:
        """Whether the object is desired state, whose changes are counted."""
        return "spec" in self.message.DESCRIPTOR.fields_by_name or self.kind == "EndpointSlice"

    @property
    def field_number(self) -> int:
        """The number of its member of ``Object``."""
        return api_pb2.Object.DESCRIPTOR.fields_by_name[self.field].number

    def check(self, obj: Any) -> None:
        """Raise InvalidError if the object breaks a rule."""
        faults = Faults()
        validation.validate_meta(obj.metadata, faults)
        self.validate(obj, faults)
        self._raise(obj.metadata.name, faults)

    def check_update(self, new: Any, old: Any) -> None:
        """Raise InvalidError if the new object, or the change, breaks a rule."""
        faults = Faults()
        validation.validate_meta(new.metadata, faults)
        self.validate(new, faults)
        self.validate_update(new, old, faults)
        self._raise(new.metadata.name, faults)

    def _raise(self, name: str, faults: Faults) -> None:
        if faults.causes:
            raise invalid(self, name, faults)


def invalid(kind: Kind, name: str, faults: Faults) -> InvalidError:
    """The error Kubernetes answers: ``Deployment.apps "web" is invalid: spec.replicas: Invalid value: ...``."""
    said = [f"{cause.field}: {cause.message}" for cause in faults.causes]
    text = said[0] if len(said) == 1 else f"[{', '.join(said)}]"
    title = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    return InvalidError(
        Code.INVALID_ARGUMENT, f'{title} "{name}" is invalid: {text}', reason="Invalid", causes=faults.causes
    )


def _new_namespace(namespace: core_v1_pb2.Namespace) -> None:
    namespace.status.phase = "Active"


def _new_pod(pod: core_v1_pb2.Pod) -> None:
    pod.status.phase = "Pending"
    pod.status.qosClass = defaults.qos_class(pod.spec)


_INVOLVED: Final[dict[str, Callable[[Any], str]]] = {
    f"involvedObject.{name}": lambda event, name=name: str(getattr(event.involvedObject, name))  # type: ignore[misc]
    for name in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
}

KINDS: Final[tuple[Kind, ...]] = (
    Kind(
        "v1", "Namespace", "namespaces", ("ns",), False, core_v1_pb2.Namespace, "namespace",
        default=defaults.default_namespace,
        validate=validation.validate_namespace,
        on_create=_new_namespace,
        selectable={"status.phase": lambda o: o.status.phase},
    ),
    Kind(
        "v1", "Node", "nodes", ("no",), False, core_v1_pb2.Node, "node",
        validate=validation.validate_node,
        status_on_create=True,
        selectable={"spec.unschedulable": lambda o: str(o.spec.unschedulable).lower()},
    ),
    Kind(
        "v1", "Pod", "pods", ("po",), True, core_v1_pb2.Pod, "pod",
        default=defaults.default_pod,
        validate=validation_pod.validate_pod,
        validate_update=validation_pod.validate_pod_update,
        on_create=_new_pod,
        selectable={
            "spec.nodeName": lambda o: o.spec.nodeName,
            "spec.restartPolicy": lambda o: o.spec.restartPolicy,
            "spec.schedulerName": lambda o: o.spec.schedulerName,
            "status.phase": lambda o: o.status.phase,
            "status.podIP": lambda o: o.status.podIP,
        },
    ),
    Kind(
        "apps/v1", "ReplicaSet", "replicasets", ("rs",), True, apps_v1_pb2.ReplicaSet, "replica_set",
        default=defaults.default_replica_set,
        validate=validation.validate_replica_set,
        validate_update=validation.validate_replica_set_update,
        selectable={"status.replicas": lambda o: str(o.status.replicas)},
    ),
    Kind(
        "apps/v1", "Deployment", "deployments", ("deploy",), True, apps_v1_pb2.Deployment, "deployment",
        default=defaults.default_deployment,
        validate=validation.validate_deployment,
        validate_update=validation.validate_deployment_update,
    ),
    Kind(
        "v1", "Service", "services", ("svc",), True, core_v1_pb2.Service, "service",
        default=defaults.default_service,
        carry_over=defaults.carry_over_service,
        validate=validation.validate_service,
        validate_update=validation.validate_service_update,
        selectable={"spec.clusterIP": lambda o: o.spec.clusterIP, "spec.type": lambda o: o.spec.type},
    ),
    Kind(
        "discovery.k8s.io/v1", "EndpointSlice", "endpointslices", (), True,
        discovery_v1_pb2.EndpointSlice, "endpoint_slice",
        default=defaults.default_endpoint_slice,
        validate=validation.validate_endpoint_slice,
        validate_update=validation.validate_endpoint_slice_update,
    ),
    Kind(
        "v1", "ConfigMap", "configmaps", ("cm",), True, core_v1_pb2.ConfigMap, "config_map",
        validate=validation.validate_config_map,
        validate_update=validation.validate_config_map_update,
    ),
    Kind(
        "v1", "Event", "events", ("ev",), True, core_v1_pb2.Event, "event",
        default=defaults.default_event,
        validate=validation.validate_event,
        selectable={
            **_INVOLVED,
            "reason": lambda o: o.reason,
            "reportingComponent": lambda o: o.reportingComponent,
            "source": lambda o: o.source.component,
            "type": lambda o: o.type,
        },
    ),
)  # fmt: skip

_BY_MESSAGE: Final = {row.message: row for row in KINDS}
_BY_FIELD: Final = {row.field: row for row in KINDS}
_BY_RESOURCE: Final = {row.resource: row for row in KINDS}
_BY_MANIFEST: Final = {(row.api_version, row.kind): row for row in KINDS}


def kind_of(obj: Message) -> Kind:
    """The row of an object.

    Raises:
        KeyError: its class is no kind of this API.
    """
    return _BY_MESSAGE[type(obj)]


def kind_of_field(name: str | None) -> Kind:
    """The row of a member of ``Object``; ApiError (BadRequest) when the Object holds none."""
    if name is None:
        raise bad_request(f"the object is empty: set one of {', '.join(_BY_FIELD)}")
    return _BY_FIELD[name]


def kind_of_resource(name: str) -> Kind:
    """The row of a plural resource name.

    Raises:
        ApiError: there is no such resource (NOT_FOUND); the message lists those there are.
    """
    row = _BY_RESOURCE.get(name)
    if row is None:
        raise ApiError(
            Code.NOT_FOUND,
            f"the server doesn't have a resource type {name!r}; it has: {', '.join(_BY_RESOURCE)}",
            reason="NotFound",
        )
    return row


def kind_of_manifest(api_version: object, kind: object) -> Kind:
    """The row of a manifest's ``apiVersion`` and ``kind``.

    Raises:
        ApiError: one is missing, or there is no such kind (INVALID_ARGUMENT); the message names the nearest.
    """
    for name, value in (("apiVersion", api_version), ("kind", kind)):
        if not isinstance(value, str) or not value:
            raise bad_request(f"the manifest names no {name}: add `{name}: ...`")
    row = _BY_MANIFEST.get((str(api_version), str(kind)))
    if row is not None:
        return row
    versions = [r.api_version for r in KINDS if r.kind == kind]
    if versions:
        hint = f"{kind} is served in version {versions[0]}"
    else:
        near = difflib.get_close_matches(str(kind), [r.kind for r in KINDS], n=1, cutoff=0.7)
        hint = f'did you mean "{near[0]}"?' if near else f"kinds served here: {', '.join(r.kind for r in KINDS)}"
    raise bad_request(f'no matches for kind "{kind}" in version "{api_version}": {hint}')
