"""Frames of HTTP/2: layout, kinds, flags, settings, error codes (RFC 9113, sections 4, 6 and 7).

Owns the numbers and the building of frames. Knows no connection and no state.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import Final

__all__ = [
    "ACK",
    "END_HEADERS",
    "END_STREAM",
    "FRAME_BYTES_DEFAULT",
    "FRAME_BYTES_LARGEST",
    "FRAME_HEAD",
    "HEAD_BYTES",
    "PADDED",
    "PREFACE",
    "PRIORITY_FLAG",
    "STREAM_ID_MAX",
    "WINDOW_DEFAULT",
    "WINDOW_MAX",
    "ErrorCode",
    "H2Error",
    "Kind",
    "Setting",
    "frame",
    "goaway",
    "headers",
    "ping",
    "read_settings",
    "reset",
    "settings",
    "unpadded",
    "window_update",
]

#: What every client sends first (section 3.4).
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

#: A frame's first nine bytes as (length << 8 | kind, flags, stream id with the reserved bit).
FRAME_HEAD: Final = Struct(">IBI")
HEAD_BYTES: Final = FRAME_HEAD.size

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

STREAM_ID_MAX: Final = 2**31 - 1
WINDOW_DEFAULT: Final = 65_535
WINDOW_MAX: Final = 2**31 - 1
FRAME_BYTES_DEFAULT: Final = 16_384
FRAME_BYTES_LARGEST: Final = 2**24 - 1

_SETTING: Final = Struct(">HI")
_U32: Final = Struct(">I")
_TWO_U32: Final = Struct(">II")


class Kind(IntEnum):
    """Frame types."""

    DATA = 0x0
    HEADERS = 0x1
    PRIORITY = 0x2
    RST_STREAM = 0x3
    SETTINGS = 0x4
    PUSH_PROMISE = 0x5
    PING = 0x6
    GOAWAY = 0x7
    WINDOW_UPDATE = 0x8
    CONTINUATION = 0x9


class Setting(IntEnum):
    """SETTINGS parameters."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class ErrorCode(IntEnum):
    """Why a stream or a connection ended (section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class H2Error(Exception):
    """The peer broke the protocol or a limit: the connection ends with this code (or only the stream, if one is named).

    Args:
        code: sent in GOAWAY, or in RST_STREAM.
        text: for the log and GOAWAY's debug data.
        stream_id: 0 for an error of the connection.
    """

    def __init__(self, code: ErrorCode, text: str, stream_id: int = 0) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.stream_id = stream_id


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return FRAME_HEAD.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def headers(stream_id: int, block: bytes, *, end_stream: bool, frame_bytes_max: int = FRAME_BYTES_DEFAULT) -> bytes:
    """HEADERS with a whole block, continued where one frame does not hold it."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= frame_bytes_max:
        return frame(Kind.HEADERS, flags | END_HEADERS, stream_id, block)
    parts = [block[at : at + frame_bytes_max] for at in range(0, len(block), frame_bytes_max)]
    frames = [frame(Kind.HEADERS, flags, stream_id, parts[0])]
    frames += [frame(Kind.CONTINUATION, 0, stream_id, part) for part in parts[1:-1]]
    frames.append(frame(Kind.CONTINUATION, END_HEADERS, stream_id, parts[-1]))
    return b"".join(frames)


def settings(values: dict[Setting, int]) -> bytes:
    """SETTINGS with these values."""
    return frame(Kind.SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values.items()))


def ping(opaque: bytes, *, ack: bool) -> bytes:
    """PING with eight bytes."""
    return frame(Kind.PING, ACK if ack else 0, 0, opaque)


def goaway(last_stream_id: int, code: ErrorCode, text: str = "") -> bytes:
    """GOAWAY: streams above ``last_stream_id`` were not looked at."""
    return frame(Kind.GOAWAY, 0, 0, _TWO_U32.pack(last_stream_id, code) + text.encode())


def reset(stream_id: int, code: ErrorCode) -> bytes:
    """RST_STREAM."""
    return frame(Kind.RST_STREAM, 0, stream_id, _U32.pack(code))


def window_update(stream_id: int, more: int) -> bytes:
    """WINDOW_UPDATE: the peer may send ``more`` bytes more (stream 0: on the connection)."""
    return frame(Kind.WINDOW_UPDATE, 0, stream_id, _U32.pack(more))


def read_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """Settings as (key, value), checked (section 6.5.2); unknown keys come too.

    Raises:
        H2Error: a length or a value that the RFC forbids.
    """
    if len(payload) % _SETTING.size:
        raise H2Error(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
    for key, value in _SETTING.iter_unpack(payload):
        if key == Setting.ENABLE_PUSH and value > 1:
            raise H2Error(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH {value}")
        if key == Setting.INITIAL_WINDOW_SIZE and value > WINDOW_MAX:
            raise H2Error(ErrorCode.FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE {value}")
        if key == Setting.MAX_FRAME_SIZE and not FRAME_BYTES_DEFAULT <= value <= FRAME_BYTES_LARGEST:
            raise H2Error(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE {value}")
        yield key, value


def unpadded(payload: bytes, flags: int) -> bytes:
    """The payload of a DATA or HEADERS frame without padding and without the (deprecated) priority.

    Raises:
        H2Error: more padding than payload.
    """
    start, end = 0, len(payload)
    if flags & PADDED:
        if not payload:
            raise H2Error(ErrorCode.FRAME_SIZE_ERROR, "padded frame without a pad length")
        start, end = 1, end - payload[0]
    if flags & PRIORITY_FLAG:
        start += 5
    if start > end:
        raise H2Error(ErrorCode.PROTOCOL_ERROR, "more padding or priority than the frame has bytes")
    return payload[start:end]
