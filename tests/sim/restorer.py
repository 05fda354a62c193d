"""Who restores in the simulated cluster: takes the state of some moment, and later puts it back, whatever happens.

Owns what the client of a restore knows: the pieces, and how far it came. It goes on at another replica when one dies,
as ``controlplane.live_restore`` does, and now and then it goes away in the middle.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import SeededRand
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import RestoreBegin, RestoreProgress
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader
from controlplane.store.keyspan import Span
from controlplane.store.records import record, split
from controlplane.store.snapshot import load
from controlplane.store.staging import NO_DIGEST, chained, pieces_of
from tests.sim.node import CLUSTER_ID, SimNode
from tests.sim.rpc import Rpc

__all__ = ["Restorer", "Saved"]

T = TypeVar("T")

#: Whoever says so may be asked again, or another one.
_AGAIN = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED)
_EVERYTHING = Span(b"", None)


class Saved:
    """The state of a replica now, a record or so to a piece, so that there are many."""

    def __init__(self, node: SimNode) -> None:
        store = node.machine.store
        loaded = load(store.snapshot())
        whole = b"".join(pieces_of(loaded.keyspace, loaded.auth, loaded.leases.values()))
        self.pieces = [record(bytes((kind,)), payload) for kind, payload in split(whole)]
        self.digest = NO_DIGEST
        for piece in self.pieces:
            self.digest = chained(self.digest, piece)
        self.revision = store.revision
        self.kvs = {v.frame for v in loaded.keyspace.scan(_EVERYTHING)}

    def begin(self, id: bytes) -> RestoreBegin:
        header = SnapshotHeader(cluster_id=CLUSTER_ID, revision=self.revision)
        return RestoreBegin(id=id, snapshot=header, total_bytes=sum(map(len, self.pieces)))


class Restorer:
    """One restore after the other until stopped, or until told how one ended."""

    def __init__(self, number: int, rpc: Rpc, nodes: Sequence[SimNode], rand: SeededRand) -> None:
        self._number = number
        self._rpc = rpc
        self._nodes = nodes
        self._rand = rand
        self._node = 0
        self.busy = False
        self.stopped = False
        self.done = 0
        #: How many pieces of the present one are staged.
        self.staged = 0

    async def run(self) -> None:
        """Until :attr:`stopped`."""
        while not self.stopped:
            await self._rpc.sleep(0.3 + 1.5 * self._rand.random())
            serving = [node for node in self._nodes if node.serving]
            if not serving:
                continue
            saved = Saved(serving[self._rand.randint(0, len(serving) - 1)])
            await self._rpc.sleep(0.8 * self._rand.random())
            if saved.pieces:
                self.busy = True
                await self.restore(saved, give_up_at=self._rand.randint(0, 20) if self._rand.random() < 0.2 else None)
                self.busy = False

    async def restore(self, saved: Saved, *, give_up_at: int | None = None) -> RestoreProgress | None:
        """Put a state back. None: refused, or given up on at that piece. Never refused after it was asked to commit,
        unless somebody else cleared the stage first."""
        attempt = self._rand.token(16)
        self.staged = 0
        try:
            opened = await self._step(lambda node: node.restoring.begin(saved.begin(attempt), state_bytes=0))
            at = opened.progress.next
            while at < len(saved.pieces):
                if give_up_at is not None and at >= give_up_at:
                    if self._rand.random() < 0.5:
                        await self._step(lambda node: node.restoring.abort(attempt))
                    return None
                at = await self._piece(saved, attempt, at)
                self.staged = at
            done = await self._step(lambda node: node.restoring.commit(attempt, saved.digest))
        except StatusError as error:
            # Another restore is under way, or ended this one; or a disk is too full to begin.
            self._rpc.scheduler.note("restore refused", self._number, error.code)
            return None
        self.done += 1
        return done

    async def _piece(self, saved: Saved, attempt: bytes, at: int) -> int:
        piece = saved.pieces[at]
        progress = await self._step(lambda node: node.restoring.chunk(attempt, at, piece))
        return progress.next

    async def _step(self, ask: Callable[[SimNode], Awaitable[T]]) -> T:
        """Ask one replica after the other until one says yes or no."""
        while True:
            node = self._nodes[self._node % len(self._nodes)]
            try:
                return await self._rpc.call(node, lambda _, node=node: ask(node))  # type: ignore[misc]
            except StatusError as error:
                if error.code not in _AGAIN:
                    raise
                self._node += 1
                await self._rpc.sleep(0.02 + 0.1 * self._rand.random())
