"""A header list as a gRPC request, and a status as trailers ("gRPC over HTTP2", section "Protocol").

Owns the names and encodings of gRPC's own headers: method, timeout, message encoding, binary metadata, status text.
Pure.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from controlplane.transport.h2.frames import ErrorCode, H2Error
from controlplane.transport.h2.headers import Field, literal, status_field

__all__ = [
    "RESPONSE_BLOCK",
    "STATUS_OK_BLOCK",
    "Metadata",
    "Request",
    "http_error",
    "metadata_block",
    "read_request",
    "response_block",
    "status_block",
    "trailers_only",
]

Metadata = Sequence[tuple[str, str | bytes]]

_UNIT_S: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_FORBIDDEN: Final = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
#: What the layers below the handler are told, not the handler.
_HIDDEN: Final = frozenset((b"te", b"content-type", b"content-length", b"host", b"grpc-timeout", b"grpc-encoding"))
_HIDDEN_MORE: Final = frozenset((b"grpc-accept-encoding", b"grpc-message-type", b"accept-encoding"))
_IDENTITY: Final = b"identity"

#: Headers of a response without metadata.
RESPONSE_BLOCK: Final = status_field(200) + literal(b"content-type", b"application/grpc")
#: Trailers of a call that succeeded.
STATUS_OK_BLOCK: Final = literal(b"grpc-status", b"0")


@dataclass(frozen=True, slots=True)
class Request:
    """What a call says before its first message.

    Attributes:
        method: ``/package.Service/Method``.
        metadata: as grpc.aio shows it.
        timeout_s: until the caller gives up; None: never.
        encoding: of its messages, if not identity.
        http_status: this is no gRPC request; it gets this HTTP status.
    """

    method: str
    metadata: tuple[tuple[str, str | bytes], ...]
    timeout_s: float | None = None
    encoding: str = ""
    http_status: int = 0


def read_request(fields: list[Field], stream_id: int) -> Request:
    """Check and read a request's headers.

    Raises:
        H2Error: of the stream: malformed by RFC 9113, section 8.
    """
    pseudo: dict[bytes, bytes] = {}
    plain: dict[bytes, bytes] = {}
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        if name[:1] == b":":
            if name not in _PSEUDO or name in pseudo or plain or metadata:
                raise _malformed(f"pseudo-header {name[:32]!r}", stream_id)
            pseudo[name] = value
        elif name in _FORBIDDEN or not _NAME.fullmatch(name) or b"\0" in value or b"\n" in value or b"\r" in value:
            raise _malformed(f"field {name[:32]!r}", stream_id)
        elif name in _HIDDEN or name in _HIDDEN_MORE:
            plain[name] = value
        else:
            metadata += _metadatum(name, value, stream_id)
    path = pseudo.get(b":path", b"")
    if not path or b":scheme" not in pseudo or b":method" not in pseudo:
        raise _malformed("a request needs :method, :scheme and :path", stream_id)
    if plain.get(b"te", b"trailers") != b"trailers":
        raise _malformed("te: want trailers", stream_id)
    http_status = 0
    if pseudo[b":method"] != b"POST":
        http_status = 405
    elif not plain.get(b"content-type", b"").startswith(b"application/grpc"):
        http_status = 415
    encoding = plain.get(b"grpc-encoding", _IDENTITY)
    return Request(
        path.decode("utf-8", "replace"),
        tuple(metadata),
        _timeout(plain.get(b"grpc-timeout"), stream_id),
        "" if encoding == _IDENTITY else encoding.decode("ascii", "replace")[:32],
        http_status,
    )


def _metadatum(name: bytes, value: bytes, stream_id: int) -> Iterable[tuple[str, str | bytes]]:
    key = name.decode("ascii")
    if not name.endswith(b"-bin"):
        return ((key, value.decode("utf-8", "replace")),)
    try:
        # Several values of one name may come joined; padding may be missing.
        return [(key, base64.b64decode(part + b"=" * (-len(part) % 4), validate=True)) for part in value.split(b",")]
    except binascii.Error as error:
        raise _malformed(f"metadata {key[:32]!r} is not base64", stream_id) from error


def _timeout(text: bytes | None, stream_id: int) -> float | None:
    if text is None:
        return None
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        raise _malformed(f"grpc-timeout {text[:32]!r}", stream_id)
    return int(match[1]) * _UNIT_S[match[2].decode()]


def _malformed(what: str, stream_id: int) -> H2Error:
    return H2Error(ErrorCode.PROTOCOL_ERROR, f"malformed request: {what}", stream_id)


# -- responses -------------------------------------------------------------------------------------------------------


def metadata_block(metadata: Metadata) -> bytes:
    """Encoded fields of a handler's metadata."""
    parts = []
    for name, value in metadata:
        key = name.lower().encode("ascii")
        if key.endswith(b"-bin"):
            raw = value if isinstance(value, bytes) else value.encode()
            parts.append(literal(key, base64.b64encode(raw).rstrip(b"=")))
        else:
            parts.append(literal(key, value if isinstance(value, bytes) else value.encode()))
    return b"".join(parts)


def response_block(metadata: Metadata) -> bytes:
    """Headers of a response."""
    return RESPONSE_BLOCK + metadata_block(metadata) if metadata else RESPONSE_BLOCK


def status_block(code: int, details: str, metadata: Metadata) -> bytes:
    """Trailers: the call's status, its text, and metadata."""
    if code == 0 and not details and not metadata:
        return STATUS_OK_BLOCK
    block = literal(b"grpc-status", str(code).encode())
    if details:
        block += literal(b"grpc-message", _percent_encoded(details))
    return block + metadata_block(metadata)


def trailers_only(code: int, details: str, metadata: Metadata = ()) -> bytes:
    """A response that is only a status."""
    return RESPONSE_BLOCK + status_block(code, details, metadata)


def http_error(status: int) -> bytes:
    """The answer to something that is no gRPC request."""
    return status_field(status) + literal(b"content-type", b"text/plain")


def _percent_encoded(text: str) -> bytes:
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in text.encode("utf-8", "replace")
    )
