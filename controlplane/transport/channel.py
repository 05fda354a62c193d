"""gRPC channels: one factory with every option explicit.

The only place that makes a ``grpc.aio.Channel``. Knows no service; retries and fail-over between endpoints are the
caller's, because only the caller knows which calls are safe to repeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import grpc

from controlplane.transport.tls import Reloader

__all__ = ["ChannelOptions", "Credentials", "credentials_now", "new_channel"]

#: What a channel shows of itself: a certificate as it is now, or files that are looked at whenever one is made.
Credentials = grpc.ChannelCredentials | Reloader

_UNLIMITED: Final = -1


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """Every knob of a channel.

    Attributes:
        send_bytes_max: largest request; above the server's limit so that the server's own error is what is seen.
        recv_bytes_max: largest response; -1 is unlimited.
        keepalive_time_ms: ping an idle connection this often. At least the server's minimum (etcd: 5 s, ours: 0.3 s),
            or the server closes the connection.
        keepalive_timeout_ms: a ping unanswered for this long closes the connection: how a dead host is noticed.
        connect_ms: how long an attempt to connect may take, handshakes included. One that is cut short begins anew
            and is cut short again: on a long link, or a busy machine, a client would never connect. Not longer than a
            lost first packet may delay a cluster that is back (it is sent again after a second).
        reconnect_initial_ms, reconnect_max_ms: back-off between connection attempts; of who is refused at once, all
            that counts.
    """

    send_bytes_max: int = _UNLIMITED
    recv_bytes_max: int = _UNLIMITED
    keepalive_time_ms: int = 10_000
    keepalive_timeout_ms: int = 3_000
    connect_ms: int = 2_000
    reconnect_initial_ms: int = 100
    reconnect_max_ms: int = 1_000

    def channel_args(self) -> list[tuple[str, int]]:
        """The same as gRPC core's channel arguments."""
        return [
            ("grpc.max_send_message_length", self.send_bytes_max),
            ("grpc.max_receive_message_length", self.recv_bytes_max),
            ("grpc.keepalive_time_ms", self.keepalive_time_ms),
            ("grpc.keepalive_timeout_ms", self.keepalive_timeout_ms),
            # What really bounds it: without this gRPC core waits a minute for the ping's answer (measured, 1.85).
            ("grpc.http2.ping_timeout_ms", self.keepalive_timeout_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.min_reconnect_backoff_ms", self.connect_ms),
            ("grpc.initial_reconnect_backoff_ms", self.reconnect_initial_ms),
            ("grpc.max_reconnect_backoff_ms", self.reconnect_max_ms),
            # Retries are ours: gRPC's own would repeat writes without a request id.
            ("grpc.enable_retries", 0),
            # Each channel its own connection: otherwise channels to one endpoint share one, and its fate.
            ("grpc.use_local_subchannel_pool", 1),
            # Loopback and cluster addresses are never behind the environment's proxy.
            ("grpc.enable_http_proxy", 0),
        ]


def new_channel(
    endpoint: str,
    options: ChannelOptions | None = None,
    *,
    credentials: Credentials | None = None,
    server_name: str = "",
) -> grpc.aio.Channel:
    """A channel to ``host:port``; it connects at the first call. Close it.

    Args:
        credentials: None speaks plainly. The server's certificate must be good for the host dialled.
        server_name: a name the server's certificate must have instead.
    """
    args: list[tuple[str, int | str]] = [*(options or ChannelOptions()).channel_args()]
    now = credentials_now(credentials)
    if now is None:
        return grpc.aio.insecure_channel(endpoint, options=args)
    if server_name:
        args.append(("grpc.ssl_target_name_override", server_name))
    return grpc.aio.secure_channel(endpoint, now, options=args)


def credentials_now(credentials: Credentials | None) -> grpc.ChannelCredentials | None:
    """As they are now; the same object as long as they do not change."""
    return credentials.channel_credentials() if isinstance(credentials, Reloader) else credentials
