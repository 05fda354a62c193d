"""The replicas a client knows, and the one it keeps to.

Owns one channel per endpoint and the choice between them; knows no service and repeats nothing itself. A client keeps
to one replica while it answers, which keeps its reads moving forward cheaply, and goes to the next when it does not.
The first is drawn at random, so that many clients spread over the replicas, unless the caller names it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc

from controlplane.base.errors import ConfigError
from controlplane.base.rand import Rand
from controlplane.transport.channel import ChannelOptions, Credentials, credentials_now, new_channel

__all__ = ["CLIENT_CHANNEL_OPTIONS", "ETCD_CHANNEL_OPTIONS", "EndpointPool", "parse_endpoints"]

#: A paused or cut-off replica holds its connections open: only a ping tells. 1 s until one is sent and 1 s until it
#: is missed bound that to 2 s for long-lived streams; single calls have shorter deadlines of their own.
CLIENT_CHANNEL_OPTIONS = ChannelOptions(
    keepalive_time_ms=1_000, keepalive_timeout_ms=1_000, reconnect_initial_ms=50, reconnect_max_ms=500
)
#: To etcd itself, which sends away whoever pings more often than every 5 s (its --grpc-keepalive-min-time).
ETCD_CHANNEL_OPTIONS = ChannelOptions(
    keepalive_time_ms=6_000, keepalive_timeout_ms=2_000, reconnect_initial_ms=50, reconnect_max_ms=500
)


def parse_endpoints(text: str) -> list[str]:
    """``host:port,host:port`` as a list.

    Raises:
        ConfigError: one of them is not ``host:port``, or there is none.
    """
    endpoints = [part.strip() for part in text.split(",") if part.strip()]
    if not endpoints:
        raise ConfigError("no endpoint given; allowed: host:port, several separated by commas")
    for endpoint in endpoints:
        host, _, port = endpoint.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise ConfigError(f"endpoint {endpoint!r} is not host:port")
    return endpoints


class EndpointPool:
    """Channels to every replica, made when first needed, and the endpoint to use now."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        rand: Rand,
        options: ChannelOptions = CLIENT_CHANNEL_OPTIONS,
        credentials: Credentials | None = None,
        first: str | None = None,
    ) -> None:
        if not endpoints:
            raise ConfigError("a client needs at least one endpoint")
        self._endpoints = list(dict.fromkeys(endpoints))
        if first is None:
            self._current = rand.randint(0, len(self._endpoints) - 1)
        elif first in self._endpoints:
            self._current = self._endpoints.index(first)
        else:
            raise ConfigError(f"endpoint {first!r} to begin with is not among {', '.join(self._endpoints)}")
        self._options = options
        self._credentials = credentials
        self._shown = credentials_now(credentials)
        self._channels: dict[str, grpc.aio.Channel] = {}
        #: Made with a certificate that has been renewed since; calls in flight may still be on them.
        self._outdated: list[grpc.aio.Channel] = []

    @property
    def current(self) -> str:
        """The endpoint to use now."""
        return self._endpoints[self._current]

    @property
    def endpoints(self) -> Sequence[str]:
        """All of them, in the order they are tried."""
        return tuple(self._endpoints)

    def channel(self, endpoint: str) -> grpc.aio.Channel:
        """The channel to an endpoint of this pool. Call on the loop that will use it."""
        channel = self._channels.get(endpoint)
        if channel is None:
            channel = new_channel(endpoint, self._options, credentials=self._credentials)
            self._channels[endpoint] = channel
        return channel

    def failed(self, endpoint: str) -> None:
        """That endpoint did not answer: go on to the next, unless somebody already did. A certificate renewed since
        is shown from here on: perhaps it was the old one that was refused."""
        if (shown := credentials_now(self._credentials)) is not self._shown:
            self._shown = shown
            self._outdated += self._channels.values()
            self._channels.clear()
        if endpoint == self.current:
            self._current = (self._current + 1) % len(self._endpoints)

    async def close(self) -> None:
        """Close every channel; calls in flight are cancelled."""
        channels = [*self._channels.values(), *self._outdated]
        self._outdated.clear()
        self._channels.clear()
        await asyncio.gather(*(channel.close() for channel in channels))
