"""Operations on shared keys, as requests to etcd's API and as records: one function for each kind.

Owns the translation between the two, so that what is recorded is what was asked and answered. Knows nothing of pace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

from chaos.records import Compare, Op, Seen, Step
from chaos.workload.pace import Process
from controlplane.client import ApiError
from controlplane.client import etcd_client as etcd
from controlplane.client.endpoints import EndpointPool
from controlplane.pb.etcd import kv_pb2, rpc_pb2

__all__ = ["Keys", "SharedKeyValue"]

_TARGETS: Final = {
    "value": rpc_pb2.Compare.VALUE,
    "create": rpc_pb2.Compare.CREATE,
    "mod": rpc_pb2.Compare.MOD,
    "version": rpc_pb2.Compare.VERSION,
}


class SharedKeyValue(Protocol):
    """What is needed of an :class:`~controlplane.client.EtcdClient`."""

    pool: EndpointPool

    async def put(self, key: bytes, value: bytes, *, lease: int = 0) -> etcd.Outcome[rpc_pb2.PutResponse]: ...

    async def delete(self, key: bytes) -> etcd.Outcome[rpc_pb2.DeleteRangeResponse]: ...

    async def txn(self, request: rpc_pb2.TxnRequest) -> etcd.Outcome[rpc_pb2.TxnResponse]: ...

    async def range(self, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse: ...


class Keys:
    """The operations of one process, recorded."""

    def __init__(self, part: str, client: SharedKeyValue, process: Process) -> None:
        self.part = part
        self.client = client
        self.process = process

    async def put(self, key: str, value: str, *, lease: int = 0) -> Op:
        """Set a key, perhaps with a lease."""
        op = self._op("put", key, value=value, lease=lease)
        return await self._write(op, lambda: self.client.put(key.encode(), value.encode(), lease=lease))

    async def delete(self, key: str) -> Op:
        """Delete a key."""
        return await self._write(self._op("delete", key), lambda: self.client.delete(key.encode()))

    async def txn(self, compares: Sequence[Compare], then: Sequence[Step], otherwise: Sequence[Step] = ()) -> Op:
        """Compare, then one branch or the other. A put step may name a lease as its fourth item, in decimal."""
        key = compares[0][0] if compares else then[0][1]
        request = rpc_pb2.TxnRequest(
            compare=[_compare(compare) for compare in compares],
            success=[_request(step) for step in then],
            failure=[_request(step) for step in otherwise],
        )
        op = self._op("txn", key, compares=tuple(compares), then=tuple(then), otherwise=tuple(otherwise))
        return await self._write(op, lambda: self.client.txn(request))

    async def get(self, key: str, *, serializable: bool = False) -> Op:
        """Read a key; linearizably, or whatever the replica has."""
        request = rpc_pb2.RangeRequest(key=key.encode(), serializable=serializable)
        asked = self._op("get", key, serializable=serializable)

        async def call() -> rpc_pb2.RangeResponse | ApiError:
            try:
                return await self.client.range(request)
            except ApiError as error:
                return error

        def done(op_id: int, call_ns: int, return_ns: int, result: rpc_pb2.RangeResponse | ApiError) -> Op:
            op = replace(
                asked, id=op_id, call_ns=call_ns, return_ns=return_ns, endpoint=self.client.pool.current
            )  # fmt: skip
            if isinstance(result, ApiError):
                return replace(op, outcome="fail", error=f"{result.code.name}: {result.message}")
            kv = result.kvs[0] if result.kvs else None
            return replace(
                op, **_header(result.header),
                value=kv.value.decode() if kv else None,
                create_revision=kv.create_revision if kv else 0,
                mod_revision=kv.mod_revision if kv else 0,
                version=kv.version if kv else 0,
            )  # fmt: skip

        return await self.process.recorded(call, done)

    def _op(self, kind: Any, key: str, **more: Any) -> Op:
        return Op(0, self.process.name, kind, self.client.pool.current, key, 0, 0, "ok", part=self.part, **more)

    async def _write(self, asked: Op, call: Any) -> Op:
        def done(op_id: int, call_ns: int, return_ns: int, result: etcd.Outcome[Any]) -> Op:
            op = replace(asked, id=op_id, call_ns=call_ns, return_ns=return_ns, endpoint=result.endpoint)
            if isinstance(result, etcd.Failed):
                return replace(op, outcome="fail", error=f"{result.code.name}: {result.message}")
            if isinstance(result, etcd.Unknown):
                return replace(op, outcome="info", error=result.reason)
            return _answered(op, result.response)

        return await self.process.recorded(call, done, replace(asked, outcome="info"))


def _answered(op: Op, response: Any) -> Op:
    op = replace(op, **_header(response.header))
    if op.kind == "delete":
        return replace(op, succeeded=response.deleted > 0)
    if op.kind == "txn":
        results = tuple(_seen(one.response_range.kvs) for one in response.responses)
        return replace(op, succeeded=response.succeeded, results=results)
    return op


def _header(header: rpc_pb2.ResponseHeader) -> dict[str, Any]:
    return {"revision": header.revision, "member": f"{header.member_id:x}", "term": header.raft_term}


def _seen(kvs: Sequence[kv_pb2.KeyValue]) -> Seen | None:
    if not kvs:
        return None
    kv = kvs[0]
    return kv.value.decode(), kv.create_revision, kv.mod_revision, kv.version


def _compare(compare: Compare) -> rpc_pb2.Compare:
    key, what, wanted = compare
    found = rpc_pb2.Compare(result=rpc_pb2.Compare.EQUAL, target=_TARGETS[what], key=key.encode())
    if what == "value":
        found.value = str(wanted).encode()
    elif what == "create":
        found.create_revision = int(wanted)
    elif what == "mod":
        found.mod_revision = int(wanted)
    else:
        found.version = int(wanted)
    return found


def _request(step: Step) -> rpc_pb2.RequestOp:
    key = step[1].encode()
    if step[0] == "put":
        lease = int(step[3]) if len(step) > 3 else 0
        return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=step[2].encode(), lease=lease))
    if step[0] == "delete":
        return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key))
    return rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key))
