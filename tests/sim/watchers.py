"""Watchers of the simulated cluster: each follows keys from a revision on, whatever happens to its replica.

Owns what a watcher knows: how far it came. When its replica dies, or now and then for no reason, it goes on from there
at another one. Told of a compaction, it begins again at the compacted revision, as a client that lists again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from controlplane.base.rand import SeededRand
from controlplane.etcd.local import LocalKV
from controlplane.pb.etcd.kv_pb2 import Event
from controlplane.pb.etcd.rpc_pb2 import WatchCreateRequest, WatchResponse
from controlplane.store.keyspan import prefix_end
from tests.sim.checks import Checks
from tests.sim.net import SimNet
from tests.sim.node import SimNode
from tests.sim.rpc import Rpc

__all__ = ["SimWatcher"]


class SimWatcher:
    """One watch that never ends, over many streams."""

    def __init__(
        self,
        number: int,
        rpc: Rpc,
        net: SimNet,
        nodes: Sequence[SimNode],
        checks: Checks,
        rand: SeededRand,
        prefix: bytes,
    ) -> None:
        self.name = f"w{number}"
        self._rpc = rpc
        self._net = net
        self._nodes = nodes
        self._checks = checks
        self._rand = rand
        self._prefix = prefix
        self.after = 1  # the store's first revision, at which nothing happens
        self._node = nodes[0]
        self._boot = -1
        self._stream = 0
        self._end: Callable[[], None] = lambda: None
        self.moving = True
        #: Hears every event, too.
        self.on_events: Callable[[Sequence[Event]], None] = lambda events: None

    async def run(self) -> None:
        """For ever: is the replica still there, and is it time for another one?"""
        while True:
            node = self._node
            gone = not node.serving or node.boot != self._boot
            if gone or (self.moving and self._rand.random() < 0.03):
                self._move()
            await self._rpc.sleep(0.05 + 0.1 * self._rand.random())

    def _move(self) -> None:
        self._end()
        self._stream += 1
        self._boot = -1
        node = self._nodes[self._rand.randint(0, len(self._nodes) - 1)]
        if not node.serving:
            return
        self._node, self._boot = node, node.boot
        stream = self._stream
        request = WatchCreateRequest(
            key=self._prefix,
            range_end=prefix_end(self._prefix),
            start_revision=self.after + 1,
            prev_kv=True,
            progress_notify=True,
        )
        latest = 0.0

        def send(response: WatchResponse) -> None:
            nonlocal latest
            s = self._rpc.scheduler
            latest = max(latest, s.now + self._net.delay())  # in order, as on one connection
            s.at(latest, lambda: self._take(stream, response))

        async def follow(kv: LocalKV) -> None:
            async with kv.watch(request) as responses:
                async for response in responses:
                    send(response)

        self._end = self._rpc.stream(node, follow, lambda: self._ended(stream))

    def _ended(self, stream: int) -> None:
        if stream == self._stream:
            self._boot = -1

    def _take(self, stream: int, response: WatchResponse) -> None:
        if stream != self._stream:
            return
        if response.compact_revision:
            self._checks.watches.told_of_compaction(self.name, self.after, response.compact_revision)
            self.after = response.compact_revision - 1
            self._move()
            return
        until = max(self.after, response.header.revision)
        self._checks.watches.saw(self.name, self._prefix, self.after, until, response.events)
        self.on_events(response.events)
        self.after = until
        self._rpc.scheduler.note("saw", self.name, until)
