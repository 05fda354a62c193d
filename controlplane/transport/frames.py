"""Bytes of a peer link: a four-byte length, then one ``Frame``. Decoding trusts nothing.

Owns the framing and the checks that make a decoded frame safe to act on. Knows no socket and no Raft state.
"""

from __future__ import annotations

import struct

from google.protobuf.message import DecodeError

from controlplane.base.errors import QuarterdeckError
from controlplane.base.limits import FRAME_BYTES_MAX
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import AppendEntries, Entry, Frame, RaftMessage

__all__ = [
    "HEADER_BYTES",
    "PROTOCOL_REVISION",
    "PROTOCOL_VERSION",
    "FrameError",
    "check_raft",
    "decode",
    "encode",
    "encode_raft",
    "frame_length",
]

#: Spoken by this version. A peer with another one is refused, by name, in its handshake.
PROTOCOL_VERSION = 1
#: What it understands beyond that; see Hello.revision. Peers of a lower one are not sent what they do not know.
PROTOCOL_REVISION = 1

_HEADER = struct.Struct(">I")
HEADER_BYTES = _HEADER.size
#: Field Frame.raft, length-delimited.
_RAFT_TAG = bytes((Frame.RAFT_FIELD_NUMBER << 3 | 2,))


class FrameError(QuarterdeckError):
    """The bytes are not a frame a member of this cluster would send. The link is closed; nothing else happens."""


def encode(frame: Frame) -> bytes:
    """Length and bytes of ``frame``.

    Raises:
        FrameError: larger than FRAME_BYTES_MAX.
    """
    body = frame.SerializeToString()
    if len(body) > FRAME_BYTES_MAX:
        raise FrameError(f"frame of {len(body)} bytes exceeds FRAME_BYTES_MAX ({FRAME_BYTES_MAX})")
    return _HEADER.pack(len(body)) + body


def encode_raft(message: RaftMessage) -> bytes:
    """Length and bytes of the frame around ``message``: as :func:`encode`, without copying the message into a frame.

    Raises:
        FrameError: larger than FRAME_BYTES_MAX.
    """
    body = message.SerializeToString()
    head = bytearray(_RAFT_TAG)
    size = len(body)
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    length = len(head) + len(body)
    if length > FRAME_BYTES_MAX:
        raise FrameError(f"frame of {length} bytes exceeds FRAME_BYTES_MAX ({FRAME_BYTES_MAX})")
    return b"".join((_HEADER.pack(length), head, body))


def frame_length(header: bytes | memoryview, limit: int = FRAME_BYTES_MAX) -> int:
    """Length of the body that follows ``header``, checked before a byte of it is read or kept.

    Raises:
        FrameError: zero, or more than ``limit``.
    """
    (length,) = _HEADER.unpack(header)
    if not 0 < length <= limit:
        raise FrameError(f"frame length {length} bytes: want 1 to {limit}")
    return int(length)


def decode(body: bytes | memoryview) -> Frame:
    """One checked frame.

    Raises:
        FrameError: not a frame, of no known kind, or with content no member would send.
    """
    try:
        frame = Frame.FromString(body)  # type: ignore[arg-type] # takes any buffer
    except DecodeError as error:
        raise FrameError(f"not a frame: {error}") from error
    kind = frame.WhichOneof("kind")
    if kind is None:
        raise FrameError("frame of unknown kind")
    if kind == "raft":
        check_raft(frame.raft)
    return frame


def check_raft(message: RaftMessage) -> None:
    """Refuse what a correct sender cannot have produced, so that the engine never sees it.

    Raises:
        FrameError: naming the field.
    """
    body = message.WhichOneof("body")
    if body is None:
        raise FrameError("raft message of unknown kind")
    if body == "append_entries":
        _check_append(message.term, message.append_entries)
    elif body == "next_index" and message.next_index.next_index < 1:
        raise FrameError("next_index: want at least 1")
    elif body == "forward":
        for proposal in message.forward.proposals:
            if not 1 <= len(proposal.request_id) <= 64:
                raise FrameError(f"request id of {len(proposal.request_id)} bytes: want 1 to 64")
    elif body == "snapshot_chunk":
        chunk = message.snapshot_chunk
        if chunk.index < 1 or chunk.offset + len(chunk.data) > chunk.total_bytes:
            raise FrameError(f"snapshot chunk at {chunk.offset} exceeds its total of {chunk.total_bytes} bytes")


def _check_append(term: int, append: AppendEntries) -> None:
    if append.prev_index < 1:
        raise FrameError("append_entries: prev_index must be at least 1")
    index, last_term = append.prev_index, append.prev_term
    for entry in append.entries:
        index += 1
        if entry.index != index:
            raise FrameError(f"append_entries: entry {entry.index} where {index} belongs")
        if not last_term <= entry.term <= term:
            raise FrameError(f"append_entries: entry {index} has term {entry.term}, want {last_term} to {term}")
        if entry.kind not in (Entry.COMMAND, Entry.NO_OP, Entry.CONFIG):
            raise FrameError(f"append_entries: entry {index} is of unknown kind {entry.kind}")
        last_term = entry.term
