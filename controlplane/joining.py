"""A replica's place in its cluster: founded with it, remembered by its data directory, or asked of those that run.

Owns the order of these answers, and what a new member makes known of itself once it takes part. A replica that has
lived before is who its data directory says, whatever its settings say.

A new member was added first (``qd member add``): it asks a running replica for the members, finds itself among them by
its peer address, and begins with an empty log, as what it was added as.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol
from urllib.parse import urlsplit

import grpc

from controlplane.base.clock import Clock
from controlplane.base.errors import ConfigError, StatusError
from controlplane.config import MemberConfig, ReplicaConfig
from controlplane.pb.etcd import rpc_pb2, rpc_pb2_grpc
from controlplane.raft.founding import Founding, peek_founding
from controlplane.raft.membership import Membership
from controlplane.raft.types import Member, MemberChange, RaftStatus, UpdateMember
from controlplane.transport.channel import Credentials, new_channel

__all__ = ["find_place", "keep_published"]

_log = logging.getLogger("quarterdeck.joining")

_ASK_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 1.0
_PUBLISH_TIMEOUT_MS: Final = 5_000


async def find_place(config: ReplicaConfig, *, clock: Clock, credentials: Credentials | None = None) -> Founding | None:
    """Who this replica is; None: a founder, as its settings say.

    Asks for as long as nobody answers: the others may start at the same time.

    Raises:
        ConfigError: the data directory is another member's, or the cluster does not have this member.
        StorageError, CorruptStateError: the data directory cannot be read.
    """
    if config.store is not None:
        return None
    known = peek_founding(config.data_dir)
    if known is not None:
        me = known.membership.get(known.member_id)
        if me is not None and me.name not in ("", config.name):
            raise ConfigError(
                f"data directory {config.data_dir} is that of member {me.name}, this replica is named {config.name}; "
                f"check --data-dir and --name"
            )
        return known
    if config.initial_cluster_state == "new":
        return None
    if (config.data_dir / "wal").is_dir():
        return None  # it was restored or comes from version 0.1: its log says the rest
    endpoints = config.join or tuple(m.client for m in config.initial_cluster if m.name != config.name)
    if not endpoints:
        raise ConfigError("--initial-cluster-state existing: name a running replica with --join HOST:PORT")
    while True:
        for endpoint in endpoints:
            try:
                answer = await _ask(endpoint, credentials)
            except grpc.aio.AioRpcError as error:
                _log.warning("no members from endpoint=%s error=%r", endpoint, error.details())
            else:
                return _place(answer, config.me, endpoint)
        await clock.sleep(_RETRY_S)


async def _ask(endpoint: str, credentials: Credentials | None) -> rpc_pb2.MemberListResponse:
    channel = new_channel(endpoint, credentials=credentials)
    try:
        # Linearizable: a replica that is behind may not have heard of us yet.
        request = rpc_pb2.MemberListRequest(linearizable=True)
        answer: rpc_pb2.MemberListResponse = await rpc_pb2_grpc.ClusterStub(channel).MemberList(
            request, timeout=_ASK_TIMEOUT_S
        )
        return answer
    finally:
        await channel.close()


def _place(answer: rpc_pb2.MemberListResponse, me: MemberConfig, endpoint: str) -> Founding:
    members = [
        Member(m.ID, m.name, _address(m.peerURLs), _address(m.clientURLs), learner=m.isLearner) for m in answer.members
    ]
    ours = next((m for m in members if m.peer_address == me.peer), None)
    if ours is None:
        raise ConfigError(
            f"the cluster at {endpoint} has no member with the peer address {me.peer} "
            f"(it has {', '.join(f'{m.name} at {m.peer_address}' for m in members)}); "
            f"add it first: qd member add {me.name} --peer {me.peer}"
        )
    if ours.name not in ("", me.name):
        raise ConfigError(f"the member at {me.peer} is named {ours.name}, this replica {me.name}; check --name")
    if ours.name and ours.client_endpoint:
        raise ConfigError(
            f"member {ours.name} ({ours.id:x}) has started before, and this data directory is empty: without its log "
            f"it must not come back as the one it was. Remove the member and add a new one"
        )
    others = [m for m in members if m.id != ours.id]
    named = replace(ours, name=me.name)
    return Founding(answer.header.cluster_id, ours.id, Membership(tuple(sorted([*others, named], key=lambda m: m.id))))


def _address(urls: Sequence[str]) -> str:
    return urlsplit(urls[0]).netloc if urls else ""


class _Publisher(Protocol):
    """What of a replica's Raft is needed to make its name known."""

    def status(self) -> RaftStatus: ...
    async def read_barrier(self, *, timeout_ms: int) -> int: ...
    async def change_members(self, change: MemberChange, *, timeout_ms: int) -> tuple[Member, ...]: ...


async def keep_published(raft: _Publisher, me: MemberConfig, clock: Clock) -> None:
    """Make this member's name and endpoints known, if the cluster knows others. Returns when they are."""
    while True:
        try:
            await raft.read_barrier(timeout_ms=_PUBLISH_TIMEOUT_MS)
            status = raft.status()
            known = next((m for m in status.members if m.id == status.member_id), None)
            if known is None:
                return  # removed: it is being told
            if (known.name, known.client_endpoint, known.metrics_endpoint) == (me.name, me.client, me.metrics):
                return
            change = UpdateMember(known.id, name=me.name, client_endpoint=me.client, metrics_endpoint=me.metrics)
            await raft.change_members(change, timeout_ms=_PUBLISH_TIMEOUT_MS)
        except StatusError as error:
            _log.info("name and endpoints not published yet name=%s error=%r", me.name, error.message)
            await clock.sleep(_RETRY_S)
