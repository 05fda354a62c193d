"""A gRPC client that costs almost nothing, so that a load generator measures the server and not itself.

Owns one HTTP/2 connection (RFC 9113) and the calls open on it. It speaks only what a benchmark needs: requests of one
small message, answers and streams of messages, flow control, pings. Answers are counted, not parsed, unless the caller
asks for the bytes. Response headers are read with HPACK's dynamic table switched off (RFC 7541, 4.2), so that a block
of bytes always means the same and is decoded once.

Not for production: no retries, no metadata, no compression; a connection that breaks fails every open call.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Callable
from typing import Final, cast

from hpack import Decoder, Encoder

__all__ = ["CallFailedError", "H2Client", "connect"]

_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 1, 1, 4, 8
_HEADER: Final = struct.Struct(">HBBBI")
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_OUR_WINDOW: Final = (1 << 30) - 1
_WINDOW_START: Final = 65_535
_FRAME_MAX: Final = 16_384
_HEADER_TABLE_SIZE: Final = 1
_TABLE_MAX: Final = 4_096

#: (error text or None, messages received, the first message).
Done = Callable[[str | None, int, bytes], None]
OnMessage = Callable[[bytes], None]


class CallFailedError(Exception):
    """A call ended with something else than OK; the text is the status."""


class _Call:
    __slots__ = ("buffer", "count", "done", "first", "on_message")

    def __init__(self, done: Done, on_message: OnMessage | None) -> None:
        self.done = done
        self.on_message = on_message
        self.buffer = bytearray()
        self.first = b""
        self.count = 0


class H2Client(asyncio.Protocol):
    """One connection. ``call`` and ``open`` never wait: what flow control does not let out yet is sent when it does."""

    def __init__(self, authority: str, scheme: str) -> None:
        self._authority = authority
        self._scheme = scheme
        self._encoder = Encoder()
        self._decoder = Decoder()
        self._paths: dict[str, bytes] = {}
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._calls: dict[int, _Call] = {}
        self._next_id = 1
        self._window = _WINDOW_START
        self._consumed = 0
        self._waiting: list[bytes] = []
        self._out = bytearray()
        self._flushing = False
        self._statuses: dict[bytes, str | None] = {}
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- calls ---------------------------------------------------------------------------------------------------

    def call(self, path: str, message: bytes, done: Done) -> None:
        """One request, one answer (or a stream of answers that ends)."""
        self._start(path, message, _Call(done, None), end=True)

    def open(self, path: str, message: bytes, on_message: OnMessage, done: Done) -> int:
        """A stream that stays open; every message goes to ``on_message``. Returns its id, for :meth:`send`."""
        return self._start(path, message, _Call(done, on_message), end=False)

    def send(self, stream_id: int, message: bytes) -> None:
        """Another message on an open stream."""
        self._write_data(stream_id, message, end=False)

    async def unary(self, path: str, message: bytes) -> bytes:
        """One call, awaited.

        Raises:
            CallFailedError: it did not end with OK.
        """
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def done(error: str | None, _count: int, first: bytes) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(first)
            else:
                answer.set_exception(CallFailedError(error))

        self.call(path, message, done)
        return await answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _start(self, path: str, message: bytes, call: _Call, *, end: bool) -> int:
        stream_id = self._next_id
        self._next_id += 2
        if self._transport is None or self._transport.is_closing():
            call.done("the connection is closed", 0, b"")
            return stream_id
        self._calls[stream_id] = call
        block = self._block(path)
        self._out += _frame(_HEADERS, _END_HEADERS, stream_id, block)
        self._write_data(stream_id, message, end=end)
        return stream_id

    def _block(self, path: str) -> bytes:
        """The header block of a call. The first one fills the server's dynamic table, every later one refers to it."""
        block = self._paths.get(path)
        if block is None:
            headers = [
                (":method", "POST"), (":scheme", self._scheme), (":path", path), (":authority", self._authority),
                ("content-type", "application/grpc"), ("te", "trailers"), ("user-agent", "quarterdeck-bench"),
            ]  # fmt: skip
            entries = self._encoder.header_table.dynamic_entries
            before, resized = len(entries), bool(self._encoder.table_size_changes)
            block = self._encoder.encode(headers)
            if len(entries) != before:
                self._paths.clear()  # the table moved: references made before point elsewhere now
            elif not resized:
                self._paths[path] = block
        return block

    def _write_data(self, stream_id: int, message: bytes, *, end: bool) -> None:
        body = struct.pack(">BI", 0, len(message)) + message
        frames = []
        for start in range(0, len(body), _FRAME_MAX):
            last = start + _FRAME_MAX >= len(body)
            flags = _END_STREAM if end and last else 0
            frames.append(_frame(_DATA, flags, stream_id, body[start : start + _FRAME_MAX]))
        for frame in frames:
            if self._waiting or len(frame) - 9 > self._window:
                self._waiting.append(frame)
            else:
                self._window -= len(frame) - 9
                self._out += frame
        self._flush_soon()

    # -- the connection ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        settings = struct.pack(">HIHIHI", 1, 0, 3, 0, 4, _OUR_WINDOW)
        self._transport.write(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, settings)
            + _frame(_WINDOW, 0, 0, struct.pack(">I", _OUR_WINDOW - _WINDOW_START))
        )

    def connection_lost(self, exc: Exception | None) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.done(f"the connection broke: {exc}", call.count, call.first)
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        buffer = self._received
        buffer += data
        at, end = 0, len(buffer)
        while end - at >= 9:
            high, low, kind, flags, stream_id = _HEADER.unpack_from(buffer, at)
            size = (high << 8) | low
            if end - at < 9 + size:
                break
            payload = bytes(buffer[at + 9 : at + 9 + size])
            at += 9 + size
            self._frame(kind, flags, stream_id & 0x7FFF_FFFF, payload)
        del buffer[:at]

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == _DATA:
            self._on_data(stream_id, payload, flags)
        elif kind == _HEADERS:
            if flags & _PADDED or not flags & _END_HEADERS:
                raise ValueError("this client reads header blocks of one unpadded frame")
            if flags & _END_STREAM and (call := self._calls.pop(stream_id, None)) is not None:
                call.done(self._status(payload), call.count, call.first)
            elif not flags & _END_STREAM:
                self._status(payload)
        elif kind == _SETTINGS and not flags & _ACK:
            self._on_settings(payload)
            self._out += _frame(_SETTINGS, _ACK, 0, b"")
            self._flush_soon()
        elif kind == _PING and not flags & _ACK:
            self._out += _frame(_PING, _ACK, 0, payload)
            self._flush_soon()
        elif kind == _WINDOW and stream_id == 0:
            self._window += int.from_bytes(payload, "big")
            self._send_waiting()
        elif kind == _RST and (call := self._calls.pop(stream_id, None)) is not None:
            call.done(f"reset {int.from_bytes(payload, 'big')}", call.count, call.first)
        elif kind == _GOAWAY:
            self.close()

    def _on_settings(self, payload: bytes) -> None:
        for number, value in struct.iter_unpack(">HI", payload):
            if number == _HEADER_TABLE_SIZE:
                self._encoder.header_table_size = min(value, _TABLE_MAX)
                self._paths.clear()

    def _on_data(self, stream_id: int, payload: bytes, flags: int) -> None:
        if flags & _PADDED:
            raise ValueError("this client reads unpadded data")
        self._consumed += len(payload)
        if self._consumed > _OUR_WINDOW // 2:
            self._out += _frame(_WINDOW, 0, 0, struct.pack(">I", self._consumed))
            self._consumed = 0
            self._flush_soon()
        call = self._calls.get(stream_id)
        if call is None:
            return
        buffer = call.buffer
        buffer += payload
        while len(buffer) >= 5:
            size = int.from_bytes(buffer[1:5], "big")
            if len(buffer) < 5 + size:
                break
            message = bytes(buffer[5 : 5 + size])
            del buffer[: 5 + size]
            call.count += 1
            if call.on_message is not None:
                call.on_message(message)
            elif call.count == 1:
                call.first = message

    def _status(self, block: bytes) -> str | None:
        """None for OK, the status otherwise."""
        if block not in self._statuses:
            headers = dict(self._decoder.decode(block, raw=True))
            status = headers.get(b"grpc-status", b"0")
            text = None if status == b"0" else f"{status.decode()}: {headers.get(b'grpc-message', b'').decode()}"
            if len(self._statuses) > 1_000:  # errors with ever new texts
                self._statuses.clear()
            self._statuses[block] = text
        return self._statuses[block]

    def _send_waiting(self) -> None:
        while self._waiting and len(self._waiting[0]) - 9 <= self._window:
            frame = self._waiting.pop(0)
            self._window -= len(frame) - 9
            self._out += frame
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(bytes(self._out))
        self._out.clear()


async def connect(endpoint: str, tls: ssl.SSLContext | None = None) -> H2Client:
    """A connection to ``host:port``.

    Raises:
        OSError: it cannot be made.
    """
    host, _, port = endpoint.rpartition(":")
    _, client = await asyncio.get_running_loop().create_connection(
        lambda: H2Client(endpoint, "http" if tls is None else "https"), host, int(port), ssl=tls
    )
    return client


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    size = len(payload)
    return _HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload
