"""An etcd in memory for clients of shared keys: keys, transactions and leases, one operation at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controlplane.base.errors import Code
from controlplane.base.rand import SeededRand
from controlplane.client import UnavailableError
from controlplane.client import etcd_client as etcd
from controlplane.client.endpoints import EndpointPool
from controlplane.pb.etcd import kv_pb2, rpc_pb2
from tests.unit.chaos.fakes import ENDPOINTS


class FakeEtcd:
    """``next_outcome`` replaces the answer of the next write, which is applied unless it failed."""

    def __init__(self) -> None:
        self.pool = EndpointPool(ENDPOINTS, rand=SeededRand(1), first=ENDPOINTS[0])
        self.kvs: dict[bytes, kv_pb2.KeyValue] = {}
        self.leases: set[int] = set()
        self.revision = 5
        self.next_outcome: etcd.Failed | etcd.Unknown | None = None
        self.fail_reads = False
        self.on_revision: Callable[[], None] = lambda: None

    async def put(self, key: bytes, value: bytes, *, lease: int = 0) -> etcd.Outcome[Any]:
        return self._write(lambda: self._put(key, value, lease), rpc_pb2.PutResponse())

    async def delete(self, key: bytes) -> etcd.Outcome[Any]:
        response = rpc_pb2.DeleteRangeResponse()

        def apply() -> None:
            response.deleted = self._delete(key)

        return self._write(apply, response)

    async def txn(self, request: rpc_pb2.TxnRequest) -> etcd.Outcome[Any]:
        response = rpc_pb2.TxnResponse()

        def apply() -> None:
            response.succeeded = all(self._holds(compare) for compare in request.compare)
            for step in request.success if response.succeeded else request.failure:
                answer = response.responses.add()
                if step.HasField("request_put"):
                    answer.response_put.SetInParent()
                    self._put(step.request_put.key, step.request_put.value, step.request_put.lease)
                elif step.HasField("request_delete_range"):
                    answer.response_delete_range.deleted = self._delete(step.request_delete_range.key)
                else:
                    kv = self.kvs.get(step.request_range.key)
                    answer.response_range.SetInParent()
                    answer.response_range.kvs.extend([kv] if kv else [])

        return self._write(apply, response)

    async def range(self, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
        if self.fail_reads:
            raise UnavailableError(Code.UNAVAILABLE, "nobody there")
        kv = self.kvs.get(request.key)
        return rpc_pb2.RangeResponse(header=self._header(), kvs=[kv] if kv else [])

    async def lease_grant(self, lease: int, ttl_s: int) -> etcd.Outcome[Any]:
        return self._write(lambda: self.leases.add(lease), rpc_pb2.LeaseGrantResponse(ID=lease, TTL=ttl_s))

    async def lease_revoke(self, lease: int) -> etcd.Outcome[Any]:
        return self._write(lambda: self.expire(lease), rpc_pb2.LeaseRevokeResponse())

    async def lease_keep_alive(self, lease: int) -> rpc_pb2.LeaseKeepAliveResponse:
        if self.fail_reads:
            raise UnavailableError(Code.UNAVAILABLE, "nobody there")
        return rpc_pb2.LeaseKeepAliveResponse(header=self._header(), ID=lease, TTL=2 if lease in self.leases else 0)

    def expire(self, lease: int) -> None:
        """A lease ends, with its keys."""
        self.leases.discard(lease)
        mine = [key for key, kv in self.kvs.items() if kv.lease == lease]
        for key in mine:
            del self.kvs[key]
        self.revision += bool(mine)

    def _write(self, apply: Callable[[], Any], response: Any) -> etcd.Outcome[Any]:
        outcome, self.next_outcome = self.next_outcome, None
        if isinstance(outcome, etcd.Failed):
            return outcome
        before = self.revision
        self._open = before + 1
        apply()
        if outcome is not None:
            return outcome
        response.header.CopyFrom(self._header())
        return etcd.Acknowledged(self.revision, response, self.pool.current)

    def _put(self, key: bytes, value: bytes, lease: int) -> None:
        self.revision = self._open
        old = self.kvs.get(key)
        self.kvs[key] = kv_pb2.KeyValue(
            key=key, value=value, lease=lease, mod_revision=self.revision,
            create_revision=old.create_revision if old else self.revision, version=old.version + 1 if old else 1,
        )  # fmt: skip

    def _delete(self, key: bytes) -> int:
        if self.kvs.pop(key, None) is None:
            return 0
        self.revision = self._open
        return 1

    def _holds(self, compare: rpc_pb2.Compare) -> bool:
        kv = self.kvs.get(compare.key)
        if compare.target == rpc_pb2.Compare.VALUE:
            return kv is not None and kv.value == compare.value
        if compare.target == rpc_pb2.Compare.CREATE:
            return (kv.create_revision if kv else 0) == compare.create_revision
        if compare.target == rpc_pb2.Compare.MOD:
            return (kv.mod_revision if kv else 0) == compare.mod_revision
        return (kv.version if kv else 0) == compare.version

    def _header(self) -> rpc_pb2.ResponseHeader:
        return rpc_pb2.ResponseHeader(revision=self.revision, member_id=0xAB, raft_term=3)
