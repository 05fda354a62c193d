"""Taking charge: how the leader of a term makes the writes of every earlier one harmless.

Owns the write of the leader key. Must not know how leadership is won or what is done with it.

Invariant: a write of an earlier term's leader never replaces the key of a later one. The write of a deposed leader may
still be on its way when the next one takes charge (whoever holds a write sends it again to the new leader), so it
compares the key with what its sender read: once a later leader has written, it has no effect.
"""

from __future__ import annotations

import logging
from typing import Final

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.client.fenced import LEADER_KEY
from controlplane.pb.etcd import rpc_pb2
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.store.kv import KVStore

__all__ = ["WAITED_OUT", "take_charge"]

_log = logging.getLogger("quarterdeck.charge")

#: Refusals that a leader waits out: out of reach; no space, an operator is making room (RESOURCE_EXHAUSTED); declared
#: corrupt by a client, an operator will clear it (DATA_LOSS).
WAITED_OUT: Final = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.DATA_LOSS})
_RETRY_S: Final = 0.05


async def take_charge(kv: KVStore, *, name: str, term: int, clock: Clock) -> api_pb2.Fence:
    """Write the leader key as the leader of ``term``; its mod revision fences every write of this reign.

    Tries for as long as it is let: cancel it when the term is lost.

    Raises:
        StatusError: the store refuses for another reason than being out of reach.
    """
    value = f"{name} {term}".encode()
    while True:
        try:
            fence = await _try(kv, value)
        except StatusError as error:
            if error.code not in WAITED_OUT:
                raise
            _log.warning("event=take-charge-failed term=%d reason=%s", term, error.message)
        else:
            if fence is not None:
                return fence
        await clock.sleep(_RETRY_S)


async def _try(kv: KVStore, value: bytes) -> api_pb2.Fence | None:
    """One attempt; None when another write of the key came between."""
    read = await kv.range(rpc_pb2.RangeRequest(key=LEADER_KEY))
    found = read.kvs[0].mod_revision if read.kvs else 0
    if read.kvs and read.kvs[0].value == value:
        return api_pb2.Fence(key=LEADER_KEY, mod_revision=found)  # an earlier attempt, of which no answer came
    written = await kv.txn(
        rpc_pb2.TxnRequest(
            compare=[
                rpc_pb2.Compare(
                    key=LEADER_KEY,
                    target=rpc_pb2.Compare.CompareTarget.MOD,
                    result=rpc_pb2.Compare.CompareResult.EQUAL,
                    mod_revision=found,
                )
            ],
            success=[rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=LEADER_KEY, value=value))],
        )
    )
    return api_pb2.Fence(key=LEADER_KEY, mod_revision=written.header.revision) if written.succeeded else None
