"""OperatorClient: what operators ask one replica. One endpoint on purpose: the answer is about that replica."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self

import grpc

from controlplane.client.endpoints import CLIENT_CHANNEL_OPTIONS
from controlplane.client.status import to_api_error
from controlplane.pb.quarterdeck.v1 import operator_pb2
from controlplane.pb.quarterdeck.v1.operator_pb2_grpc import OperatorStub
from controlplane.transport.channel import Credentials, new_channel

__all__ = ["OperatorClient", "leader_of"]


def leader_of(answers: Sequence[operator_pb2.StatusResponse], size: int) -> tuple[str | None, int]:
    """The leader that a majority of all ``size`` replicas names in the newest term, or None; and that term."""
    term = max((answer.term for answer in answers), default=0)
    named = Counter(answer.leader for answer in answers if answer.term == term and answer.leader)
    for name, votes in named.most_common(1):
        if votes > size // 2:
            return name, term
    return None, term


class OperatorClient:
    """``quarterdeck.v1.Operator`` of one replica. Raises ApiError (UnavailableError when it does not answer)."""

    def __init__(self, endpoint: str, *, timeout_ms: int = 2_000, credentials: Credentials | None = None) -> None:
        self.endpoint = endpoint
        self._timeout_s = timeout_ms / 1000
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None

    async def status(self) -> operator_pb2.StatusResponse:
        """How the replica is."""
        try:
            response: operator_pb2.StatusResponse = await self._stub().Status(
                operator_pb2.StatusRequest(), timeout=self._timeout_s
            )
        except grpc.aio.AioRpcError as error:
            raise to_api_error(error, write=False) from error
        return response

    async def snapshot(self) -> AsyncIterator[operator_pb2.SnapshotChunk]:
        """The snapshot file in pieces; the first says the revision. Takes as long as it takes; a replica that dies
        meanwhile is noticed by keepalive."""
        call = self._stub().Snapshot(operator_pb2.SnapshotRequest())
        try:
            async for chunk in call:
                yield chunk
        except grpc.aio.AioRpcError as error:
            raise to_api_error(error, write=False) from error
        finally:
            call.cancel()

    async def restore(self, request: operator_pb2.RestoreRequest, *, timeout_ms: int) -> operator_pb2.RestoreResponse:
        """One step of a restore into the running cluster."""
        try:
            response: operator_pb2.RestoreResponse = await self._stub().Restore(request, timeout=timeout_ms / 1000)
        except grpc.aio.AioRpcError as error:
            raise to_api_error(error, write=True) from error
        return response

    async def cut_snapshot(self, *, timeout_ms: int = 60_000) -> operator_pb2.CutSnapshotResponse:
        """Have the replica save a snapshot of its own now and drop the log that it holds."""
        try:
            response: operator_pb2.CutSnapshotResponse = await self._stub().CutSnapshot(
                operator_pb2.CutSnapshotRequest(), timeout=timeout_ms / 1000
            )
        except grpc.aio.AioRpcError as error:
            raise to_api_error(error, write=True) from error
        return response

    def _stub(self) -> Any:
        if self._channel is None:
            self._channel = new_channel(self.endpoint, CLIENT_CHANNEL_OPTIONS, credentials=self._credentials)
        return OperatorStub(self._channel)

    async def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
