"""Clients of the simulated cluster: one operation at a time each, through any replica, retried under the same id.

Owns what a client knows: it never learns more than a real one would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from chaos.records import History, Kind, Op, Outcome
from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import SeededRand
from controlplane.etcd.local import LocalKV
from controlplane.pb.etcd.kv_pb2 import KeyValue
from controlplane.pb.etcd.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from tests.sim.checks import Checks, Operation
from tests.sim.node import SimNode
from tests.sim.rpc import TIMEOUT_MS, Rpc

__all__ = ["Client", "Marker"]

_TRIES_MAX = 30
#: The second key of a swap, so that some revisions have more than one event.
_SHADOW = b"kz"


class Client:
    """Reads, writes, swaps and deletes a few keys until told to stop."""

    def __init__(
        self, number: int, rpc: Rpc, nodes: Sequence[SimNode], checks: Checks, rand: SeededRand, *, think_s: float
    ) -> None:
        self._number = number
        self._rpc = rpc
        self._nodes = nodes
        self._checks = checks
        self._rand = rand
        self._think_s = think_s
        self._count = 0
        self._seen: dict[bytes, tuple[int, bytes | None]] = {}
        self.busy = False
        self.stopped = False
        self.gave_up = 0

    async def run(self) -> None:
        """Until :attr:`stopped`."""
        await self._rpc.sleep(self._rand.random() * 0.3)
        while not self.stopped:
            self.busy = True
            await self._one(self._next())
            self.busy = False
            await self._rpc.sleep(self._rand.random() * self._think_s)

    def _next(self) -> Operation:
        rand = self._rand
        key = b"k%d" % rand.randint(0, 3)
        draw = rand.random()
        operation = Operation(self._number, rand.token(16), key, None, self._rpc.scheduler.now, 0)
        if draw < 0.6:
            self._count += 1
            operation.value = b"c%d.%d" % (self._number, self._count)
            if rand.random() < 0.05:
                operation.value += b" " * rand.randint(1_000, 20_000)
            if rand.random() < 0.3:
                # Mostly on what was last seen of the key, so that some succeed and some come too late.
                operation.expected, operation.believed = self._seen.get(key, (0, None))
        elif draw < 0.66:
            operation.deletes = True
        self._checks.begins(operation)
        return operation

    async def _one(self, operation: Operation) -> None:
        while operation.tries < _TRIES_MAX:
            operation.tries += 1
            node = self._nodes[self._rand.randint(0, len(self._nodes) - 1)]
            try:
                await self._ask(node, operation)
            except StatusError as error:
                if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED):
                    raise
                await self._rpc.sleep(0.005 + 0.03 * self._rand.random())
            else:
                return
        self.gave_up += 1

    async def _ask(self, node: SimNode, operation: Operation) -> None:
        rpc, checks, key = self._rpc, self._checks, operation.key
        s = rpc.scheduler
        if not operation.writes:
            answer = await rpc.call(node, lambda kv: kv.range(RangeRequest(key=key), timeout_ms=TIMEOUT_MS))
            checks.read_answered(operation, answer.kvs, answer.header.revision, s.now)
            self._seen[key] = (answer.kvs[0].mod_revision, answer.kvs[0].value) if answer.kvs else (0, None)
            s.note("read", self._number, answer.header.revision)
            return
        succeeded = True
        if operation.expected is not None:
            swap = await rpc.call(node, lambda kv: _txn(kv, operation))
            revision, succeeded = swap.header.revision, swap.succeeded
        elif operation.deletes:
            gone = await rpc.call(node, lambda kv: _delete(kv, operation))
            revision, operation.idle = gone.header.revision, not gone.deleted
        else:
            revision = (await rpc.call(node, lambda kv: _put(kv, operation))).header.revision
        checks.write_acked(operation, revision, succeeded=succeeded, now=s.now)
        if succeeded and not operation.deletes:
            self._seen[key] = (revision, operation.value)
        s.note("acked", self._number, revision)


async def _put(kv: LocalKV, operation: Operation) -> PutResponse:
    put = PutRequest(key=operation.key, value=operation.value or b"")
    return await kv.put(put, request_id=operation.id, timeout_ms=TIMEOUT_MS)


async def _txn(kv: LocalKV, operation: Operation) -> TxnResponse:
    return await kv.txn(_swap(operation), request_id=operation.id, timeout_ms=TIMEOUT_MS)


async def _delete(kv: LocalKV, operation: Operation) -> DeleteRangeResponse:
    request = DeleteRangeRequest(key=operation.key)
    return await kv.delete_range(request, request_id=operation.id, timeout_ms=TIMEOUT_MS)


def _swap(operation: Operation) -> TxnRequest:
    compare = Compare(
        key=operation.key,
        target=Compare.CompareTarget.MOD,
        result=Compare.CompareResult.EQUAL,
        mod_revision=operation.expected or 0,
    )
    puts = [PutRequest(key=key, value=operation.value or b"") for key in (operation.key, _SHADOW)]
    return TxnRequest(compare=[compare], success=[RequestOp(request_put=put) for put in puts])


class Marker:
    """Writes keys that nobody has written before, reads them back, and records both as load on real clusters does."""

    def __init__(self, rpc: Rpc, nodes: Sequence[SimNode], history: History, rand: SeededRand) -> None:
        self._rpc = rpc
        self._nodes = nodes
        self._history = history
        self._rand = rand
        self._process = 0
        self.stopped = False

    async def run(self) -> None:
        """Until :attr:`stopped`."""
        count = 0
        while not self.stopped:
            count += 1
            await self._put(count)
            await self._get(1 + self._rand.randint(0, count - 1))
            await self._rpc.sleep(0.15 * self._rand.random())

    async def _put(self, number: int) -> None:
        key, value, request_id = f"m/{number}", f"mark {number}", self._rand.token(16)
        put = PutRequest(key=key.encode(), value=value.encode())
        node, called = self._node(), self._now()
        revision, outcome = 0, "info"
        try:
            answer = await self._rpc.call(node, lambda kv: kv.put(put, request_id=request_id, timeout_ms=TIMEOUT_MS))
            revision, outcome = answer.header.revision, "ok"
        except StatusError as error:
            outcome = "info" if error.unknown_outcome else "fail"
        self._note("put", node, key, called, outcome, value=value, revision=revision)

    async def _get(self, number: int) -> None:
        key = f"m/{number}"
        request = RangeRequest(key=key.encode())
        node, called = self._node(), self._now()
        try:
            answer = await self._rpc.call(node, lambda kv: kv.range(request, timeout_ms=TIMEOUT_MS))
        except StatusError:
            return
        found = answer.kvs[0] if answer.kvs else KeyValue()
        value = found.value.decode() if answer.kvs else None
        shown = {"mod_revision": found.mod_revision, "version": found.version}
        self._note("get", node, key, called, "ok", value=value, revision=answer.header.revision, **shown)

    def _note(self, kind: Kind, node: SimNode, key: str, called: int, outcome: str, **seen: Any) -> None:
        number = len(self._history.ops) + 1
        op = Op(number, f"p{self._process}", kind, node.name, key, called, self._now(), cast(Outcome, outcome), **seen)
        self._history.ops.append(op)
        self._process += outcome == "info"

    def _node(self) -> SimNode:
        return self._nodes[self._rand.randint(0, len(self._nodes) - 1)]

    def _now(self) -> int:
        return int(self._rpc.scheduler.now * 1e9)
