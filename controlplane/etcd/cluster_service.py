"""etcdserverpb.Cluster: who is in the cluster, and changing it.

Owns the translation between etcd's members, with their URLs, and Raft's, with their addresses. What may change, and
when, is Raft's to judge: a change goes through the log one at a time, and comes back as the members that follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import urlsplit

from controlplane.base.errors import Code, StatusError
from controlplane.etcd.authorizer import Authorizer
from controlplane.etcd.context import Context, timeout_ms_of
from controlplane.etcd.local import DEFAULT_TIMEOUT_MS, LocalKV
from controlplane.pb.etcd import rpc_pb2, rpc_pb2_grpc
from controlplane.raft.types import (
    AddMember,
    Member,
    MemberChange,
    PromoteMember,
    RaftHandle,
    RemoveMember,
    UpdateMember,
)

__all__ = ["ETCD_VERSION", "ClusterService", "peer_address"]

#: The etcd release whose API this is. Clients turn features on by it: from 3.5.13 on a kube-apiserver asks for watch
#: progress on demand.
ETCD_VERSION: Final = "3.5.17"


def peer_address(urls: Sequence[str], *, tls: bool) -> str:
    """``host:port`` of the one peer URL that a member of ours has.

    Raises:
        StatusError: InvalidArgument, none or not one that peers can be reached at.
    """
    if len(urls) != 1:
        raise (
            _bad_urls()
            if not urls
            else StatusError(Code.INVALID_ARGUMENT, f"quarterdeck: a member has one peer URL, not {len(urls)}")
        )
    try:
        url = urlsplit(urls[0])
        port = url.port
    except ValueError as error:
        raise _bad_urls() from error
    host = url.hostname or ""
    if url.scheme not in ("http", "https") or not host or not port or url.path or url.query or url.username:
        raise _bad_urls()
    if (url.scheme == "https") is not tls:
        wanted = "https" if tls else "http"
        raise StatusError(Code.INVALID_ARGUMENT, f"quarterdeck: peers of this cluster speak {wanted}, not {url.scheme}")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bad_urls() -> StatusError:
    return StatusError(Code.INVALID_ARGUMENT, "etcdserver: given member URLs are invalid")


class ClusterService(rpc_pb2_grpc.ClusterServicer):
    """etcdserverpb.Cluster. ``tls``: peers and clients are spoken to with TLS, so URLs say https."""

    def __init__(self, kv: LocalKV, raft: RaftHandle, authorizer: Authorizer, *, tls: bool = False) -> None:
        self._kv = kv
        self._authorizer = authorizer
        self._raft = raft
        self._tls = tls

    async def MemberList(  # noqa: N802
        self, request: rpc_pb2.MemberListRequest, context: Context
    ) -> rpc_pb2.MemberListResponse:
        """As this replica knows them; ``linearizable`` makes sure first that it knows everything."""
        if request.linearizable:
            await self._kv.barrier(timeout_ms_of(context))
        return rpc_pb2.MemberListResponse(header=self._kv.header(), members=self._wire(self._raft.status().members))

    async def MemberAdd(  # noqa: N802
        self, request: rpc_pb2.MemberAddRequest, context: Context
    ) -> rpc_pb2.MemberAddResponse:
        """The new member has an id and waits for a replica to be started under it."""
        address = peer_address(request.peerURLs, tls=self._tls)
        members = await self._change(AddMember(address, learner=request.isLearner), context)
        added = next((member for member in members if member.peer_address == address), None)
        if added is None:  # it was removed again before we could look
            raise StatusError(Code.NOT_FOUND, "etcdserver: member not found")
        return rpc_pb2.MemberAddResponse(
            header=self._kv.header(), member=self._wire([added])[0], members=self._wire(members)
        )

    async def MemberRemove(  # noqa: N802
        self, request: rpc_pb2.MemberRemoveRequest, context: Context
    ) -> rpc_pb2.MemberRemoveResponse:
        """The member learns of it and stops; this replica too, if it is the one, once it has answered."""
        members = await self._change(RemoveMember(request.ID), context)
        return rpc_pb2.MemberRemoveResponse(header=self._kv.header(), members=self._wire(members))

    async def MemberUpdate(  # noqa: N802
        self, request: rpc_pb2.MemberUpdateRequest, context: Context
    ) -> rpc_pb2.MemberUpdateResponse:
        """A new peer address; the member must listen there by itself."""
        address = peer_address(request.peerURLs, tls=self._tls)
        members = await self._change(UpdateMember(request.ID, peer_address=address), context)
        return rpc_pb2.MemberUpdateResponse(header=self._kv.header(), members=self._wire(members))

    async def MemberPromote(  # noqa: N802
        self, request: rpc_pb2.MemberPromoteRequest, context: Context
    ) -> rpc_pb2.MemberPromoteResponse:
        """A learner that has caught up becomes a voter."""
        members = await self._change(PromoteMember(request.ID), context)
        return rpc_pb2.MemberPromoteResponse(header=self._kv.header(), members=self._wire(members))

    async def _change(self, change: MemberChange, context: Context) -> tuple[Member, ...]:
        await self._authorizer.require_root(context)
        return await self._raft.change_members(change, timeout_ms=timeout_ms_of(context) or DEFAULT_TIMEOUT_MS)

    def _wire(self, members: Iterable[Member]) -> list[rpc_pb2.Member]:
        scheme = "https" if self._tls else "http"
        return [
            rpc_pb2.Member(
                ID=member.id,
                name=member.name,
                peerURLs=[f"{scheme}://{member.peer_address}"],
                clientURLs=[f"{scheme}://{member.client_endpoint}"] if member.client_endpoint else [],
                isLearner=member.learner,
            )
            for member in members
        ]
