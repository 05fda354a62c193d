"""From patches and manifests to the next state of an object. Pure.

Owns the last-applied annotation, by which a later apply knows what the manifest once said and says no more. A manifest
that is longer than annotations may be is not remembered, and its owner is warned.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from controlplane.api.codec import decode, fields_from_dict, load_json, to_dict
from controlplane.api.errors import bad_request
from controlplane.api.lifecycle import conflict
from controlplane.api.patch import json_patch, merge_patch, three_way_merge
from controlplane.api.registry import Kind
from controlplane.base.limits import ANNOTATIONS_BYTES_MAX
from controlplane.pb.quarterdeck.v1 import api_pb2

__all__ = ["LAST_APPLIED", "Manifest", "applied", "patched"]

LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
#: Half of what annotations may be: the rest is the object's own.
_REMEMBERED_BYTES_MAX: Final = ANNOTATIONS_BYTES_MAX // 2
#: What the server sets; a manifest written from a stored object may carry it, and it is passed over.
_SERVER_SET: Final = (
    "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "generation", "managedFields",
    "resourceVersion", "selfLink", "uid",
)  # fmt: skip


def patched(kind: Kind, old: Any, request: api_pb2.PatchRequest) -> Any:
    """``old`` after the patch, not yet admitted.

    Raises:
        ApiError: the patch is malformed, or changes what the object is.
        InvalidError: the result has unknown or wrongly typed fields.
    """
    if request.subresource not in ("", "status"):
        raise bad_request(f'subresource: Unsupported value: "{request.subresource}": supported values: "" and "status"')
    patch = load_json(request.patch)
    before = to_dict(old)
    if request.type == api_pb2.PatchRequest.JSON:
        after = json_patch(before, patch)
    elif request.type == api_pb2.PatchRequest.MERGE:
        if not isinstance(patch, dict):
            raise bad_request("a merge patch must be a JSON object")
        after = merge_patch(before, patch)
    else:
        raise bad_request("type: Required value: MERGE (RFC 7386) or JSON (RFC 6902)")
    if not isinstance(after, dict) or not isinstance(after.get("metadata"), dict):
        raise bad_request("a patch may not remove the object or its metadata")
    for name, was, now in (
        ("apiVersion", before["apiVersion"], after.get("apiVersion")),
        ("kind", before["kind"], after.get("kind")),
        ("metadata.name", old.metadata.name, after["metadata"].get("name")),
        ("metadata.namespace", old.metadata.namespace, after["metadata"].get("namespace", "")),
    ):
        if was != now:
            raise bad_request(f"a patch may not change {name} from {was!r} to {now!r}")
    return _checked_version(kind, fields_from_dict(kind, after)[0], old)


def _checked_version(kind: Kind, new: Any, old: Any) -> Any:
    wanted = new.metadata.resourceVersion
    if wanted and wanted != old.metadata.resourceVersion:
        raise conflict(kind, old.metadata.name)
    return new


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest on its way in. ``message`` has its fields (and the resource version it insists on, if any)."""

    kind: Kind
    message: Any
    values: Mapping[str, Any]
    warnings: tuple[str, ...]

    def new(self) -> Any:
        """The object to create."""
        obj = self.kind.message()
        obj.CopyFrom(self.message)
        obj.metadata.ClearField("resourceVersion")
        self._remember(obj)
        return obj

    def merged_into(self, old: Any) -> Any:
        """The stored object with the manifest merged in, not yet admitted."""
        live = to_dict(old)
        annotations = live["metadata"].get("annotations", {})
        try:
            original = json.loads(annotations.pop(LAST_APPLIED, "{}"))
        except ValueError:  # somebody wrote nonsense into the annotation: nothing is known to have been applied
            original = {}
        merged = three_way_merge(original, dict(self.values), live)
        message, _ = fields_from_dict(self.kind, merged)
        self._remember(message)
        return message

    def _remember(self, obj: Any) -> None:
        text = _canonical(self.values)
        if len(text) <= _REMEMBERED_BYTES_MAX:
            obj.metadata.annotations[LAST_APPLIED] = text


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"), sort_keys=True) + "\n"


def applied(text: bytes, default_namespace: str) -> Manifest:
    """A JSON manifest, checked.

    Raises:
        DocumentError, InvalidError, ApiError: it cannot be read; unknown kind or fields; no name.
    """
    values = load_json(text)
    decoded = decode(values)
    kind, message = decoded.kind, decoded.message
    meta = message.metadata
    if not meta.name:
        hint = " (apply cannot generate one: use create)" if meta.generateName else ""
        raise bad_request(f"metadata.name: Required value: a manifest to apply needs a name{hint}")
    values = copy.deepcopy(values)
    values.pop("status", None)
    for name in _SERVER_SET:
        values["metadata"].pop(name, None)
        if name != "resourceVersion":
            meta.ClearField(name)
    annotations = values["metadata"].get("annotations")
    if isinstance(annotations, dict):
        annotations.pop(LAST_APPLIED, None)
    meta.annotations.pop(LAST_APPLIED, None)
    if kind.namespaced and not meta.namespace:
        meta.namespace = values["metadata"]["namespace"] = default_namespace or "default"
    warnings = decoded.warnings
    size_bytes = len(_canonical(values))
    if size_bytes > _REMEMBERED_BYTES_MAX:
        warning = (
            f"the manifest is {size_bytes} bytes, more than the {_REMEMBERED_BYTES_MAX} that are remembered in an "
            "annotation: fields that a later manifest no longer has will not be removed from the object"
        )
        warnings = (*warnings, warning)
    return Manifest(kind, message, values, warnings)
