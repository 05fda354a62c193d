"""etcdserverpb.Cluster and etcdserverpb.Maintenance: who is in the cluster, and how this replica is.

What etcd has and this store does not is refused with a text that says what to use instead. Two calls succeed because
there is nothing to do: Defragment (the state is in memory; there is no file with holes) and disarming alarms when
none is raised.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

from controlplane.base.errors import Code, StatusError
from controlplane.etcd.context import Context, timeout_ms_of
from controlplane.etcd.local import LocalKV
from controlplane.pb.etcd import rpc_pb2, rpc_pb2_grpc
from controlplane.raft.types import Member, RaftHandle

__all__ = ["ETCD_VERSION", "ClusterService", "MaintenanceService"]

#: The etcd release whose API this is. Clients turn features on by it: from 3.5.13 on a kube-apiserver asks for watch
#: progress on demand.
ETCD_VERSION: Final = "3.5.17"

_HASH_PAGE: Final = 1_000


def _unimplemented(text: str) -> StatusError:
    return StatusError(Code.UNIMPLEMENTED, f"quarterdeck: {text}")


class ClusterService(rpc_pb2_grpc.ClusterServicer):
    """etcdserverpb.Cluster."""

    def __init__(self, kv: LocalKV, raft: RaftHandle) -> None:
        self._kv = kv
        self._raft = raft

    async def MemberList(  # noqa: N802
        self, request: rpc_pb2.MemberListRequest, context: Context
    ) -> rpc_pb2.MemberListResponse:
        if request.linearizable:
            await self._kv.barrier(timeout_ms_of(context))
        return rpc_pb2.MemberListResponse(header=self._kv.header(), members=_members(self._raft.status().members))

    async def MemberAdd(  # noqa: N802
        self, request: rpc_pb2.MemberAddRequest, context: Context
    ) -> rpc_pb2.MemberAddResponse:
        raise _unimplemented("members cannot be added while the cluster runs")

    async def MemberRemove(  # noqa: N802
        self, request: rpc_pb2.MemberRemoveRequest, context: Context
    ) -> rpc_pb2.MemberRemoveResponse:
        raise _unimplemented("members cannot be removed while the cluster runs")

    async def MemberUpdate(  # noqa: N802
        self, request: rpc_pb2.MemberUpdateRequest, context: Context
    ) -> rpc_pb2.MemberUpdateResponse:
        raise _unimplemented("a member's peer addresses are set in its configuration")

    async def MemberPromote(  # noqa: N802
        self, request: rpc_pb2.MemberPromoteRequest, context: Context
    ) -> rpc_pb2.MemberPromoteResponse:
        raise StatusError(Code.FAILED_PRECONDITION, "etcdserver: can only promote a learner member")


class MaintenanceService(rpc_pb2_grpc.MaintenanceServicer):
    """etcdserverpb.Maintenance."""

    def __init__(self, kv: LocalKV, raft: RaftHandle) -> None:
        self._kv = kv
        self._raft = raft

    async def Status(self, request: rpc_pb2.StatusRequest, context: Context) -> rpc_pb2.StatusResponse:  # noqa: N802
        """Of this replica, as it sees things now: no quorum is asked."""
        status = self._raft.status()
        leader = next((member.id for member in status.members if member.name == status.leader), 0)
        size_bytes = self._kv.size_bytes
        return rpc_pb2.StatusResponse(
            header=self._kv.header(),
            version=ETCD_VERSION,
            dbSize=size_bytes,
            dbSizeInUse=size_bytes,
            leader=leader,
            raftIndex=status.commit_index,
            raftTerm=status.term,
            raftAppliedIndex=status.applied_index,
            errors=[] if leader else ["etcdserver: no leader"],
        )

    async def Alarm(self, request: rpc_pb2.AlarmRequest, context: Context) -> rpc_pb2.AlarmResponse:  # noqa: N802
        """No alarm is ever raised yet, so there is none to list and none to disarm."""
        if request.action == rpc_pb2.AlarmRequest.ACTIVATE:
            raise _unimplemented("alarms cannot be raised by hand")
        return rpc_pb2.AlarmResponse(header=self._kv.header())

    async def Defragment(  # noqa: N802
        self, request: rpc_pb2.DefragmentRequest, context: Context
    ) -> rpc_pb2.DefragmentResponse:
        return rpc_pb2.DefragmentResponse(header=self._kv.header())

    async def Hash(self, request: rpc_pb2.HashRequest, context: Context) -> rpc_pb2.HashResponse:  # noqa: N802
        value, _ = await self._hash(0)
        return rpc_pb2.HashResponse(header=self._kv.header(), hash=value)

    async def HashKV(self, request: rpc_pb2.HashKVRequest, context: Context) -> rpc_pb2.HashKVResponse:  # noqa: N802
        value, revision = await self._hash(request.revision)
        return rpc_pb2.HashKVResponse(
            header=self._kv.header(), hash=value, compact_revision=self._kv.compact_revision, hash_revision=revision
        )

    async def _hash(self, revision: int) -> tuple[int, int]:
        """CRC-32 over every key of a revision (0: the present one), equal on every replica. etcd's own differs: it
        covers the history too, in the order of its file."""
        value, key = 0, b"\x00"
        while True:
            page = await self._kv.range(
                rpc_pb2.RangeRequest(key=key, range_end=b"\x00", limit=_HASH_PAGE, revision=revision, serializable=True)
            )
            revision = revision or page.header.revision
            for kv in page.kvs:
                value = zlib.crc32(kv.SerializeToString(deterministic=True), value)
            if not page.more:
                return value, revision
            key = page.kvs[-1].key + b"\x00"
            await asyncio.sleep(0)  # let the rest of the replica breathe between pages

    async def Snapshot(  # noqa: N802
        self, request: rpc_pb2.SnapshotRequest, context: Context
    ) -> AsyncIterator[rpc_pb2.SnapshotResponse]:
        raise _unimplemented("this is not a bbolt file; take a snapshot with `qd snapshot save`")
        yield  # an async generator, as the method streams

    async def MoveLeader(  # noqa: N802
        self, request: rpc_pb2.MoveLeaderRequest, context: Context
    ) -> rpc_pb2.MoveLeaderResponse:
        status = self._raft.status()
        if status.leader != status.name:
            raise StatusError(Code.FAILED_PRECONDITION, "etcdserver: not leader")
        if request.targetID not in {member.id for member in status.members}:
            raise StatusError(Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee")
        raise _unimplemented("leadership moves by itself when the leading replica stops; it cannot be handed over yet")


def _members(members: Sequence[Member]) -> list[rpc_pb2.Member]:
    return [
        rpc_pb2.Member(
            ID=member.id,
            name=member.name,
            peerURLs=[f"http://{member.peer_address}"],
            clientURLs=[f"http://{member.client_endpoint}"] if member.client_endpoint else [],
        )
        for member in members
    ]
