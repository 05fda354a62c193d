"""Second opinions on what the clients of a run saw, by checkers that the simulator does not share.

Owns the translation of a run into their terms: per key a short register history for the search (``chaos.wgl``), which
trusts no revision, and a whole history for the rules that judge runs of real processes (``chaos.checkers``).
"""

from __future__ import annotations

from collections.abc import Iterable

from chaos.checkers import check_all
from chaos.findings import Verdict
from chaos.records import Event, Header, History, Listing, Row
from chaos.wgl import Answer, RegisterOp, linearizable
from controlplane.pb.etcd.kv_pb2 import Event as EtcdEvent
from controlplane.pb.etcd.rpc_pb2 import RangeRequest
from controlplane.store.keyspan import prefix_end
from controlplane.store.store import Store
from tests.sim.checks import Operation
from tests.sim.violation import ViolationError

__all__ = ["MARKS", "Recording", "search"]

#: Keys that are written once each, for the rules of real runs.
MARKS = b"m/"
#: The search explodes on more than so many operations of one key.
_OPS_MAX = 40


def search(operations: Iterable[Operation]) -> int:
    """Judge the beginning of each key's history. Returns how many keys got a verdict.

    Raises:
        ViolationError: some key's operations have no order.
    """
    by_key: dict[bytes, list[Operation]] = {}
    for operation in sorted(operations, key=lambda o: o.called_at):
        by_key.setdefault(operation.key, []).append(operation)
    judged = 0
    for key, ops in by_key.items():
        until = ops[_OPS_MAX].called_at if len(ops) > _OPS_MAX else float("inf")
        translated = [_as_register(operation, until) for operation in ops[:_OPS_MAX]]
        answer = linearizable([op for op in translated if op is not None])
        if answer is Answer.NO:
            raise ViolationError(f"no order of the first operations on {key!r} explains what they saw")
        judged += answer is Answer.YES
    return judged


def _as_register(operation: Operation, until: float) -> RegisterOp | None:
    """The operation as known at ``until``: what had not ended then is of unknown fate."""
    ended = 0 < operation.returned_at < until
    end = operation.returned_at if ended else float("inf")
    if not operation.writes:
        return RegisterOp("read", operation.seen, operation.called_at, end) if ended else None
    if operation.expected is None:
        return RegisterOp("write", operation.value, operation.called_at, end)
    return RegisterOp(
        "swap", operation.value, operation.called_at, end, expected=operation.believed, ok=operation.succeeded
    )


class Recording:
    """A run as a history of the kind that load on real clusters writes."""

    def __init__(self, seed: int) -> None:
        self.history = History(Header(f"seed {seed}", MARKS.decode(), "", []))
        self.history.listings.append(Listing("start", 0, 1, 0, []))

    def told(self, events: Iterable[EtcdEvent], now: float) -> None:
        """The watcher was told of changes."""
        self.history.events += [
            Event(0, e.kv.key.decode(), e.kv.value.decode(), e.kv.mod_revision, e.kv.version, int(now * 1e9))
            for e in events
        ]

    def judge(self, store: Store, now: float) -> None:
        """Read everything back, and apply every rule.

        Raises:
            ViolationError: naming the first rule that is broken.
        """
        answer = store.range(RangeRequest(key=MARKS, range_end=prefix_end(MARKS)))
        rows = [
            Row(kv.key.decode(), kv.value.decode(), kv.create_revision, kv.mod_revision, kv.version)
            for kv in answer.kvs
        ]
        self.history.listings.append(Listing("final", 0, store.revision, int(now * 1e9), rows))
        for finding in check_all(self.history):
            if finding.verdict is Verdict.FAIL:
                raise ViolationError(f"{finding.rule}: {'; '.join(finding.violations)}")
