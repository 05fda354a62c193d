"""Which node has which pod addresses: one /24 of the cluster's range per node, claimed by transaction.

Owns the keys ``/quarterdeck/podcidrs/<cidr>`` (value: the node's name). A claim is never given up on its own, so a
node that comes back has its addresses still; when the range is used up, claims of nodes that no longer exist are
taken over. Two replicas may allocate at the same time: the transaction decides.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Final

from controlplane.api.errors import ApiError
from controlplane.base.errors import Code
from controlplane.pb.etcd import kv_pb2, rpc_pb2
from controlplane.store.kv import KVStore

__all__ = ["PODCIDR_PREFIX", "PodCIDRs"]

PODCIDR_PREFIX: Final = "/quarterdeck/podcidrs/"
_NODE_PREFIX_LEN: Final = 24

#: Whether a node of that name still exists.
NodeExists = Callable[[str], Awaitable[bool]]


class PodCIDRs:
    """Allocates a /24 per node out of ``cluster_cidr``."""

    def __init__(self, kv: KVStore, cluster_cidr: str) -> None:
        self._kv = kv
        self._network = ipaddress.IPv4Network(cluster_cidr)

    async def claim(self, node: str, exists: NodeExists) -> str:
        """The node's own range, claimed now if it has none.

        Raises:
            ApiError: RESOURCE_EXHAUSTED when every range belongs to a node that exists.
            StatusError: the store could not be asked; calling again is safe.
        """
        while True:
            held = await self._held()
            for cidr, entry in held.items():
                if entry.value.decode() == node:
                    return cidr
            free = next((c for c in self._ranges() if c not in held), None)
            if free is not None:
                if await self._take(free, node, mod_revision=0):
                    return free
                continue  # another replica was faster: look again
            taken = await self._take_over(node, held, exists)
            if taken is not None:
                return taken

    async def _take_over(self, node: str, held: dict[str, kv_pb2.KeyValue], exists: NodeExists) -> str | None:
        for cidr, entry in held.items():
            if not await exists(entry.value.decode()):
                return cidr if await self._take(cidr, node, mod_revision=entry.mod_revision) else None
        raise ApiError(
            Code.RESOURCE_EXHAUSTED,
            f"no pod range is left for node {node!r}: all {len(held)} /24 ranges of {self._network} belong to nodes; "
            "delete nodes that are gone, or start the cluster with a wider cluster range",
            reason="NoPodCIDR",
        )

    async def _held(self) -> dict[str, kv_pb2.KeyValue]:
        prefix = PODCIDR_PREFIX.encode()
        end = prefix[:-1] + bytes([prefix[-1] + 1])
        response = await self._kv.range(rpc_pb2.RangeRequest(key=prefix, range_end=end))
        return {kv.key.decode().removeprefix(PODCIDR_PREFIX): kv for kv in response.kvs}

    async def _take(self, cidr: str, node: str, *, mod_revision: int) -> bool:
        key = (PODCIDR_PREFIX + cidr).encode()
        compare = rpc_pb2.Compare(
            key=key, target=rpc_pb2.Compare.MOD, result=rpc_pb2.Compare.EQUAL, mod_revision=mod_revision
        )
        put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=node.encode()))
        response = await self._kv.txn(rpc_pb2.TxnRequest(compare=[compare], success=[put]))
        return response.succeeded

    def _ranges(self) -> list[str]:
        if self._network.prefixlen >= _NODE_PREFIX_LEN:
            return [str(self._network)]
        # The first is left out: addresses such as 127.128.0.1 are too easily taken for something else's.
        return [str(n) for n in self._network.subnets(new_prefix=_NODE_PREFIX_LEN)][1:]
