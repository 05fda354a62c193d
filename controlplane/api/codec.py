"""Manifests: JSON and YAML with ``apiVersion`` and ``kind`` ⇄ Kubernetes' messages. Pure.

Owns what stands around a message (``api.jsonpb`` has its fields): the kind, strictness as errors, warnings for fields
that are kept but not acted on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from controlplane.api.documents import DocumentError, dump_yaml, load_json, load_yaml_documents
from controlplane.api.faults import Faults
from controlplane.api.ignored import IGNORED_FIELDS
from controlplane.api.jsonpb import Reader, to_json
from controlplane.api.registry import Kind, invalid, kind_of, kind_of_manifest

__all__ = [
    "Decoded",
    "DocumentError",
    "decode",
    "dump_yaml",
    "fields_from_dict",
    "from_dict",
    "load_json",
    "load_manifests",
    "to_dict",
]


@dataclass(frozen=True, slots=True)
class Decoded:
    """A manifest as a message. ``warnings`` name fields that are kept but not acted on here."""

    kind: Kind
    message: Any
    warnings: tuple[str, ...]


def to_dict(obj: Message) -> dict[str, Any]:
    """The object as plain values, ``apiVersion`` and ``kind`` first; unset and empty fields left out.

    Raises:
        KeyError: the message is no kind of this API.
    """
    kind = kind_of(obj)
    return {"apiVersion": kind.api_version, "kind": kind.kind, **to_json(obj)}


def from_dict(manifest: Mapping[str, Any]) -> Any:
    """The manifest as its message.

    Raises:
        InvalidError: unknown or wrongly typed fields, each with its path and what is allowed.
        ApiError: unknown kind.
    """
    return decode(manifest).message


def decode(manifest: Any) -> Decoded:
    """As :func:`from_dict`, with the kind and the warnings."""
    if not isinstance(manifest, Mapping):
        raise DocumentError("a manifest must be a mapping with apiVersion, kind and metadata")
    kind = kind_of_manifest(manifest.get("apiVersion"), manifest.get("kind"))
    message, warnings = fields_from_dict(kind, manifest)
    return Decoded(kind, message, warnings)


def fields_from_dict(kind: Kind, manifest: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The fields of an object of a known kind, and the warnings; ``apiVersion`` and ``kind`` are passed over."""
    reader = Reader(IGNORED_FIELDS)
    message = kind.message()
    reader.read({key: value for key, value in manifest.items() if key not in ("apiVersion", "kind")}, message)
    if reader.faults:
        raise invalid(kind, _name(manifest), Faults(reader.faults))
    warnings = tuple(f"{path}: kept, but not acted on by this control plane" for path in dict.fromkeys(reader.warnings))
    return message, warnings


def load_manifests(text: str | bytes) -> list[dict[str, Any]]:
    """Every manifest of a YAML or JSON stream, ``List`` objects opened.

    Raises:
        DocumentError: the text cannot be read, or a document is not a mapping.
    """
    found: list[dict[str, Any]] = []
    for document in load_yaml_documents(text):
        if not isinstance(document, dict):
            raise DocumentError("every document must be a mapping with apiVersion, kind and metadata")
        if document.get("kind") == "List":
            items = document.get("items")
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise DocumentError("a List must have `items`, a list of manifests")
            found.extend(items)
        else:
            found.append(document)
    return found


def _name(manifest: Mapping[str, Any]) -> str:
    metadata = manifest.get("metadata")
    name = metadata.get("name") or metadata.get("generateName") if isinstance(metadata, Mapping) else ""
    return name if isinstance(name, str) else ""
