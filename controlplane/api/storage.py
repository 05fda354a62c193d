"""Objects as stored bytes, and stored bytes as answers. Pure.

Owns the layout: key ``/registry/<resource>/[<namespace>/]<name>``, value ``k8s\\0`` and a ``runtime.Unknown`` holding
the object's message, as Kubernetes keeps it in etcd. The stored message has no resource version: it is the key's mod
revision, appended on the way out as a trailing ``metadata`` field, which protobuf merges into the first. Bytes and
embedded messages share a wire type, so ``Object``, ``ListResponse`` and ``WatchEvent`` are put together around the
stored bytes without parsing them.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from google.protobuf.message import DecodeError

from controlplane.api.errors import ApiError
from controlplane.api.registry import Kind
from controlplane.base.errors import Code
from controlplane.pb.k8s.runtime_pb2 import TypeMeta, Unknown
from controlplane.pb.quarterdeck.v1 import api_pb2

__all__ = [
    "REGISTRY",
    "decode",
    "encode",
    "key_of",
    "list_response_bytes",
    "name_in_key",
    "object_bytes",
    "prefix_end",
    "prefix_of",
    "raw_message",
    "watch_event_bytes",
]

#: Everything the resource API stores is below this key.
REGISTRY: Final = "/registry/"
_MAGIC: Final = b"k8s\0"
_LEN: Final = 2  # the wire type of strings, bytes and messages


def key_of(kind: Kind, namespace: str, name: str) -> bytes:
    """The key of one object."""
    middle = f"{namespace}/" if kind.namespaced else ""
    return f"{REGISTRY}{kind.resource}/{middle}{name}".encode()


def prefix_of(kind: Kind, namespace: str = "") -> bytes:
    """The prefix of all objects of a kind, or of those in one namespace."""
    return f"{REGISTRY}{kind.resource}/{f'{namespace}/' if namespace else ''}".encode()


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of keys that start with ``prefix`` (which ends in a slash)."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def name_in_key(kind: Kind, key: bytes) -> tuple[str, str]:
    """Namespace (empty for cluster-scoped kinds) and name."""
    rest = key[len(prefix_of(kind)) :].decode(errors="replace")
    namespace, _, name = rest.rpartition("/")
    return namespace, name


# -- one value ------------------------------------------------------------------------------------------------------


@cache
def _envelope_head(api_version: str, kind: str) -> bytes:
    type_meta = TypeMeta(apiVersion=api_version, kind=kind).SerializeToString()
    return _MAGIC + _tag(1) + _varint(len(type_meta)) + type_meta + _tag(2)


#: Kubernetes writes the two content fields although they are empty.
_ENVELOPE_TAIL: Final = bytes((0x1A, 0, 0x22, 0))


def encode(kind: Kind, obj: Any) -> tuple[bytes, bytes]:
    """The stored value and, inside it, the message's bytes (equal objects give equal bytes).

    The object's resource version, self link and managed fields are not stored: ``obj`` loses them.
    """
    for name in ("resourceVersion", "selfLink", "managedFields"):
        obj.metadata.ClearField(name)
    raw: bytes = obj.SerializeToString(deterministic=True)
    head = _envelope_head(kind.api_version, kind.kind)
    return b"".join((head, _varint(len(raw)), raw, _ENVELOPE_TAIL)), raw


def raw_message(kind: Kind, key: bytes, value: bytes) -> bytes:
    """The message's bytes in a stored value.

    Raises:
        ApiError: the value is not of this API's making (INTERNAL); the message names its key.
    """
    head = _envelope_head(kind.api_version, kind.kind)
    if value.startswith(head):
        size, start = _read_varint(value, len(head))
        if start + size <= len(value):
            return value[start : start + size]
    try:
        if not value.startswith(_MAGIC):
            raise DecodeError("no k8s envelope")
        unknown = Unknown.FromString(value[len(_MAGIC) :])
        if unknown.typeMeta.kind != kind.kind or unknown.contentEncoding:
            raise DecodeError(f"holds {unknown.typeMeta.kind!r}, encoding {unknown.contentEncoding!r}")
    except DecodeError as error:
        raise ApiError(
            Code.INTERNAL, f"the value stored at {key.decode(errors='replace')} is no {kind.kind}: {error}"
        ) from error
    return unknown.raw


def decode(kind: Kind, raw: bytes, revision: int) -> Any:
    """The message, with its resource version."""
    try:
        obj = kind.message.FromString(raw)
    except DecodeError as error:
        raise ApiError(Code.INTERNAL, f"a stored {kind.kind} of revision {revision} is damaged: {error}") from error
    obj.metadata.resourceVersion = str(revision)
    return obj


# -- answers around stored bytes ------------------------------------------------------------------------------------


def object_bytes(kind: Kind, raw: bytes, revision: int) -> bytes:
    """An ``Object`` holding the message with that resource version."""
    version = b"%d" % revision
    # metadata (1) { resourceVersion (6) = version }
    trailer = b"".join((b"\x0a", _varint(2 + len(version)), b"\x32", _varint(len(version)), version))
    return b"".join((_tag(kind.field_number), _varint(len(raw) + len(trailer)), raw, trailer))


def list_response_bytes(items: list[bytes], revision: int, continue_token: str = "", remaining: int = 0) -> bytes:
    """A ``ListResponse`` of ``Object`` bytes."""
    parts: list[bytes] = []
    for item in items:
        parts += (b"\x0a", _varint(len(item)), item)
    tail = api_pb2.ListResponse(
        resource_version=str(revision), continue_token=continue_token, remaining_item_count=remaining
    )
    return b"".join((*parts, tail.SerializeToString()))


def watch_event_bytes(type: int, item: bytes | None, revision: int) -> bytes:
    """A ``WatchEvent`` around ``Object`` bytes (None for a bookmark)."""
    version = b"%d" % revision
    held = b"" if item is None else b"".join((b"\x12", _varint(len(item)), item))
    return b"".join((b"\x08", _varint(type), held, b"\x1a", _varint(len(version)), version))


# -- protobuf's wire format -----------------------------------------------------------------------------------------


def _tag(number: int) -> bytes:
    return _varint(number << 3 | _LEN)


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return len(data), at  # beyond the end: the caller falls back to the parser, which says what is wrong
