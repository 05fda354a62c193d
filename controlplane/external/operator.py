"""``quarterdeck.v1.Operator`` of a control-plane process whose state lives in an external etcd."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import grpc

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.base.version import version
from controlplane.external.cell import ExternalCell
from controlplane.pb.quarterdeck.v1 import operator_pb2, operator_pb2_grpc

__all__ = ["ExternalOperator"]


class ExternalOperator(operator_pb2_grpc.OperatorServicer):
    """What there is to say of such a process; what only its store can do is refused with the way to do it there."""

    def __init__(self, cell: ExternalCell, clock: Clock) -> None:
        self._cell = cell
        self._clock = clock
        self._started_s = clock.monotonic()

    async def Status(  # noqa: N802 - grpc's name; its types want both styles at once
        self, request: operator_pb2.StatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> operator_pb2.StatusResponse:
        """As it is now, without asking anybody; key counts and state hashes are etcd's to tell."""
        status, store = self._cell.status(), self._cell.store_members
        return operator_pb2.StatusResponse(
            name=status.name,
            member_id=status.member_id,
            cluster_id=status.cluster_id,
            role=status.role,
            leader=status.leader or "",
            term=status.term,
            commit_index=status.commit_index,
            applied_index=status.applied_index,
            revision=status.commit_index,
            members=[
                operator_pb2.MemberStatus(
                    name=member.name,
                    id=member.id,
                    client_endpoint=member.client_endpoint,
                    metrics_endpoint=member.metrics_endpoint,
                )
                for member in status.members
            ],
            ready=status.ready and status.leader is not None,
            size_bytes=max((member.size_bytes for member in store), default=0),
            version=version(),
            pid=os.getpid(),
            uptime_seconds=self._clock.monotonic() - self._started_s,
            store_members=store,
        )

    async def Snapshot(  # noqa: N802 - as above
        self, request: operator_pb2.SnapshotRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[operator_pb2.SnapshotChunk]:
        """Refused: the state is not here."""
        endpoints = ",".join(member.endpoint for member in self._cell.store_members)
        raise StatusError(
            Code.FAILED_PRECONDITION,
            "the state lives in an external etcd: take its snapshot there, with "
            f"etcdctl --endpoints {endpoints or 'HOST:PORT'} snapshot save FILE",
        )
        yield operator_pb2.SnapshotChunk()  # makes this a stream

    async def Restore(  # noqa: N802 - as above
        self, request: operator_pb2.RestoreRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> operator_pb2.RestoreResponse:
        """Refused: the state is not here. Raises: StatusError."""
        raise StatusError(
            Code.UNIMPLEMENTED, "the state lives in an etcd cluster: etcdctl snapshot restore there (qd local restore)"
        )

    async def CutSnapshot(  # noqa: N802 - as above
        self, request: operator_pb2.CutSnapshotRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> operator_pb2.CutSnapshotResponse:
        """Refused: the log is not here. Raises: StatusError."""
        raise StatusError(
            Code.UNIMPLEMENTED, "the state lives in an etcd cluster, which cuts its snapshots itself (--snapshot-count)"
        )
