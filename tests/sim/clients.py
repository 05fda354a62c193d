"""Clients of the simulated cluster: one operation at a time each, through any replica, retried under the same id.

Owns what a client knows: it never learns more than a real one would. A replica that dies takes its answers along.
"""

from __future__ import annotations

from controlplane.base.errors import StatusError
from controlplane.base.rand import SeededRand
from controlplane.pb.etcd.rpc_pb2 import Compare, PutRequest, RangeRequest, RequestOp, TxnRequest
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command
from controlplane.raft.types import Applied, Outcome
from tests.sim.checks import Checks, Operation
from tests.sim.node import Breakage, SimNode
from tests.sim.scheduler import Scheduler

__all__ = ["Client"]

_TIMEOUT_S = 1.0
_TRIES_MAX = 30


def _command(operation: Operation) -> bytes:
    put = PutRequest(key=operation.key, value=operation.value or b"")
    if operation.expected is None:
        return Command(put=put).SerializeToString()
    compare = Compare(
        key=operation.key,
        target=Compare.CompareTarget.MOD,
        result=Compare.CompareResult.EQUAL,
        mod_revision=operation.expected,
    )
    return Command(txn=TxnRequest(compare=[compare], success=[RequestOp(request_put=put)])).SerializeToString()


class Client:
    """Reads and writes a few keys until told to stop."""

    def __init__(
        self,
        number: int,
        scheduler: Scheduler,
        nodes: list[SimNode],
        checks: Checks,
        breakage: Breakage,
        *,
        think_s: float,
        extra: SeededRand,
    ) -> None:
        self._number = number
        self._s = scheduler
        self._nodes = nodes
        self._checks = checks
        self._breakage = breakage
        self._think_s = think_s
        self._count = 0
        self._attempt = 0
        self._seen: dict[bytes, int] = {}
        # Draws of its own, so that the runs of seeds that are kept stay as they were.
        self._extra = extra
        self.stopped = False
        self.busy = False
        self.gave_up = 0
        self._s.after(self._s.between(0.2, 1.0), self._next)

    def _next(self) -> None:
        if self.stopped:
            return
        self._count += 1
        key = f"k{self._s.rand.randint(0, 4)}".encode()
        write = self._s.chance(0.6)
        value = f"c{self._number}-{self._count}".encode()
        if write and self._s.chance(0.05):
            value += b"." * self._s.rand.randint(1_000, 60_000)
        operation = Operation(self._number, self._s.rand.token(16), key, value if write else None, self._s.now, 0)
        if write and self._extra.random() < 0.3:
            # Mostly on what was last seen of the key, so that some succeed and some come too late.
            operation.expected = self._seen.get(key, 0)
        self._checks.begins(operation)
        self.busy = True
        self._try(operation)

    def _try(self, operation: Operation) -> None:
        operation.tries += 1
        if operation.tries > _TRIES_MAX:
            self.gave_up += 1
            self._end()
            return
        self._attempt += 1
        attempt = self._attempt
        node = self._s.pick(self._nodes)
        self._s.after(self._s.between(0.0001, 0.002), lambda: self._ask(operation, node, attempt))
        self._s.after(_TIMEOUT_S + 0.5, lambda: self._give_up_attempt(operation, attempt))

    def _give_up_attempt(self, operation: Operation, attempt: int) -> None:
        if self._attempt == attempt and self.busy:
            self._try(operation)

    def _ask(self, operation: Operation, node: SimNode, attempt: int) -> None:
        if self._attempt != attempt:
            return
        if not node.alive:
            self._s.after(0.02, lambda: self._again(operation, attempt))
            return
        deadline = node.monotonic() + _TIMEOUT_S
        boot = node.boot
        if operation.value is not None:
            command = _command(operation)

            def written(outcome: Outcome) -> None:
                self._s.after(self._s.between(0.0001, 0.002), lambda: self._on_written(operation, outcome, attempt))

            node.core.propose(command, request_id=operation.id, deadline=deadline, done=written)
        elif self._breakage.read_locally:
            self._serve_read(operation, node, boot, attempt)
        else:

            def readable(result: int | StatusError) -> None:
                if isinstance(result, StatusError):
                    self._s.after(0.005, lambda: self._again(operation, attempt))
                else:
                    self._serve_read(operation, node, boot, attempt)

            node.core.read(deadline=deadline, done=readable)
        node.kick()

    def _serve_read(self, operation: Operation, node: SimNode, boot: int, attempt: int) -> None:
        assert node.boot == boot
        answer = node.machine.store.range(RangeRequest(key=operation.key))
        kvs, revision = list(answer.kvs), node.machine.store.revision

        def arrived() -> None:
            if self._attempt == attempt and self.busy:
                self._checks.read_answered(operation, kvs, revision)
                self._seen[operation.key] = kvs[0].mod_revision if kvs else 0
                self._s.note("read", self._number, revision)
                self._end()

        self._s.after(self._s.between(0.0001, 0.002), arrived)

    def _on_written(self, operation: Operation, outcome: Outcome, attempt: int) -> None:
        if self._attempt != attempt or not self.busy:
            return
        if isinstance(outcome, Applied):
            self._checks.write_acked(operation, outcome.reply)
            if operation.revision:
                self._seen[operation.key] = operation.revision
            self._s.note("acked", self._number, operation.revision)
            self._end()
        else:
            self._again(operation, attempt)

    def _again(self, operation: Operation, attempt: int) -> None:
        if self._attempt == attempt and self.busy:
            self._try(operation)

    def _end(self) -> None:
        self.busy = False
        self._attempt += 1
        self._s.after(self._s.between(0, self._think_s), self._next)
