"""One TCP port for HTTP and HTTPS: the first byte of a connection says which (a TLS handshake begins with 0x16).

Owns a listening socket once it is given one, and the connections that have not said anything yet: they are few, and
closed after a while. Knows nothing of what is served.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

from controlplane.base.errors import ConfigError

__all__ = ["HttpListener", "bind"]

_log = logging.getLogger("quarterdeck.http")

_TLS_HANDSHAKE: Final = 0x16
#: Connections that have not sent their first byte or finished their handshake, at once.
_NEW_MAX: Final = 256
_FIRST_BYTE_S: Final = 10.0
_HANDSHAKE_S: Final = 10.0
_BACKLOG: Final = 128


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one. Who connects waits until somebody takes the connection.

    Raises:
        ConfigError: the address cannot be bound; the message names it and why.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"cannot serve metrics on {host}:{port}: {error.strerror or error}; "
            "stop what uses the port, or choose another"
        ) from error
    return listening


class HttpListener:
    """Hands each connection to a protocol of ``factory``, through TLS if the caller speaks it.

    Args:
        tls: None closes connections that begin a TLS handshake.
    """

    def __init__(self, factory: Callable[[], asyncio.BaseProtocol], tls: ssl.SSLContext | None) -> None:
        self._factory = factory
        self._tls = tls
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._new: set[asyncio.Task[None]] = set()

    def start(self, listening: socket.socket) -> int:
        """Take a socket that :func:`bind` made, and its connections; returns the port."""
        self._socket = listening
        self._accepting = asyncio.get_running_loop().create_task(self._accept(listening))
        return int(listening.getsockname()[1])

    async def stop(self) -> None:
        """Close the port and the connections that have said nothing. Safe to call twice."""
        tasks = [task for task in (self._accepting, *self._new) if task is not None]
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
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:  # such as no file descriptors left: the connections there are will end
                _log.warning("event=accept_failed error=%s", error)
                await asyncio.sleep(1.0)
                continue
            if len(self._new) >= _NEW_MAX:
                connection.close()
                continue
            task = loop.create_task(self._take(connection))
            self._new.add(task)
            task.add_done_callback(self._new.discard)

    async def _take(self, connection: socket.socket) -> None:
        """Find out what the caller speaks, and hand the connection over."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_FIRST_BYTE_S):
                first = await _peek(connection)
            speaks_tls = first[:1] == bytes([_TLS_HANDSHAKE])
            if not first or (speaks_tls and self._tls is None):
                connection.close()
                return
            await loop.connect_accepted_socket(
                self._factory,
                connection,
                ssl=self._tls if speaks_tls else None,
                ssl_handshake_timeout=_HANDSHAKE_S if speaks_tls else None,
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            _log.debug("event=connection_refused error=%s", error)
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise


async def _peek(connection: socket.socket) -> bytes:
    """The first byte, left where it is; empty when the caller has closed."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection.fileno())
    return connection.recv(1, socket.MSG_PEEK)
