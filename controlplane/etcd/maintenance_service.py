"""etcdserverpb.Maintenance: how this replica is, alarms, hashes, backups, and moving the leader.

Everything but Alarm and MoveLeader is about the replica that is asked, as in etcd.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Final

from controlplane.base.errors import Code, StatusError
from controlplane.etcd.cluster_service import ETCD_VERSION
from controlplane.etcd.context import Context, timeout_ms_of
from controlplane.etcd.local import DEFAULT_TIMEOUT_MS, LocalKV
from controlplane.pb.etcd import rpc_pb2, rpc_pb2_grpc
from controlplane.raft.types import RaftHandle
from controlplane.store.store import Store

__all__ = ["MaintenanceService"]

_HASH_PAGE: Final = 1_000


def _unimplemented(text: str) -> StatusError:
    return StatusError(Code.UNIMPLEMENTED, f"quarterdeck: {text}")


class MaintenanceService(rpc_pb2_grpc.MaintenanceServicer):
    """etcdserverpb.Maintenance."""

    def __init__(self, kv: LocalKV, raft: RaftHandle, store: Store) -> None:
        self._kv = kv
        self._raft = raft
        self._store = store

    async def Status(self, request: rpc_pb2.StatusRequest, context: Context) -> rpc_pb2.StatusResponse:  # noqa: N802
        """Of this replica, as it sees things now: no quorum is asked. The state has no free pages, so what is used is
        what there is (``dbSizeInUse``)."""
        status = self._raft.status()
        leader = next((member.id for member in status.members if member.name == status.leader), 0)
        me = next((member for member in status.members if member.id == status.member_id), None)
        size_bytes = self._store.size_bytes
        errors = [] if leader else ["etcdserver: no leader"]
        errors += [_alarm_text(alarm) for alarm in self._store.alarms.raised]
        return rpc_pb2.StatusResponse(
            header=self._kv.header(),
            version=ETCD_VERSION,
            dbSize=size_bytes,
            dbSizeInUse=size_bytes,
            dbSizeQuota=self._kv.quota.limit_bytes,
            leader=leader,
            raftIndex=status.commit_index,
            raftTerm=status.term,
            raftAppliedIndex=status.applied_index,
            isLearner=me is not None and me.learner,
            errors=errors,
        )

    async def Alarm(self, request: rpc_pb2.AlarmRequest, context: Context) -> rpc_pb2.AlarmResponse:  # noqa: N802
        """GET lists those of a member (0: of all) and of a type (NONE: of all), as known here. ACTIVATE and DEACTIVATE
        go through the log."""
        if request.action != rpc_pb2.AlarmRequest.GET:
            return await self._kv.alarm(
                request.action, request.memberID, request.alarm, timeout_ms=timeout_ms_of(context)
            )
        alarms = [
            alarm
            for alarm in self._store.alarms.raised
            if request.memberID in (0, alarm.memberID) and request.alarm in (rpc_pb2.NONE, alarm.alarm)
        ]
        return rpc_pb2.AlarmResponse(header=self._kv.header(), alarms=alarms)

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
        """Only the leader can hand over, as in etcd; 0 lets it choose to whom."""
        timeout_ms = timeout_ms_of(context) or DEFAULT_TIMEOUT_MS
        await self._raft.transfer_leadership(request.targetID or None, timeout_ms=timeout_ms)
        return rpc_pb2.MoveLeaderResponse(header=self._kv.header())


def _alarm_text(alarm: rpc_pb2.AlarmMember) -> str:
    """As etcd prints one."""
    return f"memberID:{alarm.memberID} alarm:{rpc_pb2.AlarmType.Name(alarm.alarm)} "
