"""The server: listeners, the methods it serves, and the life of its connections.

Owns what connections share: the method table, remembered header blocks, the flush at the end of a turn. To whoever adds
services it is a ``grpc.aio.Server``. Knows no service.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import grpc

from controlplane.base.addresses import split_address
from controlplane.base.clock import Clock
from controlplane.transport.h2.calls import serve
from controlplane.transport.h2.connection import Connection
from controlplane.transport.h2.headers import FieldMemory
from controlplane.transport.h2.opening import HTTP1_PROTOCOL, Opening
from controlplane.transport.h2.request import Request
from controlplane.transport.h2.stream import Stream
from controlplane.transport.handlers import HandlerTable
from controlplane.transport.metrics import FRONT_CONNECTIONS, FRONT_PROTOCOL_ERRORS

__all__ = ["H2Server", "Method", "Options"]

_log = logging.getLogger("quarterdeck.grpc")

_HANDSHAKE_TIMEOUT_S: Final = 10.0
_CHECK_PERIOD_S: Final = 1.0
_BACKLOG: Final = 1_024
_REQUESTS_MAX: Final = 4_096


class Options(Protocol):
    """What this server reads of transport.server.ServerOptions."""

    @property
    def recv_bytes_max(self) -> int: ...
    @property
    def concurrent_streams_max(self) -> int: ...
    @property
    def connections_max(self) -> int: ...
    @property
    def keepalive_min_time_ms(self) -> int: ...
    @property
    def keepalive_time_ms(self) -> int: ...
    @property
    def keepalive_timeout_ms(self) -> int: ...


class Method:
    """One method. ``resolved`` is its handler behind the interceptors, once that is known for all calls."""

    __slots__ = ("_cacheable", "_table", "request_streaming", "resolved")

    def __init__(self, table: HandlerTable, request_streaming: bool, cacheable: bool) -> None:
        self._table = table
        self._cacheable = cacheable
        self.request_streaming = request_streaming
        self.resolved: Any = None

    async def resolve(self, request: Request) -> Any:
        """Ask the interceptors."""
        handler = await self._table.find(request.method, request.metadata)
        if self._cacheable:
            self.resolved = handler
        return handler


class _Requests(dict[bytes, Request]):
    """Header blocks seen twice, and what they ask for: a steady client's next call is one look-up."""

    def __init__(self) -> None:
        super().__init__()
        self._once: set[int] = set()

    def note(self, block: bytes, request: Request) -> None:
        """Remember a block when it comes again: those with a value of their own each time never do."""
        digest = hash(block)
        if digest not in self._once:
            if len(self._once) >= _REQUESTS_MAX:
                self._once.clear()
            self._once.add(digest)
            return
        if len(self) >= _REQUESTS_MAX:
            self.clear()
        self[block] = request


class H2Server(grpc.aio.Server):
    """A gRPC server, and one for whoever reads by HTTP/1, if ``http1`` is given. ``add_*`` before ``start``.

    Args:
        options: limits and keep-alive, see transport.server.ServerOptions.
        clock: for keep-alive and limits by time; deadlines are the loop's timers.
        interceptors: the first sees a call first. One with an attribute ``per_method = True`` promises that what it
            returns depends on the method alone; if all do, they are asked once a method.
        http1: makes the protocol of a connection that begins with GET or HEAD.
    """

    def __init__(
        self,
        options: Options,
        clock: Clock,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        *,
        http1: Callable[[], asyncio.BaseProtocol] | None = None,
    ) -> None:
        self.http1 = http1
        self.options = options
        self.clock = clock
        self.memory = FieldMemory()
        self.requests = _Requests()
        self.connections: set[Connection] = set()
        #: Connections of which it is not known yet what they speak, and those that speak HTTP/1.
        self.openings: set[Opening] = set()
        #: On all connections, with TLS taken off.
        self.received_bytes = self.sent_bytes = 0
        #: Cancelled handlers that have not ended yet.
        self.leaving: set[asyncio.Task[None]] = set()
        self._generic: list[grpc.GenericRpcHandler] = []
        self._table = HandlerTable(interceptors)
        self._cacheable = all(getattr(interceptor, "per_method", False) for interceptor in interceptors)
        self._methods: dict[str, Method] = {}
        self._sockets: list[tuple[socket.socket, ssl.SSLContext | None]] = []
        self._listeners: list[asyncio.AbstractServer] = []
        self._to_flush: list[Connection] = []
        self._checking: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._all_gone = asyncio.Event()
        self._stopped = asyncio.Event()

    @property
    def protocols(self) -> Sequence[str]:
        """What it speaks, by the names of ALPN, best first."""
        return ("h2",) if self.http1 is None else ("h2", HTTP1_PROTOCOL)

    # -- grpc.aio.Server

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Any) -> None:
        self._generic += generic_rpc_handlers
        self._table.add_generic_rpc_handlers(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        """The generic handlers serve the same methods."""

    def add_insecure_port(self, address: str) -> int:
        """Bind; port 0 picks one.

        Raises:
            RuntimeError: the address is not ours or in use.
        """
        return self._bind(address, None)

    def add_secure_port(self, address: str, server_credentials: Any) -> int:
        """Bind with TLS; ``server_credentials`` is an ``ssl.SSLContext`` that offers h2 by ALPN."""
        return self._bind(address, server_credentials)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for bound, context in self._sockets:
            timeout_s = _HANDSHAKE_TIMEOUT_S if context is not None else None
            listener = await self._loop.create_server(
                self._new_connection, sock=bound, ssl=context, ssl_handshake_timeout=timeout_s, backlog=_BACKLOG
            )
            self._listeners.append(listener)
        self._sockets = []
        self._checking = self._loop.create_task(self._check_connections())

    async def stop(self, grace: float | None) -> None:
        """No new connections; calls that run may end within ``grace`` seconds, then they are cancelled."""
        self._stopping = True
        for listener in self._listeners:
            listener.close()
        for bound, _ in self._sockets:
            bound.close()
        self._sockets = []
        if grace and self._everybody:
            for connection in self._everybody:
                connection.drain()
            await self._gone(grace)
        for connection in self._everybody:
            connection.stop()
        while self.leaving:
            await asyncio.wait(self.leaving)
        if self._everybody:
            await self._gone(0.1)  # what was said last should leave; a peer that does not read is not waited for
        for connection in self._everybody:
            connection.abort()
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.wait({self._checking})
        self._stopped.set()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """Whether it has stopped; waits at most ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._stopped.wait()
        except TimeoutError:
            return False
        return True

    # -- for connections

    def admit(self, connection: Connection | Opening) -> bool:
        """Whether there is room for one more."""
        if self._stopping or len(self.connections) + len(self.openings) >= self.options.connections_max:
            return False
        self._set_of(connection).add(connection)
        self._all_gone.clear()
        FRONT_CONNECTIONS.inc()
        return True

    def lost(self, connection: Connection | Opening) -> None:
        """It is closed."""
        known = self._set_of(connection)
        if connection in known:
            known.discard(connection)
            FRONT_CONNECTIONS.dec()
            if not self._everybody:
                self._all_gone.set()

    def count_protocol_error(self, code: str) -> None:
        """A connection was ended for this."""
        FRONT_PROTOCOL_ERRORS.labels(code).inc()

    def method(self, path: str) -> Method | None:
        """The entry of ``/package.Service/Method``; None: nobody serves it."""
        known = self._methods.get(path)
        if known is None:
            details: Any = Request(path, ())
            handler = next(filter(None, (generic.service(_Details(details)) for generic in self._generic)), None)
            if handler is not None:
                known = self._methods[path] = Method(self._table, bool(handler.request_streaming), self._cacheable)
        return known

    def begin(self, stream: Stream) -> None:
        """Run the handler of a call that has what it needs."""
        assert self._loop is not None
        stream.task = self._loop.create_task(serve(stream))

    def want_flush(self, connection: Connection) -> None:
        """``connection`` has something to send at the end of this turn."""
        if not self._to_flush and self._loop is not None:
            self._loop.call_soon(self._flush)
        self._to_flush.append(connection)

    def _flush(self) -> None:
        waiting, self._to_flush = self._to_flush, []
        for connection in waiting:
            connection.flush()

    # -- inside

    @property
    def _everybody(self) -> list[Connection | Opening]:
        return [*self.connections, *self.openings]

    def _set_of(self, connection: Connection | Opening) -> set[Any]:
        return self.openings if isinstance(connection, Opening) else self.connections

    def _new_connection(self) -> asyncio.Protocol:
        return Connection(self) if self.http1 is None else Opening(self, self.http1)

    def _bind(self, address: str, context: ssl.SSLContext | None) -> int:
        host, port = split_address(address)
        try:
            found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, _, _, _, where in dict.fromkeys(found):
                bound = socket.socket(family, socket.SOCK_STREAM)
                try:
                    bound.setblocking(False)
                    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:
                        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    bound.bind((where[0], port, *where[2:]))
                    bound.listen(_BACKLOG)
                    port = bound.getsockname()[1]
                except OSError:
                    bound.close()
                    raise
                self._sockets.append((bound, context))
        except OSError as error:
            raise RuntimeError(f"cannot bind {address!r}: {error}") from error
        return port

    async def _gone(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_gone.wait()
        except TimeoutError:
            pass  # who is left is told to go

    async def _check_connections(self) -> None:
        options = self.options
        idle_s, answer_s = options.keepalive_time_ms / 1000, options.keepalive_timeout_ms / 1000
        period_s = min(_CHECK_PERIOD_S, idle_s, answer_s)
        while True:
            await self.clock.sleep(period_s)
            now_s = self.clock.monotonic()
            for connection in self._everybody:
                connection.check(now_s, handshake_s=_HANDSHAKE_TIMEOUT_S, idle_s=idle_s, answer_s=answer_s)


class _Details:
    """grpc.HandlerCallDetails for a look-up by name."""

    __slots__ = ("invocation_metadata", "method")

    def __init__(self, request: Request) -> None:
        self.method = request.method
        self.invocation_metadata = request.metadata
