"""One TCP connection between two replicas: bytes to frames and back.

Owns the buffer, the bound on what waits to be sent, and whom the certificate of the other side speaks for. Must not
know which peer it ought to be, the handshake, or what a frame means: frames go to a callback.

- Until its owner says otherwise it takes frames of the size of a handshake only.
- Bytes that are no frame close it: they are counted and logged, nothing else happens.
- It never blocks and never grows: a frame that does not fit in the queue is dropped, and the caller told.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import cast

from controlplane.base.identity import Identity, IdentityKind
from controlplane.base.limits import PEER_QUEUE_BYTES_MAX
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import Frame, RaftMessage
from controlplane.transport import peer_metrics as metrics
from controlplane.transport.frames import HEADER_BYTES, FrameError, decode, encode, encode_raft, frame_length
from controlplane.transport.tls import IdentityError, identity_of

__all__ = ["PeerConnection"]

_log = logging.getLogger("quarterdeck.peer")

#: Of one who has not said who it is.
_STRANGERS_FRAME_BYTES_MAX = 4 * 1024


class PeerConnection(asyncio.Protocol):
    """One TCP connection, either side.

    Args:
        on_frame: takes each frame as it comes; a FrameError out of it closes the connection.
        on_open: called when the connection is there, its certificate checked by TLS.
    """

    def __init__(
        self, on_frame: Callable[[PeerConnection, Frame], None], on_open: Callable[[PeerConnection], None]
    ) -> None:
        self.peer_id = 0
        self.epoch = b""
        self.frame_bytes_max = _STRANGERS_FRAME_BYTES_MAX
        self.heard_at = 0.0
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.received = 0
        #: Size of the frame that is being handled.
        self.frame_bytes = 0
        #: The member whose certificate was shown; empty without TLS.
        self.certified = ""
        self._on_frame = on_frame
        self._on_open = on_open
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def holder(self) -> Identity:
        """Whom the certificate of the other side speaks for. Raises IdentityError: nobody, or it is no member's."""
        ssl_object: ssl.SSLObject | None = self._transport.get_extra_info("ssl_object") if self._transport else None
        certificate = ssl_object.getpeercert(binary_form=True) if ssl_object is not None else None
        if certificate is None:
            raise IdentityError("no certificate was shown")
        identity = identity_of(certificate)
        if identity.kind is not IdentityKind.MEMBER:
            raise IdentityError(f"the certificate of {identity} is no member's")
        return identity

    @property
    def remote(self) -> str:
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        return f"{name[0]}:{name[1]}" if name else "?"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio.Transport without being one.
        self._transport = cast(asyncio.Transport, transport)
        # Never pause: the bound is ours to keep, by dropping.
        self._transport.set_write_buffer_limits(high=2 * PEER_QUEUE_BYTES_MAX)
        self._on_open(self)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        buffer = self._buffer
        if buffer:
            buffer += data
        source = buffer or data
        start, available = 0, len(source)
        with memoryview(source) as view:
            try:
                while available - start >= HEADER_BYTES and not self.closing:
                    at = start + HEADER_BYTES
                    end = at + frame_length(view[start:at], self.frame_bytes_max)
                    if available < end:
                        break
                    with view[at:end] as body:
                        frame = decode(body)
                    self.frame_bytes = end - at
                    start = end
                    self._on_frame(self, frame)
            except FrameError as error:
                metrics.REFUSED.labels("bad_frame").inc()
                _log.warning("frame refused remote=%s peer=%x error=%r", self.remote, self.peer_id, str(error))
                self.close()
        if source is data:
            buffer += data[start:]
        elif start:
            del buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._buffer = bytearray()
        if not self.lost.done():
            self.lost.set_result(None)

    @property
    def closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def send(self, frame: Frame | RaftMessage) -> int:
        """Queue a frame, or one around a message of Raft; bytes taken, or 0 when it was dropped."""
        if self._transport is None or self._transport.is_closing():
            return 0
        data = encode(frame) if isinstance(frame, Frame) else encode_raft(frame)
        if self._transport.get_write_buffer_size() + len(data) > PEER_QUEUE_BYTES_MAX:
            return 0
        self._transport.write(data)
        return len(data)

    def close(self) -> None:
        """Close once what is queued is written (a refusal must reach the other side)."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
