"""Headers of responses: which cluster and member answered, in which term, at which revision.

Owns what the member says of itself in every response. Must not know requests, or how the state is come by.
"""

from __future__ import annotations

from typing import TypeVar

from controlplane.pb.etcd import rpc_pb2
from controlplane.raft.types import RaftHandle
from controlplane.store.store import Store

__all__ = ["Headers"]

_ResponseT = TypeVar(
    "_ResponseT",
    rpc_pb2.PutResponse,
    rpc_pb2.DeleteRangeResponse,
    rpc_pb2.TxnResponse,
    rpc_pb2.CompactionResponse,
    rpc_pb2.LeaseGrantResponse,
    rpc_pb2.LeaseRevokeResponse,
    rpc_pb2.AlarmResponse,
)


class Headers:
    """Of one replica."""

    def __init__(self, raft: RaftHandle, store: Store) -> None:
        self._raft = raft
        self._store = store
        #: Cluster and member id, which never change: looked up once, sent with every response.
        self._identity: tuple[int, int] | None = None

    def new(self, revision: int = 0) -> rpc_pb2.ResponseHeader:
        """A header for a response made now, at ``revision`` (0: the present one)."""
        header = rpc_pb2.ResponseHeader(revision=revision or self._store.revision)
        self.stamp(header)
        return header

    def stamped(self, response: _ResponseT) -> _ResponseT:
        """The response, its header complete."""
        self.stamp(response.header)
        return response

    def stamp(self, header: rpc_pb2.ResponseHeader) -> None:
        """Fill in all but the revision, which is the store's."""
        if self._identity is None:
            status = self._raft.status()
            self._identity = (status.cluster_id, status.member_id)
        header.cluster_id, header.member_id = self._identity
        header.raft_term = self._raft.term
