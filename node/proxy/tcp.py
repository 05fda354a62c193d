"""Relaying TCP: one listener per frontend, two glued transports per connection.

Owns sockets and bytes in flight; where to connect it asks a :class:`~node.proxy.balancer.Balancer`. Flow control both
ways: a side that cannot take more stops the other from being read. A half-closed side is passed on as such.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
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
_ACCEPT_RETRY_S = 0.1
_ACCEPTS_PER_TURN = 64
_DRAIN_STEP_S = 0.01


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
        self._listener: socket.socket | None = None
        #: Accepted, and not yet handed to a transport.
        self._accepted: set[socket.socket] = set()
        self._sides: set[_Side] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bind and accept. Raises OSError as :func:`reuse_port_socket`."""
        self._listener = reuse_port_socket(socket.SOCK_STREAM, *self._address)
        try:
            self._listener.listen(BACKLOG)
        except OSError:
            self._listener.close()
            raise
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    async def stop(self, drain_s: float = 0.0) -> None:
        """Stop accepting, finish within ``drain_s`` seconds what was accepted, and cut what is left."""
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            if drain_s > 0:
                # What the kernel has taken for us would be reset with the listener, and no other agent gets it.
                self._accept(listener)
            listener.close()
        deadline_s = self._clock.monotonic() + drain_s
        while (self._tasks or self._sides) and self._clock.monotonic() < deadline_s:
            await self._clock.sleep(_DRAIN_STEP_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._accepted:
            _reset(connection)
        self._accepted.clear()
        for side in list(self._sides):
            side.abort()
        await asyncio.sleep(0)  # an aborted transport closes its socket in the loop's next turn

    def _accept(self, listener: socket.socket) -> None:
        # Our own accepting, not asyncio's server: that one loses a connection accepted while it closes.
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                connection, peer = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of file descriptors: leave the rest in the kernel's queue for a moment.
                log.warning("event=accept-failed frontend=%s:%d reason=%s", *self._address, error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                loop.call_later(_ACCEPT_RETRY_S, self._resume_accepting)
                return
            if len(self._sides) >= 2 * CONNECTIONS_MAX:
                metrics.FAILED.labels("too-many").inc()
                _reset(connection)
                continue
            connection.setblocking(False)
            self._accepted.add(connection)
            task = asyncio.get_running_loop().create_task(self._relay(connection, str(peer[0])))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _resume_accepting(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    async def _relay(self, connection: socket.socket, client_ip: str) -> None:
        backend = await self._connect(client_ip)
        if backend is None:
            metrics.FAILED.labels("no-endpoint").inc()
            self._accepted.discard(connection)
            _reset(connection)
            return
        loop = asyncio.get_running_loop()
        self._accepted.discard(connection)
        _, client = await loop.connect_accepted_socket(lambda: _Side(self._sides), sock=connection)
        metrics.CONNECTIONS.labels("TCP").inc()
        client.glue(backend)

    async def _connect(self, client_ip: str) -> _Side | None:
        for endpoint in self.balancer.candidates(client_ip, self._clock.monotonic()):
            backend = await self._try(endpoint)
            if backend is not None:
                self.balancer.connected(client_ip, endpoint, self._clock.monotonic())
                return backend
            self.balancer.failed(endpoint, self._clock.monotonic())
            metrics.CONNECT_RETRIES.inc()
        return None

    async def _try(self, endpoint: Endpoint) -> _Side | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, backend = await loop.create_connection(lambda: _Side(self._sides), *endpoint)
        except (OSError, TimeoutError) as error:
            log.debug("event=connect-failed endpoint=%s:%d reason=%s", *endpoint, error)
            return None
        return backend


def _reset(connection: socket.socket) -> None:
    """Refuse a connection so that its client knows at once: a reset, not an orderly end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class _Side(asyncio.Protocol):
    """One end of a relayed connection."""

    def __init__(self, sides: set[_Side]) -> None:
        self._sides = sides
        self._other: _Side | None = None
        self._transport: asyncio.Transport | None = None
        self._ended = False

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
