"""MembersClient: who is in the cluster, changing it, and moving its leader, over etcd's Cluster and Maintenance API.

Any replica takes a change, so endpoints are asked in turn until one answers. A change that may have happened is not
asked for again: looking is cheap, and a second attempt could add a second member.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Self
from urllib.parse import urlsplit

import grpc

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.client.endpoints import CLIENT_CHANNEL_OPTIONS
from controlplane.client.interface import ApiError, UnavailableError
from controlplane.client.status import to_api_error
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.etcd.rpc_pb2_grpc import ClusterStub, MaintenanceStub
from controlplane.transport.channel import Credentials, new_channel

__all__ = ["MembersClient"]

#: What a promotion is refused with that may be done a moment later.
_NOT_YET: Final = (Code.FAILED_PRECONDITION, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
_NO_LEARNER: Final = "etcdserver: can only promote a learner member"
_AGAIN_S: Final = 0.5


class MembersClient:
    """See the module. Every method raises ApiError (UnavailableError when no replica answers). Close it when done.

    Args:
        endpoints: ``host:port`` of replicas.
        timeout_ms: one call to one replica.
        credentials: TLS; peers' URLs then say https.
    """

    def __init__(
        self, endpoints: Sequence[str], *, timeout_ms: int = 10_000, credentials: Credentials | None = None
    ) -> None:
        self._endpoints = list(endpoints)
        self._timeout_s = timeout_ms / 1000
        self._credentials = credentials
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def members(self) -> list[e.Member]:
        """All members, as a quorum knows them."""
        request = e.MemberListRequest(linearizable=True)
        answer = await self._ask(lambda channel: ClusterStub(channel).MemberList(request, timeout=self._timeout_s))
        return list(answer.members)

    async def leader(self) -> int:
        """Id of the leader; 0: the replica that was asked knows none."""
        answer = await self._ask(
            lambda channel: MaintenanceStub(channel).Status(e.StatusRequest(), timeout=self._timeout_s)
        )
        return int(answer.leader)

    async def add(self, peer: str, *, learner: bool) -> e.Member:
        """A new member that peers will reach at ``host:port``."""
        scheme = "http" if self._credentials is None else "https"
        request = e.MemberAddRequest(peerURLs=[f"{scheme}://{peer}"], isLearner=learner)
        answer = await self._ask(
            lambda channel: ClusterStub(channel).MemberAdd(request, timeout=self._timeout_s), write=True
        )
        added: e.Member = answer.member
        return added

    async def remove(self, member_id: int) -> None:
        """The member learns of it and stops."""
        request = e.MemberRemoveRequest(ID=member_id)
        await self._ask(lambda channel: ClusterStub(channel).MemberRemove(request, timeout=self._timeout_s), write=True)

    async def promote(self, member_id: int) -> None:
        """A learner that has caught up becomes a voter."""
        request = e.MemberPromoteRequest(ID=member_id)
        await self._ask(
            lambda channel: ClusterStub(channel).MemberPromote(request, timeout=self._timeout_s), write=True
        )

    async def promote_within(self, member_id: int, within_s: float, clock: Clock) -> None:
        """The same, asked again while it is refused because the learner has not started or not caught up, or because
        no quorum is healthy or answers; 0: asked once.

        Raises:
            ApiError: the last refusal, once the time is over; or one that waiting does not change.
        """
        deadline = clock.monotonic() + within_s
        in_doubt = False  # an earlier try may have been done
        while True:
            try:
                await self.promote(member_id)
            except ApiError as error:
                if in_doubt and error.message == _NO_LEARNER:
                    return
                in_doubt = in_doubt or (isinstance(error, UnavailableError) and error.unknown_outcome)
                hopeless = error.message == _NO_LEARNER or error.code not in _NOT_YET
                if hopeless or clock.monotonic() >= deadline:
                    raise
            else:
                return
            await clock.sleep(_AGAIN_S)

    async def move_leader(self, target_id: int = 0) -> None:
        """Hand leadership to a member (0: the leader picks). Returns when it has moved."""
        leader_id = await self.leader()
        leader = next((member for member in await self.members() if leader_id == member.ID), None)
        if leader is None or not leader.clientURLs:
            raise StatusError(Code.UNAVAILABLE, "etcdserver: no leader")
        request = e.MoveLeaderRequest(targetID=target_id)
        endpoint = urlsplit(leader.clientURLs[0]).netloc
        try:
            await MaintenanceStub(self._channel(endpoint)).MoveLeader(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise to_api_error(error, write=True) from error

    async def _ask(self, call: Callable[[grpc.aio.Channel], Awaitable[Any]], *, write: bool = False) -> Any:
        failure: StatusError | None = None
        for endpoint in self._endpoints:
            try:
                return await call(self._channel(endpoint))
            except grpc.aio.AioRpcError as error:
                failure = to_api_error(error, write=write)
                if not isinstance(failure, UnavailableError) or failure.unknown_outcome:
                    raise failure from error
        if failure is None:
            raise StatusError(Code.UNAVAILABLE, "no endpoint is given")
        raise failure

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        channel = self._channels.get(endpoint)
        if channel is None:
            channel = new_channel(endpoint, CLIENT_CHANNEL_OPTIONS, credentials=self._credentials)
            self._channels[endpoint] = channel
        return channel

    async def close(self) -> None:
        """Close all connections."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
