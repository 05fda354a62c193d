"""What is in a snapshot, in words of the resource API: its objects, how they differ from another's, as manifests.

Owns reading objects out of stored keys, what of an object the server sets, and comparing two sets field by field. Pure
but for reading the file. Writing anything back is the ordinary API's business (``cli.snapshot``).

Keys that are not the resource API's (``/registry/``) are compared as bytes; the control plane's own (``/quarterdeck/``)
speak of reigns and ranges, not of what users keep, and are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from controlplane.api.registry import KINDS
from controlplane.api.storage import REGISTRY, decode, name_in_key, raw_message
from controlplane.client.codec import to_dict
from controlplane.client.kinds import info_of
from controlplane.pb.etcd.kv_pb2 import KeyValue
from controlplane.recovery import contents

__all__ = [
    "LAST_APPLIED",
    "Contents",
    "Difference",
    "ObjectId",
    "contents_of",
    "differences",
    "is_derived",
    "without_server_fields",
]

_OWN: Final = b"/quarterdeck/"
#: metadata that the server, or the clock, sets.
_SERVER_METADATA: Final = (
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "managedFields",
    "ownerReferences",
)
#: What apply remembers of the last manifest: not what a user says, but how.
LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
#: Kinds that follow from others, or from agents that live.
_DERIVED_KINDS: Final = frozenset({"Event", "EndpointSlice", "Node"})
#: Namespaces first: everything else stands in one.
_FIRST: Final = ("Namespace", "ConfigMap", "Service", "Deployment")


class ObjectId(NamedTuple):
    """Which object; the namespace of a cluster-scoped one is "". Of a plain key: no kind, and the key as its name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        if not self.kind:
            return f"key {self.name}"
        return f"{self.kind.lower()}/{self.name}" + (f" in namespace {self.namespace}" if self.namespace else "")


@dataclass(slots=True)
class Contents:
    """Objects as messages, and digests of plain keys."""

    objects: dict[ObjectId, Any] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    def ordered(self) -> list[ObjectId]:
        """In an order in which they can be created: namespaces first."""
        place = {kind: n for n, kind in enumerate(_FIRST)}
        return sorted(self.objects, key=lambda o: (place.get(o.kind, len(_FIRST)), o.namespace, o.kind, o.name))


def contents_of(source: Path | Iterable[KeyValue]) -> Contents:
    """What a plain snapshot file, or these keys, hold.

    Raises:
        CorruptStateError: the file is damaged.
        ApiError: a stored value is none of this API's (INTERNAL).
    """
    kvs = contents(source) if isinstance(source, Path) else source
    by_resource = {kind.resource: kind for kind in KINDS}
    found = Contents()
    for kv in kvs:
        key = kv.key.decode(errors="backslashreplace")
        resource = key.removeprefix(REGISTRY).partition("/")[0] if key.startswith(REGISTRY) else ""
        if kind := by_resource.get(resource):
            namespace, name = name_in_key(kind, kv.key)
            obj = decode(kind, raw_message(kind, kv.key, kv.value), kv.mod_revision)
            found.objects[ObjectId(kind.kind, namespace, name)] = obj
        elif not kv.key.startswith(_OWN):
            found.keys[key] = f"sha256:{hashlib.sha256(kv.value).hexdigest()} ({len(kv.value)} bytes)"
    return found


def is_derived(obj: Any) -> bool:
    """Whether somebody makes it again by themselves: a controller whose it is, or an agent."""
    owned = any(reference.controller for reference in obj.metadata.ownerReferences)
    return owned or info_of(type(obj)).kind in _DERIVED_KINDS


def without_server_fields(obj: Any) -> Any:
    """A copy with only what a user says: no status, no identity, no node chosen by the scheduler."""
    copy = type(obj)()
    copy.CopyFrom(obj)
    for name in _SERVER_METADATA:
        copy.metadata.ClearField(name)
    copy.metadata.annotations.pop(LAST_APPLIED, None)
    if "status" in copy.DESCRIPTOR.fields_by_name:
        copy.ClearField("status")
    if info_of(type(obj)).kind == "Pod":
        copy.spec.ClearField("nodeName")
    return copy


@dataclass(frozen=True, slots=True)
class Difference:
    """How one object differs. ``change``: ``removed`` (only the first set has it), ``added`` (only the second), or
    ``changed``, with (path, value in the first, value in the second) of every field; None: it is not there."""

    id: ObjectId
    change: str
    fields: tuple[tuple[str, Any, Any], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For ``-o json``."""
        return {
            "change": self.change,
            "kind": self.id.kind or "Key",
            "namespace": self.id.namespace,
            "name": self.id.name,
            "fields": [{"path": path, "snapshot": before, "live": after} for path, before, after in self.fields],
        }


def differences(
    first: Contents, second: Contents, *, status: bool = False, events: bool = False
) -> Iterator[Difference]:
    """How the second differs from the first, in order of kind, namespace and name.

    Args:
        status: compare statuses, identities (uid, generation, times) and EndpointSlices too, not only what users say.
        events: compare Events too.
    """

    def shown(obj: Any) -> Any:
        document = to_dict(obj if status else _said(obj))
        document.get("metadata", {}).pop("resourceVersion", None)
        return document

    for which in sorted({*first.objects, *second.objects}):
        if (which.kind == "Event" and not events) or (which.kind == "EndpointSlice" and not status):
            continue
        before, after = first.objects.get(which), second.objects.get(which)
        if before is None or after is None:
            yield Difference(which, "added" if before is None else "removed")
        elif before != after and (fields := tuple(_fields("", shown(before), shown(after)))):
            yield Difference(which, "changed", fields)
    for key in sorted({*first.keys, *second.keys}):
        here, there = first.keys.get(key), second.keys.get(key)
        if here != there:
            change = "added" if here is None else "removed" if there is None else "changed"
            fields = (("value", here, there),) if change == "changed" else ()
            yield Difference(ObjectId("", "", key), change, fields)


def _said(obj: Any) -> Any:
    copy = without_server_fields(obj)
    copy.metadata.ownerReferences.extend(obj.metadata.ownerReferences)
    if info_of(type(obj)).kind == "Pod":
        copy.spec.nodeName = obj.spec.nodeName
    return copy


def _fields(path: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    """Paths at which two documents differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in sorted({*before, *after}):
            step = f"[{name!r}]" if "." in name or "/" in name else f".{name}"
            yield from _fields(f"{path}{step}", before.get(name), after.get(name))
    elif isinstance(before, list) and isinstance(after, list):
        for n in range(max(len(before), len(after))):
            here = before[n] if n < len(before) else None
            there = after[n] if n < len(after) else None
            yield from _fields(f"{path}[{n}]", here, there)
    elif before != after:
        yield path.removeprefix("."), before, after
