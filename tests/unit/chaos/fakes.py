"""A store in memory that speaks as the clients do, and a clock that jumps to whatever is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from controlplane.base.clock import ManualClock
from controlplane.base.errors import Code
from controlplane.base.rand import SeededRand
from controlplane.client import UnavailableError
from controlplane.client import etcd_client as etcd
from controlplane.client.endpoints import EndpointPool
from controlplane.pb.etcd import kv_pb2, rpc_pb2

ENDPOINTS = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]


class JumpingClock(ManualClock):
    """A sleep takes no time and moves the clock."""

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)


class FakeKeyValue:
    """Applies writes in memory. ``answer`` may replace a write's outcome after it was applied, or by raising
    UnavailableError fail a read."""

    def __init__(self) -> None:
        self.pool = EndpointPool(ENDPOINTS, rand=SeededRand(1), first=ENDPOINTS[0])
        self.kvs: dict[bytes, kv_pb2.KeyValue] = {}
        self.revision = 5
        self.next_outcome: etcd.Outcome[rpc_pb2.PutResponse] | None = None
        self.fail_reads = False
        self.on_put: Callable[[], None] = lambda: None

    async def put(self, key: bytes, value: bytes) -> etcd.Outcome[rpc_pb2.PutResponse]:
        self.on_put()
        outcome, self.next_outcome = self.next_outcome, None
        if isinstance(outcome, etcd.Failed):
            return outcome
        self.revision += 1
        self.kvs[key] = kv_pb2.KeyValue(
            key=key, value=value, create_revision=self.revision, mod_revision=self.revision, version=1
        )
        return outcome or etcd.Acknowledged(self.revision, rpc_pb2.PutResponse(), self.pool.current)

    async def range(self, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
        if self.fail_reads:
            raise UnavailableError(Code.UNAVAILABLE, "nobody there")
        header = rpc_pb2.ResponseHeader(revision=self.revision)
        end = request.range_end or request.key + b"\0"
        found = [kv for key, kv in sorted(self.kvs.items()) if request.key <= key and (end == b"\0" or key < end)]
        if request.revision:
            found = [kv for kv in found if kv.mod_revision <= request.revision]
        shown = found[: request.limit] if request.limit else found
        return rpc_pb2.RangeResponse(header=header, kvs=shown, more=len(shown) < len(found), count=len(found))
