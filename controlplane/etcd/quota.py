"""The quota: how big the state may become before writes that add to it are refused.

Owns the arithmetic. As in etcd the quota is asked before a write is proposed, against the state as applied here, so a
state may exceed it by what is in flight. The first refusal raises NOSPACE in the log, from when on every replica
refuses alike, until an operator has made room (delete, compact) and cleared the alarm.

Source: etcd server/storage/quota.go.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from controlplane.base.limits import MIB
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command

__all__ = ["QUOTA_BYTES_DEFAULT", "Quota"]

#: etcd's default for --quota-backend-bytes.
QUOTA_BYTES_DEFAULT: Final = 2 * 1024 * MIB

#: What a version costs beside its key and value, and what a lease costs: the store's own figures, rounded up.
_VERSION_BYTES: Final = 512
_LEASE_BYTES: Final = 512


class Quota:
    """``limit_bytes`` of state; 0 is no limit."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes

    def lacks(self, command: Command, size_bytes: int) -> bool:
        """Whether a state of ``size_bytes`` has no room for this command. What adds nothing always has room."""
        if not self.limit_bytes:
            return False
        cost = _cost(command)
        return cost > 0 and size_bytes + cost >= self.limit_bytes


def _cost(command: Command) -> int:
    """Bytes that the command may add, at most."""
    match command.WhichOneof("op"):
        case "put":
            return _put_cost(command.put)
        case "txn":
            return _txn_cost(command.txn)
        case "lease_grant":
            return _LEASE_BYTES
    return 0


def _put_cost(request: e.PutRequest) -> int:
    return _VERSION_BYTES + len(request.key) + len(request.value)


def _txn_cost(request: e.TxnRequest) -> int:
    return max(_branch_cost(request.success), _branch_cost(request.failure))


def _branch_cost(ops: Iterable[e.RequestOp]) -> int:
    cost = 0
    for op in ops:
        if op.HasField("request_put"):
            cost += _put_cost(op.request_put)
        elif op.HasField("request_txn"):
            cost += _txn_cost(op.request_txn)
    return cost
