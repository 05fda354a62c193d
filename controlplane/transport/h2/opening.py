"""The first bytes of a connection on a port that serves HTTP/2 and, to whoever only reads, HTTP/1.

Owns a connection until it is known what its client speaks: HTTP/2 begins with a preface of its own, HTTP/1 with a
method. What speaks HTTP/1 stays here and is passed on to somebody else's protocol, for a while. Knows neither.

With TLS, ALPN says it; who offers nothing there speaks HTTP/1, since gRPC demands h2.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from controlplane.transport.h2.connection import Connection

if TYPE_CHECKING:
    from controlplane.transport.h2.server import H2Server

__all__ = ["HTTP1_PROTOCOL", "Opening"]

_log = logging.getLogger("quarterdeck.grpc")

#: By ALPN.
HTTP1_PROTOCOL: Final = "http/1.1"
#: What a client that only reads may begin with; the preface of HTTP/2 begins otherwise.
_READING: Final = (b"G", b"H")
#: Such a connection is closed after so long, seconds: a scrape takes less, and connects again.
_LIFE_S: Final = 60.0


class Opening(asyncio.Protocol):
    """One connection. To its server it is one like any other, and counts as one: see :class:`Connection`."""

    def __init__(self, server: H2Server, http1: Callable[[], asyncio.BaseProtocol]) -> None:
        self._server = server
        self._new_http1 = http1
        self._http1: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._encrypted = False
        self._opened_at_s = server.clock.monotonic()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's are none of asyncio's classes
        if not self._server.admit(self):
            transport.abort()
            return
        ssl_object = transport.get_extra_info("ssl_object")
        self._encrypted = ssl_object is not None
        if self._encrypted and ssl_object.selected_alpn_protocol() == "h2":
            self._speak_http2(b"")

    def data_received(self, data: bytes) -> None:
        if self._http1 is None:
            self._begin(data)
        if self._http1 is not None:
            self._server.received_bytes += len(data)
            self._http1.data_received(data)

    def eof_received(self) -> bool | None:
        return self._http1.eof_received() if self._http1 is not None else False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._http1 is not None:
            self._http1.connection_lost(exc)
        self._server.lost(self)

    def pause_writing(self) -> None:
        if self._http1 is not None:
            self._http1.pause_writing()

    def resume_writing(self) -> None:
        if self._http1 is not None:
            self._http1.resume_writing()

    def _begin(self, data: bytes) -> None:
        """See by the first bytes what the client speaks."""
        assert self._transport is not None
        if data.startswith(_READING):
            self._http1 = cast(asyncio.Protocol, self._new_http1())
            self._http1.connection_made(self._transport)
        elif self._encrypted:
            _log.warning("event=connection_refused reason=%r", "TLS without ALPN h2")
            self.abort()
        else:
            self._speak_http2(data)

    def _speak_http2(self, data: bytes) -> None:
        assert self._transport is not None
        self._server.lost(self)
        connection = Connection(self._server)
        self._transport.set_protocol(connection)
        connection.connection_made(self._transport)
        if data:
            connection.data_received(data)

    # -- for the server

    def check(self, now_s: float, *, handshake_s: float, idle_s: float, answer_s: float) -> None:
        if now_s - self._opened_at_s > (handshake_s if self._http1 is None else _LIFE_S):
            self.abort()

    def flush(self) -> None:
        """Nothing is held back."""

    def drain(self) -> None:
        """Who reads asks again elsewhere."""
        self.stop()

    def stop(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
