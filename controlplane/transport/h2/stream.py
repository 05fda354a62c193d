"""One stream, which is one call: messages in, messages out, and where both stand.

Owns the cutting of DATA into messages, what waits for the peer's windows, and the end of the call. Knows no handler.

Invariants:

- A stream is in its connection's table from its first HEADERS until both sides are done with it or one resets it.
- What it holds counts towards its connection's ``held`` (received) and ``queued`` (to be sent), and is given back once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING, Final

from controlplane.transport.h2.frames import (
    END_HEADERS,
    END_STREAM,
    FRAME_HEAD,
    WINDOW_DEFAULT,
    ErrorCode,
    Kind,
    headers,
    reset,
    window_update,
)
from controlplane.transport.h2.request import (
    RESPONSE_BLOCK,
    STATUS_OK_BLOCK,
    Metadata,
    Request,
    response_block,
    status_block,
    trailers_only,
)

if TYPE_CHECKING:
    from controlplane.transport.h2.connection import Connection
    from controlplane.transport.h2.server import Method

__all__ = ["PREFIX_BYTES", "SEND_AHEAD_BYTES", "STREAM_WINDOW", "Stream"]

#: What a peer may send on one stream before we took it: etcd-sized requests pass without waiting for an update.
STREAM_WINDOW: Final = 512 * 1024
#: A handler that writes faster than its peer reads waits above this.
SEND_AHEAD_BYTES: Final = 64 * 1024
#: A message's compressed flag and length.
PREFIX_BYTES: Final = 5

_CODE_INTERNAL: Final = 13
_CODE_EXHAUSTED: Final = 8
_PREFIX: Final = Struct(">BI")
#: A response's first bytes in one go: HEADERS, and the head and prefix of one DATA frame.
_HEAD: Final = Struct(f">IBI{len(RESPONSE_BLOCK)}sIBIBI")
_TAIL: Final = Struct(f">IBI{len(STATUS_OK_BLOCK)}s")
_HEADERS_WORD: Final = len(RESPONSE_BLOCK) << 8 | Kind.HEADERS
_TRAILERS_WORD: Final = len(STATUS_OK_BLOCK) << 8 | Kind.HEADERS
_TRAILERS_FLAGS: Final = END_HEADERS | END_STREAM


class Stream:
    """See the module."""

    __slots__ = (
        "_partial",
        "_queue",
        "_reader",
        "_trailers",
        "_writer",
        "closed",
        "connection",
        "ended",
        "headers_sent",
        "held",
        "id",
        "messages",
        "method",
        "opened_s",
        "queued",
        "recv_window",
        "request",
        "send_window",
        "task",
        "timer",
    )

    def __init__(self, connection: Connection, stream_id: int, request: Request, method: Method, now_s: float) -> None:
        self.connection = connection
        self.id = stream_id
        self.request = request
        self.method = method
        self.opened_s = now_s
        self.send_window = connection.initial_send_window
        self.recv_window = STREAM_WINDOW
        self.messages: deque[bytes] = deque()
        #: The peer sends no more.
        self.ended = False
        #: Over: nothing is sent or received any more.
        self.closed = False
        self.headers_sent = False
        self.held = 0
        self.queued = 0
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._partial: bytearray | None = None
        self._queue: deque[memoryview] | None = None
        self._trailers: bytes | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    # -- receiving

    def receive(self, data: bytes) -> None:
        """Bytes of messages. A message that breaks a limit ends the call with its status."""
        partial, end = self._partial, len(data)
        if partial is None and end >= PREFIX_BYTES:
            flag, length = _PREFIX.unpack_from(data)
            if length == end - PREFIX_BYTES and not flag and length <= self.connection.recv_bytes_max:
                self._hold(end)
                self._deliver(data[PREFIX_BYTES:])
                return
        if partial is None:
            partial = self._partial = bytearray()
        partial += data
        self._hold(end)
        while len(partial) >= PREFIX_BYTES:
            flag, length = _PREFIX.unpack_from(partial)
            limit = self.connection.recv_bytes_max
            if flag:
                self.fail(_CODE_INTERNAL, "grpc: compressed flag set with identity or empty encoding")
            elif length > limit:
                self.fail(_CODE_EXHAUSTED, f"grpc: received message larger than max ({length} vs. {limit})")
            if self.closed or len(partial) < PREFIX_BYTES + length:
                return
            message = bytes(partial[PREFIX_BYTES : PREFIX_BYTES + length])
            del partial[: PREFIX_BYTES + length]
            self._deliver(message)
        if not partial:
            self._partial = None

    def end(self) -> bool:
        """The peer has said everything; False if it stopped inside a message."""
        self.ended = True
        self._wake_reader()
        return self._partial is None

    def take(self) -> bytes:
        """The oldest message not yet taken."""
        message = self.messages.popleft()
        self._give_back(len(message) + PREFIX_BYTES)
        self.replenish()
        return message

    async def next_message(self) -> bytes | None:
        """The next message; None: there are no more."""
        while not self.messages:
            if self.ended or self.closed:
                return None
            if self._reader is None:
                self._reader = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._reader)
        return self.take()

    def replenish(self) -> None:
        """Let the peer go on, unless the handler has a full window of messages before it already."""
        if self.ended or self.closed or self.recv_window > STREAM_WINDOW // 2:
            return
        waiting = self.held - len(self._partial or b"")
        if waiting <= STREAM_WINDOW // 2:
            self.connection.write(window_update(self.id, STREAM_WINDOW - self.recv_window))
            self.recv_window = STREAM_WINDOW

    def _deliver(self, message: bytes) -> None:
        self.messages.append(message)
        self._wake_reader()

    def _wake_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    def _hold(self, size: int) -> None:
        self.held += size
        self.connection.held += size

    def _give_back(self, size: int) -> None:
        self.held -= size
        self.connection.held -= size

    # -- sending

    def respond(self, payload: bytes) -> None:
        """The one response and an OK, in one piece where the windows allow."""
        connection = self.connection
        size = len(payload) + PREFIX_BYTES
        if (
            self.headers_sent
            or self.closed
            or connection.paused
            or size > self.send_window
            or size > connection.send_window
            or size > connection.peer_frame_bytes_max
        ):
            self.send(payload)
            self.finish(0, "", ())
            return
        stream_id = self.id
        self.headers_sent = True
        connection.send_window -= size
        connection.write(
            _HEAD.pack(
                _HEADERS_WORD, END_HEADERS, stream_id, RESPONSE_BLOCK, size << 8, 0, stream_id, 0, size - PREFIX_BYTES
            )
            + payload
            + _TAIL.pack(_TRAILERS_WORD, _TRAILERS_FLAGS, stream_id, STATUS_OK_BLOCK)
        )
        connection.spoke = True
        self._done()

    def send_headers(self, metadata: Metadata = ()) -> None:
        """The response's headers; once."""
        if self.headers_sent or self.closed:
            return
        self.headers_sent = True
        connection = self.connection
        block = response_block(metadata)
        connection.write(headers(self.id, block, end_stream=False, frame_bytes_max=connection.peer_frame_bytes_max))
        connection.spoke = True

    def send(self, payload: bytes) -> None:
        """One message; what the windows do not take waits here."""
        if self.closed:
            return
        self.send_headers()
        connection = self.connection
        size = len(payload) + PREFIX_BYTES
        prefix = _PREFIX.pack(0, size - PREFIX_BYTES)
        if (
            not self.queued
            and not connection.paused
            and size <= self.send_window
            and size <= connection.send_window
            and size <= connection.peer_frame_bytes_max
        ):
            self.send_window -= size
            connection.send_window -= size
            connection.write(FRAME_HEAD.pack(size << 8, 0, self.id) + prefix)
            connection.write(payload)
            connection.spoke = True
            return
        if self._queue is None:
            self._queue = deque()
        self._queue.append(memoryview(prefix + payload if size <= 1024 else prefix))
        if size > 1024:
            self._queue.append(memoryview(payload))
        self.queued += size
        connection.queued += size
        self._want_pump()

    def send_pieces(self, pieces: Sequence[bytes]) -> None:
        """One message that comes in pieces: a large one need not be put together to be sent."""
        if self.closed:
            return
        self.send_headers()
        size = sum(map(len, pieces))
        if self._queue is None:
            self._queue = deque()
        self._queue.extend(memoryview(piece) for piece in (_PREFIX.pack(0, size), *pieces) if piece)
        self.queued += size + PREFIX_BYTES
        self.connection.queued += size + PREFIX_BYTES
        self._want_pump()

    def finish(self, code: int, details: str, metadata: Metadata) -> None:
        """End the call with a status, after everything that waits to be sent."""
        if self.closed or self._trailers is not None:
            return
        if self.headers_sent:
            self._trailers = status_block(code, details, metadata)
        else:
            self._trailers = trailers_only(code, details, metadata)
            self.headers_sent = True
        if not self.queued:
            self._send_trailers()

    def fail(self, code: int, details: str) -> None:
        """End the call for the front's own reasons: at once, whatever waits, and its handler with it."""
        if self.closed:
            return
        self._drop_queue()
        self._trailers = None
        self.finish(code, details, ())
        self._cancel_task()

    async def drained(self) -> None:
        """Return when little waits to be sent.

        Raises:
            asyncio.CancelledError: the call is over.
        """
        while self.queued > SEND_AHEAD_BYTES and not self.closed:
            if self._writer is None:
                self._writer = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._writer)
        if self.closed:
            raise asyncio.CancelledError

    def pump(self, budget: int) -> bool:
        """Send what the windows take, up to ``budget`` bytes; whether more could be sent at once."""
        connection, queue = self.connection, self._queue
        while queue:
            head = queue[0]
            size = min(len(head), self.send_window, connection.send_window, connection.peer_frame_bytes_max, budget)
            if size <= 0:
                break
            connection.write(FRAME_HEAD.pack(size << 8, 0, self.id))
            connection.write(head[:size])
            connection.spoke = True
            self.send_window -= size
            connection.send_window -= size
            self.queued -= size
            connection.queued -= size
            budget -= size
            if size == len(head):
                queue.popleft()
            else:
                queue[0] = head[size:]
        if self.queued <= SEND_AHEAD_BYTES:
            self._wake_writer()
        if not queue:
            if self._trailers is not None:
                self._send_trailers()
            return False
        return self.send_window > 0

    def widen(self, more: int) -> None:
        """The peer takes ``more`` bytes on this stream (negative: fewer, RFC 9113 section 6.9.2)."""
        self.send_window += more
        self._want_pump()

    def _want_pump(self) -> None:
        if self.queued and self.send_window > 0:
            self.connection.want_pump(self)

    def _send_trailers(self) -> None:
        block, connection = self._trailers, self.connection
        assert block is not None
        connection.write(headers(self.id, block, end_stream=True, frame_bytes_max=connection.peer_frame_bytes_max))
        connection.spoke = True
        self._done()

    # -- end

    def _done(self) -> None:
        """Our side is complete."""
        if not self.ended:
            self.connection.write(reset(self.id, ErrorCode.NO_ERROR))  # RFC 9113, section 8.1: stop sending
        self._close()

    def abandon(self) -> None:
        """The peer reset the stream, or the connection is gone: the handler ends, nothing is sent."""
        if not self.closed:
            self._close()
            self._cancel_task()

    def expire(self) -> None:
        """The caller's deadline has passed."""
        self.timer = None
        self.fail(4, "Deadline Exceeded")

    def _close(self) -> None:
        self.closed = True
        self._give_back(self.held)
        self._drop_queue()
        self.messages.clear()
        self._partial = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self._wake_reader()
        self._wake_writer()
        self.connection.forget(self)

    def _drop_queue(self) -> None:
        self.connection.queued -= self.queued
        self.queued = 0
        self._queue = None

    def _wake_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None and not writer.done():
            writer.set_result(None)

    def _cancel_task(self) -> None:
        task, self.task = self.task, None
        if task is not None and not task.done():
            self.connection.dismiss(task)


assert STREAM_WINDOW > WINDOW_DEFAULT
