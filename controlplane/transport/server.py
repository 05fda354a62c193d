"""gRPC servers: one factory with every option explicit, the listener, health and reflection.

The only place that makes a ``grpc.aio.Server``. There are two fronts: ``h2``, ours, and ``grpcio``, the reference that
every test of the front also runs on. Knows no service and no state of ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from controlplane.base.clock import Clock, SystemClock
from controlplane.base.errors import ConfigError
from controlplane.base.limits import GRPC_RECV_BYTES_MAX
from controlplane.transport.h2.server import H2Server
from controlplane.transport.interceptors import StatusInterceptor
from controlplane.transport.tls import Reloader

__all__ = ["FRONTS", "Front", "Health", "ServerOptions", "add_reflection", "listen", "new_server"]

_log = logging.getLogger("quarterdeck.grpc")

Front = Literal["h2", "grpcio"]
FRONTS: Final[tuple[Front, ...]] = ("h2", "grpcio")

#: gRPC's "no limit" for a message size.
_UNLIMITED: Final = -1


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Every knob of a server. Defaults are etcd's where etcd has one.

    Attributes:
        front: whose HTTP/2 serves: ours or grpcio's.
        recv_bytes_max: largest request message; a larger one fails with RESOURCE_EXHAUSTED.
        send_bytes_max: largest response message; -1 is unlimited, as etcd has it (lists are bounded by pages).
        concurrent_streams_max: RPCs open at once on one connection; more wait at the client. Long-lived watches
            and sessions count, so it is far above what one process opens.
        connections_max: connections open at once; more are closed unheard (front h2 only).
        keepalive_min_time_ms: a client pinging more often than this is sent away (GOAWAY, ENHANCE_YOUR_CALM). Far
            below etcd's 5 s: our agents and clients ping every second, to notice a paused replica within two.
        keepalive_time_ms: an idle connection is pinged this often.
        keepalive_timeout_ms: a ping unanswered for this long closes the connection.
    """

    front: Front = "h2"
    recv_bytes_max: int = GRPC_RECV_BYTES_MAX
    send_bytes_max: int = _UNLIMITED
    concurrent_streams_max: int = 100_000
    connections_max: int = 20_000
    keepalive_min_time_ms: int = 300
    keepalive_time_ms: int = 7_200_000
    keepalive_timeout_ms: int = 20_000

    def channel_args(self) -> list[tuple[str, int]]:
        """The same as gRPC core's channel arguments."""
        return [
            ("grpc.max_receive_message_length", self.recv_bytes_max),
            ("grpc.max_send_message_length", self.send_bytes_max),
            ("grpc.max_concurrent_streams", self.concurrent_streams_max),
            ("grpc.keepalive_time_ms", self.keepalive_time_ms),
            ("grpc.keepalive_timeout_ms", self.keepalive_timeout_ms),
            # What really bounds it: without this gRPC core waits a minute for the ping's answer (measured, 1.85).
            ("grpc.http2.ping_timeout_ms", self.keepalive_timeout_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", self.keepalive_min_time_ms),
            ("grpc.http2.max_ping_strikes", 2),
            ("grpc.http2.max_pings_without_data", 0),
            # Two replicas on one port would share its connections silently; a port in use must be an error.
            ("grpc.so_reuseport", 0),
        ]


def new_server(
    options: ServerOptions | None = None,
    *,
    clock: Clock | None = None,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    http1: Callable[[], asyncio.BaseProtocol] | None = None,
) -> grpc.aio.Server:
    """A server, not yet listening. ``interceptors`` run inside the one that counts and translates errors. ``http1``
    makes the protocol of a connection of whoever begins with GET or HEAD instead (front h2 only)."""
    options, clock = options or ServerOptions(), clock or SystemClock()
    behind = [StatusInterceptor(clock), *interceptors]
    if options.front == "h2":
        return H2Server(options, clock, behind, http1=http1)
    server = grpc.aio.server(interceptors=behind, options=options.channel_args())
    # Generated code adds every method twice: as a generic handler, and as a "registered method". The latter makes
    # grpc.aio wait on one future per method for each call (measured with 1.85: a quarter of a Put's CPU time with 30
    # methods). The generic handlers serve the same calls alone.
    server.add_registered_method_handlers = _ignore_registered_methods  # type: ignore[method-assign, unused-ignore]
    return server


def _ignore_registered_methods(service_name: str, method_handlers: object) -> None:
    """See new_server."""


def listen(server: grpc.aio.Server, address: str, tls: Reloader | None = None) -> int:
    """Bind ``host:port`` (port 0 picks one) and return the port. With ``tls``, callers must show a certificate.

    Raises:
        ConfigError: the address is malformed, not ours, or in use.
    """
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            # An H2Server takes a context of the ssl module where grpcio wants its own.
            shown: Any = tls.server(*server.protocols) if isinstance(server, H2Server) else tls.server_credentials()
            port = server.add_secure_port(address, shown)
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen on {address!r} for gRPC: the port is in use, or the address is not one of this machine"
        ) from error
    if port == 0:
        raise ConfigError(f"cannot listen on {address!r} for gRPC")
    _log.info("event=listening protocol=grpc address=%s port=%d tls=%s", address, port, tls is not None)
    return port


class Health:
    """The standard health service (grpc.health.v1). Everything is NOT_SERVING until told otherwise."""

    def __init__(self, server: grpc.aio.Server, services: Iterable[str]) -> None:
        """Register on ``server`` for ``services`` (full names) and for the server as a whole (the empty name)."""
        self._names = ("", *services)
        self._servicer: Any = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set_serving(self, serving: bool) -> None:
        """Tell all clients that watch."""
        state = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self._servicer.set(name, state)


def add_reflection(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Serve descriptors of ``services`` (full names), so that grpcurl and the like need no proto files."""
    names = [*services, health.SERVICE_NAME, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
