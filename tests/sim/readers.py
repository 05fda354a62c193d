"""Readers of the simulated cluster: ranges of every shape, of now and of the past, by a quorum or from one replica.

Owns what to ask and what the answer must be. A linearizable read shows everything that had ended before it began; a
serializable one shows a state of the log as it was, and never an older one than the same replica, in the same life, had
shown before. Whatever its revision is, the answer is exactly the model's state then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import SeededRand
from controlplane.pb.etcd.rpc_pb2 import RangeRequest, RangeResponse
from controlplane.store.keyspan import prefix_end
from tests.sim.checks import Checks
from tests.sim.model import Change
from tests.sim.node import SimNode
from tests.sim.rpc import TIMEOUT_MS, Rpc
from tests.sim.violation import ViolationError

__all__ = ["Reader"]

_AGAIN = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED)
_PREFIXES = (b"k", b"k", b"k1", b"kl", b"none")
_SHAPES: Sequence[dict[str, Any]] = (
    {},
    {"limit": 1},
    {"limit": 2},
    {"keys_only": True},
    {"count_only": True},
    {"sort_target": RangeRequest.KEY, "sort_order": RangeRequest.DESCEND},
    {"sort_target": RangeRequest.MOD, "sort_order": RangeRequest.DESCEND, "limit": 2},
    {"sort_target": RangeRequest.CREATE, "sort_order": RangeRequest.ASCEND},
)


class Reader:
    """One read at a time, until told to stop."""

    def __init__(self, rpc: Rpc, nodes: Sequence[SimNode], checks: Checks, rand: SeededRand) -> None:
        self._rpc = rpc
        self._nodes = nodes
        self._checks = checks
        self._rand = rand
        #: What a replica showed last, in which of its lives.
        self._shown: dict[tuple[str, int], int] = {}
        self.stopped = False

    async def run(self) -> None:
        """Until :attr:`stopped`."""
        while not self.stopped:
            await self._rpc.sleep(0.08 * self._rand.random())
            await self._one()

    def _next(self) -> RangeRequest:
        rand = self._rand
        prefix = _PREFIXES[rand.randint(0, len(_PREFIXES) - 1)]
        shape = _SHAPES[rand.randint(0, len(_SHAPES) - 1)]
        request = RangeRequest(key=prefix, range_end=prefix_end(prefix), serializable=rand.random() < 0.5, **shape)
        if rand.random() < 0.3:
            request.revision = max(1, self._checks.model.revision - rand.randint(0, 30))
        return request

    async def _one(self) -> None:
        request, checks = self._next(), self._checks
        node = self._nodes[self._rand.randint(0, len(self._nodes) - 1)]
        floor, boot = checks.floor, node.boot
        try:
            answer = await self._rpc.call(node, lambda kv: kv.range(request, timeout_ms=TIMEOUT_MS))
        except StatusError as error:
            if error.code is Code.OUT_OF_RANGE:
                self._check_refusal(request, error)
            elif error.code not in _AGAIN:
                raise
            return
        revision = answer.header.revision
        if request.serializable:
            life = node.name, boot
            if revision < self._shown.get(life, 0):
                raise ViolationError(f"{node.name} showed revision {self._shown[life]}, and then {revision}")
            if node.boot == boot:
                self._shown[life] = revision
        elif revision < floor:
            raise ViolationError(f"range at revision {revision} is stale: {floor} was seen before it began")
        self._check_content(request, answer)
        checks.range_answered(revision)

    def _check_refusal(self, request: RangeRequest, error: StatusError) -> None:
        """Only history that is gone is refused; and what a replica has not heard of, if it was asked alone."""
        gone = "compacted" in error.message and 0 < request.revision < self._checks.model.compacted
        unheard_of = "future" in error.message and request.serializable
        if not (request.revision and (gone or unheard_of)):
            raise ViolationError(f"range at revision {request.revision} is refused: {error.message}")

    def _check_content(self, request: RangeRequest, answer: RangeResponse) -> None:
        at = request.revision or answer.header.revision
        there = self._checks.model.range(request.key, request.range_end, at)
        want = [] if request.count_only else _sorted(there, request)[: request.limit or None]
        got = [(kv.key, kv.value, kv.mod_revision, kv.create_revision, kv.version) for kv in answer.kvs]
        expected = [
            (c.key, b"" if request.keys_only else c.value, c.revision, c.created, c.version) for c in want
        ]  # fmt: skip
        more = len(there) > len(want) and not request.count_only
        if (got, answer.count, answer.more) != (expected, len(there), more):
            raise ViolationError(
                f"range {request.key!r} at revision {at} gives {got}, count {answer.count}, more {answer.more}; "
                f"the log says {expected}, {len(there)}, {more}"
            )


def _sorted(changes: list[Change], request: RangeRequest) -> list[Change]:
    """Among equals the order of the keys stays."""
    if request.sort_order == RangeRequest.NONE:
        return changes
    by: dict[int, Callable[[Change], Any]] = {
        RangeRequest.KEY: lambda c: c.key,
        RangeRequest.MOD: lambda c: c.revision,
        RangeRequest.CREATE: lambda c: c.created,
    }
    return sorted(changes, key=by[request.sort_target], reverse=request.sort_order == RangeRequest.DESCEND)
