"""Patches of plain JSON values: RFC 7386, RFC 6902, and the three-way merge of apply. Pure.

The three-way merge changes what the manifest says, removes what the manifest said last time and says no more, and
leaves the rest, which belongs to others (controllers, other clients). Lists of named things merge by their names.
Source: "Declarative Management of Kubernetes Objects Using Configuration Files".
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Final

import jsonpatch
import jsonpointer

from controlplane.api.errors import ApiError
from controlplane.base.errors import Code

__all__ = ["OPERATIONS_MAX", "json_patch", "merge_patch", "three_way_merge"]

#: Operations in one JSON patch.
OPERATIONS_MAX: Final = 10_000

#: List field → candidates for what names an item; the first that every item has.
_MERGE_KEYS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "addresses": (("type", "address"),),
    "conditions": (("type",),),
    "containers": (("name",),),
    "env": (("name",),),
    "ephemeralContainers": (("name",),),
    "hostAliases": (("ip",),),
    "imagePullSecrets": (("name",),),
    "initContainers": (("name",),),
    "ownerReferences": (("uid",),),
    "ports": (("containerPort", "protocol"), ("port", "protocol")),
    "taints": (("key", "effect"),),
    "topologySpreadConstraints": (("topologyKey", "whenUnsatisfiable"),),
    "volumeDevices": (("devicePath",),),
    "volumeMounts": (("mountPath",),),
    "volumes": (("name",),),
}
#: What an item that leaves part of its name out means.
_MERGE_KEY_DEFAULTS: Final = {"protocol": "TCP", "effect": "", "whenUnsatisfiable": "DoNotSchedule"}
#: One-of mappings: naming one member drops the others (Kubernetes' retainKeys).
_RETAIN_KEYS: Final = frozenset({"strategy", "volumes"})
#: Lists of texts that are sets.
_SETS: Final = frozenset({"finalizers"})


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386; neither argument is changed."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def json_patch(target: Any, operations: Any) -> Any:
    """RFC 6902; neither argument is changed.

    Raises:
        ApiError: the patch is malformed, does not fit the target, or its test failed (INVALID_ARGUMENT).
    """
    if not isinstance(operations, list) or not all(isinstance(o, dict) for o in operations):
        raise _bad("a JSON patch must be a list of operations such as {op, path, value}")
    if len(operations) > OPERATIONS_MAX:
        raise _bad(f"a JSON patch may have at most {OPERATIONS_MAX} operations, not {len(operations)}")
    try:
        return jsonpatch.JsonPatch(operations).apply(target)
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException, TypeError, KeyError) as error:
        raise _bad(f"the JSON patch cannot be applied: {error!r}") from error


def _bad(message: str) -> ApiError:
    return ApiError(Code.INVALID_ARGUMENT, message, reason="Invalid")


def three_way_merge(original: Any, modified: Any, live: Any, field: str = "") -> Any:
    """``live`` brought to what ``modified`` says; ``original`` is what the manifest said last time."""
    if isinstance(modified, dict) and isinstance(live, dict):
        return _merge_mappings(original if isinstance(original, dict) else {}, modified, live, field)
    if isinstance(modified, list) and isinstance(live, list):
        before = original if isinstance(original, list) else []
        if field in _SETS:
            return [*modified, *(item for item in live if item not in modified and item not in before)]
        names = _merge_key(field, (*modified, *live, *before))
        if names:
            return _merge_named(before, modified, live, field, names)
    return copy.deepcopy(modified)


def _merge_mappings(
    original: dict[str, Any], modified: dict[str, Any], live: dict[str, Any], field: str
) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key, value in live.items():
        retained = key in modified if field in _RETAIN_KEYS and key != "name" else True
        dropped = key in original and key not in modified
        if retained and not dropped:
            merged[key] = value
    for key, value in modified.items():
        if value is None:
            merged.pop(key, None)
        elif key in merged:
            merged[key] = three_way_merge(original.get(key), value, merged[key], key)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _merge_named(
    original: list[Any], modified: list[Any], live: list[Any], field: str, names: tuple[str, ...]
) -> list[Any]:
    before = {_name(item, names): item for item in original}
    present = {_name(item, names): item for item in live}
    wanted = {_name(item, names) for item in modified}
    merged = [
        three_way_merge(before.get(name), item, present[name], field)
        if (name := _name(item, names)) in present
        else item
        for item in modified
    ]
    others = [item for name, item in present.items() if name not in wanted and name not in before]
    return copy.deepcopy(merged) + others


def _merge_key(field: str, items: Sequence[Any]) -> tuple[str, ...]:
    """What names the items of this list; empty when the list is replaced as a whole."""
    for names in _MERGE_KEYS.get(field, ()):
        if all(isinstance(item, dict) and names[0] in item for item in items):
            return names
    return ()


def _name(item: dict[str, Any], names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(str(item.get(name, _MERGE_KEY_DEFAULTS.get(name, ""))) for name in names)
