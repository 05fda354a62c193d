"""What a client says beside its request: deadline and metadata.

Owns the names of the metadata keys. Pure reading of a gRPC context; decides nothing.
"""

from __future__ import annotations

from typing import Any, Final

import grpc

from controlplane.base.errors import Code, StatusError

__all__ = [
    "LOG_INDEX_KEY",
    "REQUEST_ID_KEY",
    "REQUIRE_LEADER_KEY",
    "TOKEN_KEYS",
    "Context",
    "born_index_of",
    "client_version_of",
    "request_id_of",
    "requires_leader",
    "timeout_ms_of",
    "token_of",
]

Context = grpc.aio.ServicerContext[Any, Any]

#: etcd's: `true` asks to fail at once when this replica knows no leader.
REQUIRE_LEADER_KEY: Final = "hasleader"
#: etcd's: the version of the client's library.
_CLIENT_VERSION_KEY: Final = "client-api-version"
#: etcd's: what Authenticate returned, in gRPC and in JSON.
TOKEN_KEYS: Final = ("token", "authorization")
#: Ours: 32 hex digits, unique for the write; a retry with the same id has no second effect.
REQUEST_ID_KEY: Final = "qd-request-id"
#: Ours, with a request id. In the initial metadata of a write's answer: a log index from before it was proposed. In a
#: retry: that index, as the first attempt was told it, or one from before that. A store that may have forgotten the
#: ids of that time refuses the retry instead of doing it again.
LOG_INDEX_KEY: Final = "qd-log-index"

_REQUEST_ID_BYTES: Final = 16
_INDEX_DIGITS_MAX: Final = 19
#: Given to work whose client named no deadline longer than this; grpc says "for ever" as a huge number.
_TIMEOUT_MS_MAX: Final = 3_600_000


def timeout_ms_of(context: Context) -> int | None:
    """What is left until the client's deadline; None when it set none."""
    remaining_s: Any = context.time_remaining()  # None without a deadline, whatever grpc's stubs say
    if remaining_s is None or remaining_s * 1000 > _TIMEOUT_MS_MAX:
        return None
    return max(1, int(remaining_s * 1000))


def request_id_of(context: Context) -> bytes:
    """The write's identity as the client gave it; empty when it gave none.

    Raises:
        StatusError: InvalidArgument, it is not 32 hexadecimal digits.
    """
    text = _metadata(context, REQUEST_ID_KEY)
    if text is None:
        return b""
    try:
        request_id = bytes.fromhex(text)
    except ValueError:
        request_id = b""
    if len(request_id) != _REQUEST_ID_BYTES:
        raise StatusError(Code.INVALID_ARGUMENT, f"metadata {REQUEST_ID_KEY}: want 32 hexadecimal digits")
    return request_id


def born_index_of(context: Context) -> int:
    """Of a retry: a log index from before its first attempt; 0: it is none, or says none.

    Raises:
        StatusError: InvalidArgument, it is not a decimal number of 64 bits.
    """
    text = _metadata(context, LOG_INDEX_KEY) or "0"
    if not (text.isascii() and text.isdecimal()) or len(text) > _INDEX_DIGITS_MAX or int(text) >> 63:
        raise StatusError(Code.INVALID_ARGUMENT, f"metadata {LOG_INDEX_KEY}: want a decimal number below 2^63")
    return int(text)


def client_version_of(context: Context) -> str | None:
    """What the client says of its own version; None: nothing."""
    return _metadata(context, _CLIENT_VERSION_KEY)


def requires_leader(context: Context) -> bool:
    """Whether the client would rather fail than be served by a replica without a leader."""
    return _metadata(context, REQUIRE_LEADER_KEY) == "true"


def token_of(context: Context) -> str:
    """The token that the caller shows; empty: none."""
    for key in TOKEN_KEYS:
        token = _metadata(context, key)
        if token:
            return token.removeprefix("Bearer ")
    return ""


def _metadata(context: Context, key: str) -> str | None:
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return value if isinstance(value, str) else bytes(value).decode("ascii", "replace")
    return None
