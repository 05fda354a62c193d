"""Container logs from the agents that have them: any replica asks the node's own port on a client's behalf.

Owns one channel per agent address, made when first asked and closed with :meth:`AgentLogs.close`. The address is the
Node object's: its InternalIP and ``status.daemonEndpoints.kubeletEndpoint``, which its agent wrote.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, cast

import grpc

from controlplane.api.errors import ApiError, NotFoundError, UnavailableError
from controlplane.base.errors import Code
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.pb.quarterdeck.v1.node_pb2_grpc import AgentStub
from controlplane.transport.channel import ChannelOptions, Credentials, new_channel

__all__ = ["AgentLogs", "agent_address"]

#: A paused agent is noticed by an unanswered ping; a log that is followed may be silent for ever.
_OPTIONS: Final = ChannelOptions(
    keepalive_time_ms=1_000, keepalive_timeout_ms=1_000, reconnect_initial_ms=50, reconnect_max_ms=500
)
_CHANNELS_MAX: Final = 256


def agent_address(node: Node) -> str:
    """``host:port`` of a node's agent; empty when the Node object does not say."""
    addresses = {address.type: address.address for address in node.status.addresses}
    host = addresses.get("InternalIP") or addresses.get("Hostname", "")
    port = node.status.daemonEndpoints.kubeletEndpoint.Port
    return f"{host}:{port}" if host and port else ""


class AgentLogs:
    """Implements ``api.server.LogSource`` over the agents' gRPC ports.

    ``credentials``: this member's certificate; the agent must then show that of the node that is asked for, whatever
    address the Node object gives.
    """

    def __init__(self, credentials: Credentials | None = None) -> None:
        self._credentials = credentials
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}

    async def logs(self, request: api_pb2.LogsRequest, pod: Pod, node: Node) -> AsyncIterator[api_pb2.LogChunk]:
        """The log, chunk by chunk.

        Raises:
            NotFoundError: the agent has no such log.
            UnavailableError: the agent cannot be reached.
        """
        address = agent_address(node)
        if not address:
            raise UnavailableError(Code.UNAVAILABLE, f"node {node.metadata.name} does not say where its agent listens")
        call = cast(Any, AgentStub(await self._channel(address, node.metadata.name))).Logs(request)
        try:
            async for chunk in call:
                yield chunk
        except grpc.aio.AioRpcError as error:
            raise _translated(error, pod, node) from error
        finally:
            call.cancel()

    async def _channel(self, address: str, node: str) -> grpc.aio.Channel:
        channel = self._channels.get((address, node))
        if channel is None:
            if len(self._channels) >= _CHANNELS_MAX:
                oldest = next(iter(self._channels))
                await self._channels.pop(oldest).close()
            channel = self._channels[address, node] = new_channel(
                address, _OPTIONS, credentials=self._credentials, server_name=node
            )
        return channel

    async def close(self) -> None:
        """Close all connections."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()


def _translated(error: grpc.aio.AioRpcError, pod: Pod, node: Node) -> ApiError:
    details = error.details() or ""
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return NotFoundError(Code.NOT_FOUND, details or f'no log of pod "{pod.metadata.name}"', reason="NotFound")
    if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}:
        return UnavailableError(
            Code.UNAVAILABLE, f"the agent of node {node.metadata.name} does not answer: {details}", reason="Unavailable"
        )
    return ApiError(Code(error.code().value[0]), f"agent of node {node.metadata.name}: {details}")
