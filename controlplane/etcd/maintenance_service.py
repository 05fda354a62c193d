"""etcdserverpb.Maintenance: how this replica is, alarms, hashes, backups, and moving the leader.

Everything but Alarm and MoveLeader is about the replica that is asked, as in etcd.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from controlplane.base.clock import Clock
from controlplane.etcd import metrics
from controlplane.etcd.authorizer import Authorizer
from controlplane.etcd.cluster_service import ETCD_VERSION
from controlplane.etcd.context import Context, timeout_ms_of
from controlplane.etcd.local import DEFAULT_TIMEOUT_MS, LocalKV
from controlplane.pb.etcd import rpc_pb2, rpc_pb2_grpc
from controlplane.raft.types import RaftHandle
from controlplane.store.store import Store

if TYPE_CHECKING:  # it needs numpy, which is imported once the replica takes part
    from controlplane.etcd.export import Export

__all__ = ["MaintenanceService"]

#: Of a Snapshot message, as etcd has it.
_CHUNK_BYTES: Final = 32 * 1024


class MaintenanceService(rpc_pb2_grpc.MaintenanceServicer):
    """etcdserverpb.Maintenance."""

    def __init__(
        self, kv: LocalKV, raft: RaftHandle, store: Store, authorizer: Authorizer, clock: Clock, *, tls: bool = False
    ) -> None:
        self._kv = kv
        self._raft = raft
        self._store = store
        self._authorizer = authorizer
        self._clock = clock
        self._tls = tls

    async def Status(self, request: rpc_pb2.StatusRequest, context: Context) -> rpc_pb2.StatusResponse:  # noqa: N802
        """Of this replica, as it sees things now: no quorum is asked. The state has no free pages, so what is used is
        what there is (``dbSizeInUse``)."""
        await self._authorizer.require_user(context)
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
        if request.action == rpc_pb2.AlarmRequest.GET:
            await self._authorizer.require_user(context)
        else:
            await self._authorizer.require_root(context)
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
        """Give memory back now: the rest of what compaction freed, and then tables that have outgrown what is in them,
        one at a time with turns of the loop in between. Files need none: log and snapshots hold what is used."""
        await self._authorizer.require_root(context)
        began_s = self._clock.monotonic()
        while self._store.sweepable:
            self._store.sweep()
            await asyncio.sleep(0)
        for _ in self._store.rebuild():
            await asyncio.sleep(0)
        metrics.DEFRAG_SECONDS.observe(self._clock.monotonic() - began_s)
        return rpc_pb2.DefragmentResponse(header=self._kv.header())

    async def Hash(self, request: rpc_pb2.HashRequest, context: Context) -> rpc_pb2.HashResponse:  # noqa: N802
        """Of the whole state as etcd would keep it; equal on replicas that are equally far."""
        await self._authorizer.require_root(context)
        with self._export() as export:
            return rpc_pb2.HashResponse(header=self._kv.header(export.revision), hash=await export.hash())

    async def HashKV(self, request: rpc_pb2.HashKVRequest, context: Context) -> rpc_pb2.HashKVResponse:  # noqa: N802
        """etcd's own hash of the keys' history: the same requests to an etcd give the same hash."""
        from controlplane.etcd.export import hash_kv

        await self._authorizer.require_root(context)
        found = await hash_kv(self._store, request.revision)
        return rpc_pb2.HashKVResponse(
            header=self._kv.header(),
            hash=found.hash,
            compact_revision=found.compact_revision,
            hash_revision=found.revision,
        )

    async def Snapshot(  # noqa: N802
        self, request: rpc_pb2.SnapshotRequest, context: Context
    ) -> AsyncIterator[rpc_pb2.SnapshotResponse]:
        """A database file of etcd's, cut at one revision while writes go on: ``etcdctl snapshot restore`` makes an etcd
        of it. Users come without passwords and with authentication off (see ``export``)."""
        await self._authorizer.require_root(context)
        with self._export() as export:
            began_s = self._clock.monotonic()
            remaining_bytes, chunks = await export.file(_CHUNK_BYTES)
            async for chunk in chunks:
                remaining_bytes = max(0, remaining_bytes - len(chunk))
                yield rpc_pb2.SnapshotResponse(remaining_bytes=remaining_bytes, blob=chunk, version=ETCD_VERSION)
            metrics.SNAPSHOT_SECONDS.observe(self._clock.monotonic() - began_s)

    @contextmanager
    def _export(self) -> Iterator[Export]:
        from controlplane.etcd.export import Export

        export = Export(self._store, self._raft.status(), tls=self._tls)
        try:
            yield export
        finally:
            export.close()

    async def MoveLeader(  # noqa: N802
        self, request: rpc_pb2.MoveLeaderRequest, context: Context
    ) -> rpc_pb2.MoveLeaderResponse:
        """Only the leader can hand over, as in etcd; 0 lets it choose to whom."""
        await self._authorizer.require_root(context)
        timeout_ms = timeout_ms_of(context) or DEFAULT_TIMEOUT_MS
        await self._raft.transfer_leadership(request.targetID or None, timeout_ms=timeout_ms)
        return rpc_pb2.MoveLeaderResponse(header=self._kv.header())


def _alarm_text(alarm: rpc_pb2.AlarmMember) -> str:
    """As etcd prints one."""
    return f"memberID:{alarm.memberID} alarm:{rpc_pb2.AlarmType.Name(alarm.alarm)} "
