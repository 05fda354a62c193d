"""Drives a Store the way a committed log does: one proposal per entry unless said otherwise."""

from __future__ import annotations

from controlplane.base.errors import Code
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, LeaseExpire, Proposal, Rejection, Reply
from controlplane.store.store import Store

__all__ = ["Driver", "expect_rejection", "put_op", "range_op"]


def put_op(key: bytes, value: bytes = b"", lease: int = 0) -> e.RequestOp:
    return e.RequestOp(request_put=e.PutRequest(key=key, value=value, lease=lease))


def range_op(key: bytes, range_end: bytes = b"", revision: int = 0) -> e.RequestOp:
    return e.RequestOp(request_range=e.RangeRequest(key=key, range_end=range_end, revision=revision))


def delete_op(key: bytes, range_end: bytes = b"") -> e.RequestOp:
    return e.RequestOp(request_delete_range=e.DeleteRangeRequest(key=key, range_end=range_end))


class Driver:
    """A store and the index of its log."""

    def __init__(self, store: Store | None = None, term: int = 1) -> None:
        self.store = store or Store()
        self.index = self.store.applied_index
        self.term = term
        self.proposals: list[Proposal] = []  # all that was proposed, to be applied elsewhere

    def propose(self, proposal: Proposal) -> Reply:
        self.index += 1
        self.proposals.append(proposal)
        (reply,) = self.store.apply(self.index, self.term, [proposal])
        return Reply.FromString(reply)

    def run(self, command: Command) -> Reply:
        self.store.check(command)
        return self.apply(command)

    def apply(self, command: Command) -> Reply:
        """Past the proposer's checks, as a proposer with a defect would."""
        proposal = Proposal(
            request_id=b"id-%013d" % (self.index + 1), born_index=self.index, payload=command.SerializeToString()
        )
        return self.propose(proposal)

    def put(self, key: bytes, value: bytes = b"", lease: int = 0) -> int:
        reply = self.run(Command(put=e.PutRequest(key=key, value=value, lease=lease)))
        assert reply.WhichOneof("result") == "put", reply
        return reply.put.header.revision

    def delete(self, key: bytes, range_end: bytes = b"", *, prev_kv: bool = False) -> e.DeleteRangeResponse:
        request = e.DeleteRangeRequest(key=key, range_end=range_end, prev_kv=prev_kv)
        return self.run(Command(delete_range=request)).delete_range

    def txn(self, request: e.TxnRequest) -> e.TxnResponse:
        reply = self.run(Command(txn=request))
        assert reply.WhichOneof("result") == "txn", reply
        return reply.txn

    def compact(self, revision: int) -> Reply:
        return self.run(Command(compact=e.CompactionRequest(revision=revision)))

    def grant(self, id: int, ttl_s: int = 60) -> Reply:
        return self.run(Command(lease_grant=e.LeaseGrantRequest(ID=id, TTL=ttl_s)))

    def revoke(self, id: int) -> Reply:
        return self.run(Command(lease_revoke=e.LeaseRevokeRequest(ID=id)))

    def checkpoint(self, id: int, remaining_ttl_s: int) -> Reply:
        point = e.LeaseCheckpoint(ID=id, remaining_TTL=remaining_ttl_s)
        return self.run(Command(lease_checkpoint=e.LeaseCheckpointRequest(checkpoints=[point])))

    def expire(self, id: int, term: int) -> Reply:
        return self.run(Command(lease_expire=LeaseExpire(id=id, term=term)))

    def get(self, key: bytes, revision: int = 0) -> tuple[bytes, int, int, int] | None:
        """(value, create revision, mod revision, version)."""
        kvs = self.store.range(e.RangeRequest(key=key, revision=revision)).kvs
        return (kvs[0].value, kvs[0].create_revision, kvs[0].mod_revision, kvs[0].version) if kvs else None

    def snapshot(self) -> bytes:
        return b"".join(self.store.snapshot())


def expect_rejection(reply: Reply, code: Code, message: str) -> Rejection:
    assert reply.WhichOneof("result") == "rejection", reply
    assert (reply.rejection.code, reply.rejection.message) == (code, message)
    return reply.rejection
