"""Relaying UDP: one socket per frontend, one socket per client session; sessions end when idle.

UDP has no connect to fail: a refused datagram (ICMP) sets the endpoint aside and ends the session, so that the
client's next datagram goes elsewhere.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import cast

from controlplane.base.clock import Clock
from node.proxy import metrics
from node.proxy.balancer import Balancer, Endpoint
from node.proxy.tcp import reuse_port_socket

__all__ = ["UdpFrontend"]

IDLE_S = 30.0
SESSIONS_MAX = 4096

Address = tuple[str, int]


class UdpFrontend:
    """One UDP frontend. Clients are told apart by address and port."""

    def __init__(self, ip: str, port: int, balancer: Balancer, clock: Clock) -> None:
        self.balancer = balancer
        self._address = (ip, port)
        self._clock = clock
        self._transport: asyncio.DatagramTransport | None = None
        self._sessions: dict[Address, _Session] = {}
        self._waiting: dict[Address, list[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bind. Raises OSError as ``reuse_port_socket``."""
        sock = reuse_port_socket(socket.SOCK_DGRAM, *self._address)
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(lambda: _Front(self), sock=sock)
        except OSError:
            sock.close()
            raise
        self._spawn(self._expire())

    async def stop(self, drain_s: float = 0.0) -> None:
        """Close every socket. There is nothing to drain: a datagram is answered or lost."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in list(self._sessions.values()):
            session.close()
        if self._transport is not None:
            self._transport.close()
        await asyncio.sleep(0)  # a closed transport closes its socket in the loop's next turn

    def received(self, data: bytes, client: Address) -> None:
        """A datagram from a client."""
        session = self._sessions.get(client)
        if session is not None and session.endpoint in self.balancer.endpoints:
            session.send(data, self._clock.monotonic())
            return
        if session is not None:
            session.close()
        if client in self._waiting:
            if len(self._waiting[client]) < 16:
                self._waiting[client].append(data)
            return
        if len(self._sessions) + len(self._waiting) >= SESSIONS_MAX:
            metrics.FAILED.labels("too-many").inc()
            return
        self._waiting[client] = [data]
        self._spawn(self._open(client))

    def answered(self, data: bytes, client: Address) -> None:
        """A datagram from an endpoint."""
        if self._transport is not None:
            self._transport.sendto(data, client)

    def ended(self, session: _Session, *, refused: bool) -> None:
        """A session's socket closed."""
        if self._sessions.get(session.client) is session:
            del self._sessions[session.client]
        if refused:
            self.balancer.failed(session.endpoint, self._clock.monotonic())
            metrics.CONNECT_RETRIES.inc()

    async def _open(self, client: Address) -> None:
        loop = asyncio.get_running_loop()
        now_s = self._clock.monotonic()
        endpoint = next(self.balancer.candidates(client[0], now_s), None)
        waiting = self._waiting.pop(client, [])
        if endpoint is None:
            metrics.FAILED.labels("no-endpoint").inc()
            return
        self._waiting[client] = waiting
        try:
            _, session = await loop.create_datagram_endpoint(
                lambda: _Session(self, client, endpoint, now_s), remote_addr=endpoint
            )
        except OSError:
            self.balancer.failed(endpoint, now_s)
            metrics.FAILED.labels("no-endpoint").inc()
            return
        finally:
            waiting = self._waiting.pop(client, [])
        self._sessions[client] = session
        self.balancer.connected(client[0], endpoint, now_s)
        metrics.CONNECTIONS.labels("UDP").inc()
        for data in waiting:
            session.send(data, now_s)

    async def _expire(self) -> None:
        while True:
            await self._clock.sleep(IDLE_S / 3)
            old = self._clock.monotonic() - IDLE_S
            for session in [s for s in self._sessions.values() if s.used_at_s < old]:
                session.close()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Front(asyncio.DatagramProtocol):
    def __init__(self, frontend: UdpFrontend) -> None:
        self._frontend = frontend

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._frontend.received(data, addr)


class _Session(asyncio.DatagramProtocol):
    """The socket towards one endpoint on behalf of one client."""

    def __init__(self, frontend: UdpFrontend, client: Address, endpoint: Endpoint, now_s: float) -> None:
        self.client = client
        self.endpoint = endpoint
        self.used_at_s = now_s
        self._frontend = frontend
        self._transport: asyncio.DatagramTransport | None = None
        self._refused = False

    def send(self, data: bytes, now_s: float) -> None:
        self.used_at_s = now_s
        if self._transport is not None:
            self._transport.sendto(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._frontend.answered(data, self.client)

    def error_received(self, exc: Exception) -> None:
        self._refused = True
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._frontend.ended(self, refused=self._refused or exc is not None)
