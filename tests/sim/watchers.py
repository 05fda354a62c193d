"""Watchers of the simulated cluster: each follows all keys from a revision on, whatever happens to its replica.

Owns what a watcher knows: how far it came. A replica that dies takes its watch along; the watcher goes on from there at
another one. Told of a compaction, it begins again at the compacted revision, as a client that lists again.
"""

from __future__ import annotations

from controlplane.base.rand import SeededRand
from controlplane.store.errors import CompactedError
from controlplane.store.watch import Watcher
from tests.sim.checks import Checks
from tests.sim.node import SimNode
from tests.sim.scheduler import Scheduler

__all__ = ["SimWatcher"]


class SimWatcher:
    """One watcher, polling a little after each wake."""

    def __init__(
        self, number: int, scheduler: Scheduler, nodes: list[SimNode], checks: Checks, rand: SeededRand
    ) -> None:
        self._name = f"w{number}"
        self._s = scheduler
        self._nodes = nodes
        self._checks = checks
        self._rand = rand
        self._after = 1  # the store's first revision, at which nothing happens
        self._node = nodes[0]
        self._boot = -1
        self._watcher: Watcher | None = None
        scheduler.after(0.1, self._look)

    def _look(self) -> None:
        """Now and then: is the replica still there, and is it time for another one?"""
        node = self._node
        if self._watcher is None or not node.alive or node.boot != self._boot or self._rand.random() < 0.02:
            self._move()
        self._s.after(0.05 + 0.1 * self._rand.random(), self._look)

    def _move(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None
        node = self._nodes[self._rand.randint(0, len(self._nodes) - 1)]
        if node.alive:
            self._node, self._boot = node, node.boot
            self._watcher = node.machine.store.watches.create(
                b"k", b"l", self._after + 1, prev_kv=True, wake=self._poll_later
            )
            self._poll_later()

    def _poll_later(self) -> None:
        watcher = self._watcher
        self._s.after(0.02 * self._rand.random() ** 4, lambda: self._poll(watcher))

    def _poll(self, watcher: Watcher | None) -> None:
        node = self._node
        if watcher is None or watcher is not self._watcher or not node.alive or node.boot != self._boot:
            return
        try:
            batch = watcher.poll(3)
        except CompactedError as error:
            self._checks.told_of_compaction(self._name, self._after, error.compact_revision)
            self._after = error.compact_revision - 1
            self._move()
            return
        until = max(self._after, watcher.progress)
        self._checks.saw(self._name, self._after, until, [event for _, events in batch for event in events])
        self._after = until
        if not watcher.synced:
            self._poll_later()
