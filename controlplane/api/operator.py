"""``quarterdeck.v1.Operator``: how this replica is, a snapshot of everything, and one cut now, for operators and tools.

Owns the translation of Raft's and the store's own words into the messages; decides nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError, StorageError
from controlplane.base.version import version
from controlplane.etcd.restoring import LiveRestore
from controlplane.pb.quarterdeck.internal.v1 import command_pb2
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader
from controlplane.pb.quarterdeck.v1 import operator_pb2, operator_pb2_grpc
from controlplane.raft.types import RaftHandle
from controlplane.store.store import Store
from controlplane.transport.callers import caller_of

__all__ = ["OperatorService"]

_CHUNK_BYTES = 256 * 1024
_BARRIER_TIMEOUT_MS = 5_000


class OperatorService(operator_pb2_grpc.OperatorServicer):
    """Serves the operator API of one replica."""

    def __init__(self, raft: RaftHandle, store: Store, clock: Clock, restoring: LiveRestore | None = None) -> None:
        self._raft = raft
        self._restoring = restoring
        self._store = store
        self._clock = clock
        self._started_s = clock.monotonic()

    async def Status(  # noqa: N802 - grpc's name; its types want both styles at once
        self, request: operator_pb2.StatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> operator_pb2.StatusResponse:
        """This replica as it is now; answered without asking anybody else, so also without a quorum."""
        raft, store = self._raft.status(), self._store
        return operator_pb2.StatusResponse(
            name=raft.name,
            member_id=raft.member_id,
            cluster_id=raft.cluster_id,
            role=raft.role,
            leader=raft.leader or "",
            term=raft.term,
            commit_index=raft.commit_index,
            applied_index=raft.applied_index,
            revision=store.revision,
            compact_revision=store.compact_revision,
            members=[
                operator_pb2.MemberStatus(
                    name=member.name,
                    id=member.id,
                    peer_address=member.peer_address,
                    client_endpoint=member.client_endpoint,
                    metrics_endpoint=member.metrics_endpoint,
                )
                for member in raft.members
            ],
            ready=raft.ready and raft.leader is not None,
            keys=store.key_count,
            size_bytes=store.size_bytes,
            version=version(),
            pid=os.getpid(),
            state_hash=store.state_hash(),
            uptime_seconds=self._clock.monotonic() - self._started_s,
            torn_bytes=raft.torn_bytes,
        )

    async def Snapshot(  # noqa: N802 - as above
        self, request: operator_pb2.SnapshotRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[operator_pb2.SnapshotChunk]:
        """A snapshot file's bytes. A read barrier first: everything acknowledged before the call is in it.

        Raises:
            StatusError: UNAVAILABLE without a quorum; the caller asks another replica.
        """
        await self._raft.read_barrier(timeout_ms=_BARRIER_TIMEOUT_MS)
        revision = self._store.revision
        async for data in self._raft.snapshot_file():
            for start in range(0, len(data), _CHUNK_BYTES):
                yield operator_pb2.SnapshotChunk(data=data[start : start + _CHUNK_BYTES], revision=revision)
                revision = 0

    async def Restore(  # noqa: N802 - as above
        self, request: operator_pb2.RestoreRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> operator_pb2.RestoreResponse:
        """One step. Administrators only (the certificate, see ``transport.authorization``); where the etcd API asks who
        one is, nobody without such a certificate.

        Raises:
            StatusError: as :class:`LiveRestore` does; PermissionDenied; InvalidArgument, no step.
        """
        restoring, restore_id = self._restoring, request.id
        if restoring is None:
            raise StatusError(Code.UNIMPLEMENTED, "this replica cannot restore into a running cluster")
        self._check_administrator(context, "a restore")
        absent: list[str] = []
        match request.WhichOneof("step"):
            case "begin":
                opened = await restoring.begin(_begin_of(request), state_bytes=request.begin.state_bytes)
                progress, absent = opened.progress, list(opened.absent)
            case "chunk":
                progress = await restoring.chunk(restore_id, request.chunk.number, request.chunk.records)
            case "commit":
                progress = await restoring.commit(restore_id, request.commit.digest)
            case "abort":
                progress = await restoring.abort(restore_id)
            case _:
                raise StatusError(Code.INVALID_ARGUMENT, "a restore has the steps begin, chunk, commit and abort")
        return operator_pb2.RestoreResponse(
            next=progress.next,
            digest=progress.digest,
            revision=progress.header.revision,
            keys=progress.staged_keys,
            absent=absent,
        )

    async def CutSnapshot(  # noqa: N802 - as above
        self, request: operator_pb2.CutSnapshotRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> operator_pb2.CutSnapshotResponse:
        """A snapshot of this replica's own, saved in its data directory now, and the log behind it dropped. For whom
        Restore is.

        Raises:
            StatusError: ResourceExhausted or Internal, the disk refused it; PermissionDenied.
        """
        self._check_administrator(context, "cutting a snapshot")
        try:
            cut = await self._raft.cut_snapshot()
        except StorageError as error:
            code = Code.RESOURCE_EXHAUSTED if error.errno == errno.ENOSPC else Code.INTERNAL
            raise StatusError(code, f"the snapshot was not saved: {error}") from error
        return operator_pb2.CutSnapshotResponse(
            name=self._raft.status().name,
            index=cut.index,
            term=cut.term,
            revision=cut.revision,
            size_bytes=cut.size_bytes,
            log_first_index=cut.log_first_index,
        )

    def _check_administrator(self, context: Any, what: str) -> None:
        identity = caller_of(context)
        if self._store.auth.enabled and (identity is None or not identity.is_admin):
            raise StatusError(
                Code.PERMISSION_DENIED, f"authentication is on: {what} needs an administrator's certificate"
            )


def _begin_of(request: operator_pb2.RestoreRequest) -> command_pb2.RestoreBegin:
    begin = request.begin
    try:
        header = SnapshotHeader.FromString(begin.header)
    except DecodeError as error:
        raise StatusError(Code.INVALID_ARGUMENT, "the snapshot's header does not decode") from error
    return command_pb2.RestoreBegin(
        id=request.id, snapshot=header, file_sha256=begin.file_sha256, total_bytes=begin.total_bytes, force=begin.force
    )
