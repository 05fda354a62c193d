"""One connection: frames in, frames out, windows both ways, and the limits that keep a peer from costing too much.

Owns the connection's state and its streams. Knows no handler: a complete request goes to the server.

Invariants:

- Nothing a peer sends raises into the event loop: what is malformed ends the stream or the connection by its code.
- Everything kept for a peer is bounded: header blocks, messages received, responses waiting, answers to its pings.
- What is written in one turn of the loop leaves in one write.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, cast

from controlplane.transport.h2 import frames
from controlplane.transport.h2.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES_DEFAULT,
    FRAME_HEAD,
    HEAD_BYTES,
    PADDED,
    PREFACE,
    PRIORITY_FLAG,
    STREAM_ID_MAX,
    WINDOW_DEFAULT,
    WINDOW_MAX,
    ErrorCode,
    H2Error,
    Kind,
    Setting,
)
from controlplane.transport.h2.headers import BLOCK_BYTES_MAX, LIST_BYTES_MAX, HeaderReader
from controlplane.transport.h2.police import Bucket, PingPolice
from controlplane.transport.h2.request import Request, http_error, read_request, trailers_only
from controlplane.transport.h2.stream import STREAM_WINDOW, Stream
from controlplane.transport.tls import auth_context_of

if TYPE_CHECKING:
    from controlplane.transport.h2.server import H2Server

__all__ = ["Connection"]

_log = logging.getLogger("quarterdeck.grpc")

#: What a peer may send on all streams together before we say that we took it.
_CONNECTION_WINDOW: Final = 4 * 1024 * 1024
#: Received bytes kept for one connection's handlers; a call that takes it over this fails.
_HELD_BYTES_MAX: Final = 64 * 1024 * 1024
#: Responses kept because the peer does not read them; above it, it gets no new calls.
_QUEUED_BYTES_MAX: Final = 64 * 1024 * 1024
#: The transport buffers this much before handlers wait.
_TRANSPORT_BYTES_HIGH: Final = 256 * 1024
#: Written to the transport at once, within a turn.
_CORK_BYTES_MAX: Final = 256 * 1024
#: Bytes one stream may send before the next has its turn.
_PUMP_BYTES: Final = 64 * 1024
#: Answers (ACKs, resets) a peer may leave unread.
_UNREAD_CONTROL_MAX: Final = 1_000
#: CONTINUATION frames of one header block (CVE-2024-27983 and its family).
_CONTINUATIONS_MAX: Final = 16
#: A stream reset sooner than this after it was opened counts towards rapid reset.
_RAPID_S: Final = 1.0
_CLOSE_TIMEOUT_S: Final = 1.0
_DRAIN_PING: Final = b"qd-drain"
_ALIVE_PING: Final = b"qd-alive"

_U32: Final = Struct(">I")
_CODE_EXHAUSTED: Final = 8
_CODE_UNIMPLEMENTED: Final = 12
_CODE_INTERNAL: Final = 13
_CODE_UNAVAILABLE: Final = 14


class Connection(asyncio.Protocol):
    """One client. Attributes without underscore are for its streams and its server."""

    def __init__(self, server: H2Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._headers = HeaderReader(server.memory)
        self._last_stream_id = 0
        # A header block in parts: its stream, flags and bytes so far; stream 0: none.
        self._block_stream_id = 0
        self._block_flags = 0
        self._block: list[bytes] = []
        self._recv_window = _CONNECTION_WINDOW
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._ready: OrderedDict[int, Stream] = OrderedDict()
        self._unread_control = 0
        options = server.options
        self._pings = PingPolice(options.keepalive_min_time_ms / 1000)
        self._resets = Bucket(2_000, 500.0)
        self._nuisances = Bucket(1_000, 100.0)
        self._leaving: set[asyncio.Task[None]] = set()
        self._auth: Mapping[str, Sequence[bytes]] | None = None
        self._pinged_at_s: float | None = None
        self._draining = self._drain_acked = self._closing = False
        self.streams: dict[int, Stream] = {}
        self.peer = ""
        self.opened_at_s = self.heard_at_s = server.clock.monotonic()
        self.recv_bytes_max = options.recv_bytes_max
        #: Both halves of the handshake: the preface and the first SETTINGS have arrived.
        self.preface_seen = self.settings_seen = False
        self.initial_send_window = WINDOW_DEFAULT
        self.send_window = WINDOW_DEFAULT
        self.peer_frame_bytes_max = FRAME_BYTES_DEFAULT
        #: Bytes received and not yet taken by handlers; bytes of responses that wait for windows.
        self.held = self.queued = 0
        #: The transport's buffer is full.
        self.paused = False
        #: Headers or data were written since the last flush.
        self.spoke = False

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's are none of asyncio's classes
        self.peer = _peer_name(transport.get_extra_info("peername"))
        transport.set_write_buffer_limits(_TRANSPORT_BYTES_HIGH)
        if not self._server.admit(self):
            self._closing = True
            transport.abort()
            return
        ssl_object = transport.get_extra_info("ssl_object")
        if ssl_object is not None and ssl_object.selected_alpn_protocol() != "h2":
            _log.warning("event=connection_refused peer=%s reason=%r", self.peer, "TLS without ALPN h2")
            self._closing = True
            transport.abort()
            return
        values = {
            Setting.HEADER_TABLE_SIZE: 0,
            Setting.MAX_CONCURRENT_STREAMS: self._server.options.concurrent_streams_max,
            Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            Setting.MAX_HEADER_LIST_SIZE: LIST_BYTES_MAX,
        }
        self.write(frames.settings(values) + frames.window_update(0, _CONNECTION_WINDOW - WINDOW_DEFAULT))

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self.heard_at_s = self._server.clock.monotonic()
        self._server.received_bytes += len(data)
        try:
            self._read(self._rest + data if self._rest else data)
        except H2Error as error:
            self._break_off(error)
        except Exception:  # noqa: BLE001 - a bug of the front ends one connection, not the loop
            _log.exception("event=front_failed peer=%s", self.peer)
            self._break_off(H2Error(ErrorCode.INTERNAL_ERROR, "internal error"))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        for stream in list(self.streams.values()):
            stream.abandon()
        self._out.clear()
        self._server.lost(self)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._unread_control = 0
        self._pump()

    # -- for streams

    def write(self, data: bytes | memoryview) -> None:
        """Send at the end of this turn of the loop."""
        out = self._out
        if not out:
            self._server.want_flush(self)
        out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes >= _CORK_BYTES_MAX:
            self.flush()
            self._server.want_flush(self)

    def flush(self) -> None:
        """Hand everything written to the transport."""
        out = self._out
        if not out or self._transport is None:
            return
        self._server.sent_bytes += self._out_bytes
        self._out, self._out_bytes = [], 0
        if self.spoke:
            self.spoke = False
            self._pings.we_sent()
        if not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def want_pump(self, stream: Stream) -> None:
        """``stream`` has something to send and its own window allows it."""
        if stream.id not in self._ready:
            self._ready[stream.id] = stream
        if self.send_window > 0 and not self.paused:
            self._pump()

    def forget(self, stream: Stream) -> None:
        """``stream`` is over."""
        self.streams.pop(stream.id, None)
        self._ready.pop(stream.id, None)
        if self._draining and not self.streams:
            self._close_if_drained()

    def dismiss(self, task: asyncio.Task[None]) -> None:
        """Cancel a handler whose call is over, and see it out."""
        self._leaving.add(task)
        self._server.leaving.add(task)
        task.add_done_callback(self._left)
        task.cancel()

    def _left(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        self._server.leaving.discard(task)

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """The peer's certificate as grpcio shows it; empty without TLS."""
        if self._auth is None:
            assert self._transport is not None
            self._auth = auth_context_of(self._transport.get_extra_info("ssl_object"))
        return self._auth

    def _pump(self) -> None:
        ready = self._ready
        while ready and self.send_window > 0 and not self.paused:
            stream_id, stream = ready.popitem(last=False)
            if stream.pump(_PUMP_BYTES):
                ready[stream_id] = stream

    # -- for the server

    def check(self, now_s: float, *, handshake_s: float, idle_s: float, answer_s: float) -> None:
        """Called every now and then: time what must not take for ever (all arguments in seconds)."""
        if self._closing:
            return
        if not self.settings_seen:
            if now_s - self.opened_at_s > handshake_s:
                self._break_off(H2Error(ErrorCode.SETTINGS_TIMEOUT, "no preface and settings in time"))
        elif self._pinged_at_s is not None and self.heard_at_s <= self._pinged_at_s:
            if now_s - self._pinged_at_s > answer_s:
                _log.info("event=connection_silent peer=%s", self.peer)
                self.abort()
        elif now_s - self.heard_at_s > idle_s:
            self._pinged_at_s = now_s
            self.write(frames.ping(_ALIVE_PING, ack=False))
        else:
            self._pinged_at_s = None

    def drain(self) -> None:
        """Ask the peer to go elsewhere; its calls may end. Closes when the last has, and the peer knows."""
        if self._closing or self._draining:
            return
        self._draining = True
        self.write(frames.goaway(STREAM_ID_MAX, ErrorCode.NO_ERROR, "the server is stopping"))
        self.write(frames.ping(_DRAIN_PING, ack=False))

    def stop(self) -> None:
        """End every call, now, and close."""
        for stream in list(self.streams.values()):
            stream.fail(_CODE_UNAVAILABLE, "the server is stopping")
        self._close(ErrorCode.NO_ERROR, "the server is stopping")

    def abort(self) -> None:
        """Close without a word."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    # -- reading

    def _read(self, data: bytes) -> None:
        at, end = 0, len(data)
        if not self.preface_seen:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise H2Error(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 preface")
            if end < len(PREFACE):
                self._rest = data
                return
            self.preface_seen = True
            at = len(PREFACE)
        unpack = FRAME_HEAD.unpack_from
        while end - at >= HEAD_BYTES:
            word, flags, stream_id = unpack(data, at)
            length = word >> 8
            if length > FRAME_BYTES_DEFAULT:
                raise H2Error(ErrorCode.FRAME_SIZE_ERROR, f"frame of {length} bytes")
            after = at + HEAD_BYTES + length
            if after > end:
                break
            payload = data[at + HEAD_BYTES : after]
            at = after
            try:
                self._on_frame(word & 0xFF, flags, stream_id & STREAM_ID_MAX, payload)
            except H2Error as error:
                if not error.stream_id:
                    raise
                self._reset(error)
            if self._closing:
                return
        self._rest = data[at:] if at else data

    def _on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block_stream_id and (kind != Kind.CONTINUATION or stream_id != self._block_stream_id):
            raise H2Error(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
        if kind == 0x0:
            self._on_data(stream_id, flags, payload)
        elif kind == 0x1:
            self._on_headers(stream_id, flags, payload)
        elif not self.settings_seen and kind != Kind.SETTINGS:
            raise H2Error(ErrorCode.PROTOCOL_ERROR, "the first frame must be SETTINGS")
        elif kind == Kind.WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == Kind.PING:
            self._on_ping(stream_id, flags, payload)
        elif kind == Kind.RST_STREAM:
            self._on_reset(stream_id, payload)
        elif kind == Kind.SETTINGS:
            self._on_settings(stream_id, flags, payload)
        elif kind == Kind.CONTINUATION:
            self._on_continuation(flags, payload)
        elif kind == Kind.GOAWAY:
            if stream_id or len(payload) < 8:
                raise H2Error(ErrorCode.PROTOCOL_ERROR, "malformed GOAWAY")
            # The client opens no more; what is open ends as always.
        elif kind == Kind.PUSH_PROMISE:
            raise H2Error(ErrorCode.PROTOCOL_ERROR, "a client cannot push")
        elif kind == Kind.PRIORITY:
            if not stream_id:
                raise H2Error(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
            if len(payload) != 5:
                raise H2Error(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY", stream_id)
            self._nuisance()
        else:
            self._nuisance()  # unknown kinds are ignored (section 5.5)

    def _on_data(self, stream_id: int, flags: int, payload: bytes) -> None:
        length = len(payload)
        self._recv_window -= length
        if self._recv_window < 0:
            raise H2Error(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
        if self._recv_window < _CONNECTION_WINDOW // 2:
            self.write(frames.window_update(0, _CONNECTION_WINDOW - self._recv_window))
            self._recv_window = _CONNECTION_WINDOW
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id, "DATA")
            if not length:
                self._nuisance()
            return  # sent before the peer knew that the call is over
        if stream.ended:
            raise H2Error(ErrorCode.STREAM_CLOSED, "DATA after the end of the stream", stream_id)
        stream.recv_window -= length
        if stream.recv_window < 0:
            raise H2Error(ErrorCode.FLOW_CONTROL_ERROR, "more data than the stream's window", stream_id)
        if flags & PADDED:
            payload = frames.unpadded(payload, flags & PADDED)
        if payload:
            stream.receive(payload)
        elif not flags & END_STREAM:
            self._nuisance()
        if flags & END_STREAM:
            self._on_end(stream)
        elif not stream.closed:
            stream.replenish()
            if self.held > _HELD_BYTES_MAX:
                stream.fail(_CODE_EXHAUSTED, "grpc: too many unread bytes on this connection")

    def _on_end(self, stream: Stream) -> None:
        if stream.closed:
            return
        whole = stream.end()
        if stream.method.request_streaming:
            if not whole:
                stream.fail(_CODE_INTERNAL, "grpc: the request stream ended inside a message")
        elif not whole or len(stream.messages) != 1:
            stream.fail(_CODE_INTERNAL, "grpc: want exactly one request message")
        else:
            self._server.begin(stream)

    def _on_headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        if not self.settings_seen:
            raise H2Error(ErrorCode.PROTOCOL_ERROR, "the first frame must be SETTINGS")
        if not stream_id & 1:
            raise H2Error(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        if flags & (PADDED | PRIORITY_FLAG):
            payload = frames.unpadded(payload, flags)
        if flags & END_HEADERS:
            self._on_block(stream_id, flags, payload)
        else:
            self._block_stream_id, self._block_flags, self._block = stream_id, flags, [payload]

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if not self._block_stream_id:
            raise H2Error(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block.append(payload)
        if len(self._block) > _CONTINUATIONS_MAX or sum(map(len, self._block)) > BLOCK_BYTES_MAX:
            raise H2Error(ErrorCode.ENHANCE_YOUR_CALM, f"header block of more than {BLOCK_BYTES_MAX} bytes")
        if flags & END_HEADERS:
            stream_id, first_flags, block = self._block_stream_id, self._block_flags, b"".join(self._block)
            self._block_stream_id, self._block = 0, []
            self._on_block(stream_id, first_flags, block)

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        reader, requests = self._headers, self._server.requests
        request = requests.get(block) if reader.stateless else None
        if request is None or stream_id <= self._last_stream_id:
            fields = reader.read(block)  # also when nobody wants it: the table must follow
            if stream_id <= self._last_stream_id:
                self._on_trailers(stream_id, flags)
                return
            self._last_stream_id = stream_id
            request = read_request(fields, stream_id)
            if reader.stateless:
                requests.note(block, request)
        else:
            self._last_stream_id = stream_id
        self._on_request(stream_id, request, bool(flags & END_STREAM))

    def _on_trailers(self, stream_id: int, flags: int) -> None:
        """A second header block on a stream: gRPC clients send none, HTTP allows it."""
        stream = self.streams.get(stream_id)
        if stream is None:
            self._nuisance()
            return
        if stream.ended:
            raise H2Error(ErrorCode.STREAM_CLOSED, "HEADERS after the end of the stream", stream_id)
        if not flags & END_STREAM:
            raise H2Error(ErrorCode.PROTOCOL_ERROR, "trailers that do not end the stream", stream_id)
        self._on_end(stream)

    def _on_request(self, stream_id: int, request: Request, ended: bool) -> None:
        server = self._server
        if len(self.streams) + len(self._leaving) >= server.options.concurrent_streams_max:
            raise H2Error(ErrorCode.REFUSED_STREAM, "too many calls at once", stream_id)
        refusal = b""
        method = None
        if request.http_status:
            refusal = http_error(request.http_status)
        elif request.encoding:
            text = f'grpc: Decompressor is not installed for grpc-encoding "{request.encoding}"'
            refusal = trailers_only(_CODE_UNIMPLEMENTED, text, (("grpc-accept-encoding", "identity"),))
        elif self.queued > _QUEUED_BYTES_MAX:
            refusal = trailers_only(_CODE_EXHAUSTED, "grpc: this connection does not read its responses")
        else:
            method = server.method(request.method)
            if method is None:
                refusal = trailers_only(_CODE_UNIMPLEMENTED, f"unknown method {request.method[:256]}")
        if method is None:
            self._control(frames.headers(stream_id, refusal, end_stream=True))
            if not ended:
                self._control(frames.reset(stream_id, ErrorCode.NO_ERROR))
            return
        stream = self.streams[stream_id] = Stream(self, stream_id, request, method, self.heard_at_s)
        if request.timeout_s is not None:
            stream.timer = self._loop.call_later(request.timeout_s, stream.expire)
        if ended:
            self._on_end(stream)
            if not method.request_streaming:
                return
        if method.request_streaming and not stream.closed:
            server.begin(stream)

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise H2Error(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE")
        more = _U32.unpack(payload)[0] & WINDOW_MAX
        if not stream_id:
            self.send_window += more
            if not more:
                raise H2Error(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            if self.send_window > WINDOW_MAX:
                raise H2Error(ErrorCode.FLOW_CONTROL_ERROR, "window overflow")
            self._pump()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id, "WINDOW_UPDATE")
            return
        if not more:
            raise H2Error(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0", stream_id)
        if stream.send_window + more > WINDOW_MAX:
            raise H2Error(ErrorCode.FLOW_CONTROL_ERROR, "window overflow", stream_id)
        stream.widen(more)

    def _on_ping(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id or len(payload) != 8:
            code = ErrorCode.PROTOCOL_ERROR if stream_id else ErrorCode.FRAME_SIZE_ERROR
            raise H2Error(code, "malformed PING")
        if flags & ACK:
            if payload == _DRAIN_PING and self._draining:
                self._drain_acked = True
                self._close_if_drained()
            return
        if not self._pings.take(self.heard_at_s):
            raise H2Error(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")  # the text grpc's clients look for
        self._control(frames.ping(payload, ack=True))

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise H2Error(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id, "RST_STREAM")
            return
        rapid = self.heard_at_s - stream.opened_s < _RAPID_S
        stream.abandon()
        if rapid and not self._resets.take(self.heard_at_s):
            raise H2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many streams opened and reset")

    def _on_settings(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id:
            raise H2Error(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & ACK:
            if payload:
                raise H2Error(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with a payload")
            if not self.settings_seen:
                raise H2Error(ErrorCode.PROTOCOL_ERROR, "the first frame must be SETTINGS")
            self._headers.table_is_zero()
            return
        if self.settings_seen:
            self._nuisance()
        self.settings_seen = True
        for key, value in frames.read_settings(payload):
            if key == Setting.INITIAL_WINDOW_SIZE:
                more, self.initial_send_window = value - self.initial_send_window, value
                for stream in list(self.streams.values()):
                    if stream.send_window + more > WINDOW_MAX:
                        raise H2Error(ErrorCode.FLOW_CONTROL_ERROR, "window overflow by SETTINGS")
                    stream.widen(more)
            elif key == Setting.MAX_FRAME_SIZE:
                self.peer_frame_bytes_max = min(value, _PUMP_BYTES)
        self._control(frames.frame(Kind.SETTINGS, ACK, 0))

    def _check_not_idle(self, stream_id: int, what: str) -> None:
        if stream_id > self._last_stream_id or not stream_id & 1:
            raise H2Error(ErrorCode.PROTOCOL_ERROR, f"{what} on stream {stream_id}, which was never opened")

    def _nuisance(self) -> None:
        if not self._nuisances.take(self.heard_at_s):
            raise H2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that mean nothing")

    def _control(self, data: bytes) -> None:
        """Answer something of the peer's own making: it must read the answers."""
        if self.paused:
            self._unread_control += 1
            if self._unread_control > _UNREAD_CONTROL_MAX:
                raise H2Error(ErrorCode.ENHANCE_YOUR_CALM, "answers are not read")
        self.write(data)

    # -- ending

    def _reset(self, error: H2Error) -> None:
        stream = self.streams.get(error.stream_id)
        _log.debug("event=stream_reset peer=%s code=%s reason=%r", self.peer, error.code.name, error.text)
        if stream is not None:
            stream.abandon()
        self._control(frames.reset(error.stream_id, error.code))
        if error.code != ErrorCode.REFUSED_STREAM:
            self._nuisance()

    def _break_off(self, error: H2Error) -> None:
        _log.info("event=connection_ended peer=%s code=%s reason=%r", self.peer, error.code.name, error.text)
        self._server.count_protocol_error(error.code.name)
        self._close(error.code, error.text)
        for stream in list(self.streams.values()):
            stream.abandon()

    def _close_if_drained(self) -> None:
        if self._drain_acked and not self.streams:
            self._close(ErrorCode.NO_ERROR, "")

    def _close(self, code: ErrorCode, text: str) -> None:
        """Say goodbye, and close when that was sent; a peer that does not read is not waited for."""
        if self._closing or self._transport is None:
            return
        self.write(frames.goaway(self._last_stream_id, code, text))
        self._closing = True
        self.flush()
        self._transport.close()
        self._loop.call_later(_CLOSE_TIMEOUT_S, self._transport.abort)


def _peer_name(address: Any) -> str:
    """grpc's way to write it."""
    if not isinstance(address, tuple):
        return "unix:"
    host, port = address[0], address[1]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
