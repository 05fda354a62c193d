"""Calls between control-plane processes that share an external etcd: named channels, as Raft's links have them.

Owns the connections and the proof that a caller belongs here: it presents the callee's token, which stands in the
roster, and only who may read the store can read that. Must not know what is said on a channel.
"""

from __future__ import annotations

import hmac
from typing import Any

import grpc

from controlplane.base.errors import Code, StatusError
from controlplane.client.endpoints import CLIENT_CHANNEL_OPTIONS
from controlplane.external.roster import Roster
from controlplane.pb.quarterdeck.internal.v1 import peers_pb2, peers_pb2_grpc
from controlplane.raft.types import PeerHandler
from controlplane.transport.channel import Credentials, new_channel

__all__ = ["SERVICE_NAME", "Peers"]

SERVICE_NAME = "quarterdeck.internal.v1.Peers"


class Peers(peers_pb2_grpc.PeersServicer):
    """Both ends: register it on the server, and :meth:`call` others through it. Close it."""

    def __init__(self, roster: Roster, *, name: str, token: bytes, credentials: Credentials | None = None) -> None:
        self._roster = roster
        self._name = name
        self._token = token
        self._credentials = credentials
        self._handlers: dict[str, PeerHandler] = {}
        self._channels: dict[str, grpc.aio.Channel] = {}

    def serve(self, channel: str, handler: PeerHandler) -> None:
        """Answer others' requests on a channel."""
        self._handlers[channel] = handler

    async def call(self, peer: str, channel: str, payload: bytes, *, timeout_ms: int) -> bytes:
        """Ask a process by name, this one included. Raises StatusError (Unavailable) when it cannot be reached."""
        if peer == self._name:
            return await self._handle(peer, channel, payload)
        entry = self._roster.member(peer)
        if entry is None:
            raise StatusError(Code.UNAVAILABLE, f"{peer!r} is not in the roster: it has not started, or is gone")
        request = peers_pb2.PeerCall(caller=self._name, channel=channel, payload=payload, token=entry.token)
        stub: Any = peers_pb2_grpc.PeersStub(self._channel(entry.client_endpoint))
        try:
            answer: peers_pb2.PeerAnswer = await stub.Call(request, timeout=timeout_ms / 1000)
        except grpc.aio.AioRpcError as error:
            code = Code(error.code().value[0])
            raise StatusError(code, f"{peer} at {entry.client_endpoint}: {error.details()}") from error
        return answer.payload

    async def Call(  # noqa: N802 - grpc's name; its types want both styles at once
        self, request: peers_pb2.PeerCall, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peers_pb2.PeerAnswer:
        """The RPC."""
        if not hmac.compare_digest(request.token, self._token):
            raise StatusError(Code.PERMISSION_DENIED, "wrong token: this service is for the control plane's own")
        payload = await self._handle(request.caller, request.channel, request.payload)
        return peers_pb2.PeerAnswer(payload=payload)

    async def close(self) -> None:
        """Close every connection."""
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            await channel.close()

    async def _handle(self, caller: str, channel: str, payload: bytes) -> bytes:
        handler = self._handlers.get(channel)
        if handler is None:
            raise StatusError(Code.UNIMPLEMENTED, f"{self._name!r} serves no channel {channel!r}")
        return await handler(caller, payload)

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        channel = self._channels.get(endpoint)
        if channel is None:
            channel = new_channel(endpoint, CLIENT_CHANNEL_OPTIONS, credentials=self._credentials)
            self._channels[endpoint] = channel
        return channel
