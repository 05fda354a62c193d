"""Relaying TCP: one listener per frontend, two glued transports per connection.

Owns sockets and bytes in flight; where to connect it asks a :class:`~node.proxy.balancer.Balancer`. Flow control both
ways: a side that cannot take more stops the other from being read. A half-closed side is passed on as such.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import cast

from controlplane.base.clock import Clock
from node.proxy import metrics
from node.proxy.balancer import Balancer, Endpoint

__all__ = ["TcpFrontend", "reuse_port_socket"]

log = logging.getLogger("quarterdeck.proxy")

CONNECT_TIMEOUT_S = 1.0
BACKLOG = 1024
#: Connections one frontend relays at a time; the kernel's queue holds what is above.
CONNECTIONS_MAX = 4096


def reuse_port_socket(kind: socket.SocketKind, ip: str, port: int) -> socket.socket:
    """A socket bound together with every other agent of this host that binds the same address.

    Raises:
        OSError: the address cannot be bound (PermissionError: the port needs privileges).
    """
    sock = socket.socket(socket.AF_INET, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setblocking(False)
        sock.bind((ip, port))
    except OSError:
        sock.close()
        raise
    return sock


class TcpFrontend:
    """One listener. Endpoints that leave have their connections finished by whoever owns them, not cut here: a pod
    that stops gracefully answers what it holds; a dead one's connections break by themselves."""

    def __init__(self, ip: str, port: int, balancer: Balancer, clock: Clock) -> None:
        self.balancer = balancer
        self._address = (ip, port)
        self._clock = clock
        self._server: asyncio.Server | None = None
        self._sides: set[_Side] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bind and accept. Raises OSError as :func:`reuse_port_socket`."""
        sock = reuse_port_socket(socket.SOCK_STREAM, *self._address)
        try:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._accept, sock=sock, backlog=BACKLOG)
        except OSError:
            sock.close()
            raise

    async def stop(self) -> None:
        """Stop accepting and cut what is left."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for side in list(self._sides):
            side.abort()
        await asyncio.sleep(0)  # an aborted transport closes its socket in the loop's next turn

    def _accept(self) -> _Side:
        return _Side(self._opened, self._sides)

    def _opened(self, client: _Side) -> None:
        if len(self._sides) > 2 * CONNECTIONS_MAX:
            metrics.FAILED.labels("too-many").inc()
            client.abort()
            return
        task = asyncio.get_running_loop().create_task(self._connect(client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, client: _Side) -> None:
        client_ip = client.peer_ip
        for endpoint in self.balancer.candidates(client_ip, self._clock.monotonic()):
            backend = await self._try(endpoint)
            if backend is None:
                self.balancer.failed(endpoint, self._clock.monotonic())
                metrics.CONNECT_RETRIES.inc()
                continue
            self.balancer.connected(client_ip, endpoint, self._clock.monotonic())
            metrics.CONNECTIONS.labels("TCP").inc()
            client.glue(backend)
            return
        metrics.FAILED.labels("no-endpoint").inc()
        client.abort()

    async def _try(self, endpoint: Endpoint) -> _Side | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, backend = await loop.create_connection(lambda: _Side(None, self._sides), *endpoint)
        except (OSError, TimeoutError) as error:
            log.debug("event=connect-failed endpoint=%s:%d reason=%s", *endpoint, error)
            return None
        return backend


class _Side(asyncio.Protocol):
    """One end of a relayed connection."""

    def __init__(self, opened: Callable[[_Side], None] | None, sides: set[_Side]) -> None:
        self._opened = opened
        self._sides = sides
        self._other: _Side | None = None
        self._transport: asyncio.Transport | None = None
        self._ended = False

    @property
    def peer_ip(self) -> str:
        """Address of who connected."""
        peer = self._transport.get_extra_info("peername") if self._transport else None
        return str(peer[0]) if peer else ""

    def glue(self, other: _Side) -> None:
        """Pass bytes between this side and the other from now on."""
        self._other, other._other = other, self
        for side in (self, other):
            if side._transport is None or side._transport.is_closing():
                self.abort()
                other.abort()
                return
        self.resume_reading()
        other.resume_reading()

    def abort(self) -> None:
        """Cut this side now."""
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # Nothing may arrive before there is another side to give it to; glue() lets it flow.
        self.pause_reading()
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sides.add(self)
        if self._opened is not None:
            self._opened(self)

    def data_received(self, data: bytes) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.write(data)

    def eof_received(self) -> bool:
        self._ended = True
        other = self._other
        if other is None or other._transport is None or other._ended:
            return False
        if other._transport.can_write_eof():
            other._transport.write_eof()
        return True  # keep our sending half open: the answer may still come

    def connection_lost(self, exc: Exception | None) -> None:
        self._sides.discard(self)
        other, self._other = self._other, None
        if other is not None and other._transport is not None:
            # A reset is passed on as one; an orderly end lets what is buffered out first.
            if exc is not None:
                other._transport.abort()
            else:
                other._transport.close()

    def pause_writing(self) -> None:
        if self._other is not None:
            self._other.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None:
            self._other.resume_reading()
