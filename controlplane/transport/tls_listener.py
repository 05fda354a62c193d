"""A listening port that hands over a connection only when its TLS handshake is done.

Owns accepting and the connections in their handshake: they are few, and end after a while. asyncio's own TLS server
forgets those that fail; here each is counted and logged, since it is a wrong certificate or somebody at the door.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

from controlplane.transport import tls_metrics as metrics

__all__ = ["TlsListener"]

_log = logging.getLogger("quarterdeck.tls")

_BACKLOG: Final = 128
#: Accepting failed, most likely for want of file descriptors: connections will end.
_ACCEPT_PAUSE_S: Final = 0.2
#: How long a connection that closes may take to send what is left.
_SHUTDOWN_TIMEOUT_S: Final = 1.0


class TlsListener:
    """One port.

    Args:
        name: the port's in metrics and logs.
        factory: makes the protocol of a connection whose handshake succeeded, and sees none that failed.
        context: the server's side.
        handshakes_max: connections in their handshake at once; more are closed.
        handshake_timeout_s: how long one may take, seconds.
    """

    def __init__(
        self,
        name: str,
        factory: Callable[[], asyncio.BaseProtocol],
        context: ssl.SSLContext,
        *,
        handshakes_max: int = 256,
        handshake_timeout_s: float = 5.0,
    ) -> None:
        self._name = name
        self._factory = factory
        self._context = context
        self._handshakes_max = handshakes_max
        self._handshake_timeout_s = handshake_timeout_s
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._handshakes: set[asyncio.Task[None]] = set()

    def start(self, host: str, port: int) -> int:
        """Listen on ``host:port`` (0 picks one); the port in use.

        Raises:
            OSError: the address cannot be bound.
        """
        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen(_BACKLOG)
            listening.setblocking(False)
        except OSError:
            listening.close()
            raise
        self._socket = listening
        self._accepting = asyncio.get_running_loop().create_task(self._accept(listening))
        return int(listening.getsockname()[1])

    async def stop(self) -> None:
        """Close the port and what is in its handshake; connections handed over go on. Safe to call twice."""
        tasks = [task for task in (self._accepting, *self._handshakes) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        listening, self._socket = self._socket, None
        if listening is not None:
            listening.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, remote = await loop.sock_accept(listening)
            except OSError as error:
                _log.warning("event=accept_failed port=%s error=%r", self._name, str(error))
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            if len(self._handshakes) >= self._handshakes_max:
                self._refuse(connection, f"{remote[0]}:{remote[1]}", "too many handshakes at once")
                continue
            task = loop.create_task(self._shake(connection, f"{remote[0]}:{remote[1]}"))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _shake(self, connection: socket.socket, remote: str) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                self._factory,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._handshake_timeout_s,
                ssl_shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
            )
        except OSError as error:  # ssl.SSLError, timeouts and closed connections are all of this kind
            self._refuse(connection, remote, str(error) or type(error).__name__)
        except asyncio.CancelledError:
            connection.close()
            raise

    def _refuse(self, connection: socket.socket, remote: str, reason: str) -> None:
        metrics.REFUSED_HANDSHAKES.labels(self._name).inc()
        _log.warning("event=handshake_refused port=%s remote=%s reason=%r", self._name, remote, reason)
        connection.close()
