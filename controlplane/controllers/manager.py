"""ControllerManager: runs the controllers of a replica, but only while the replica leads.

Owns the queues, the term's fence, and when work starts and stops. Must not know what any controller does, or how a term
is won: ``app`` writes the leader key and calls :meth:`lead` with its revision.

Invariants: between ``stop_leading`` (or a refused fence) and the next ``lead`` nothing is written; work of one term
never writes under the fence of another, because it has ended before the next begins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from controlplane.base.clock import Clock
from controlplane.base.rand import Rand
from controlplane.client.caches import Caches, EventSink
from controlplane.client.fenced import FencedClient
from controlplane.client.interface import ApiClient
from controlplane.client.workqueue import WorkQueue
from controlplane.controllers.base import Controller, Environment
from controlplane.controllers.indexes import add_indexes
from controlplane.pb.quarterdeck.v1 import api_pb2

__all__ = ["ControllerFactory", "ControllerManager"]

log = logging.getLogger("quarterdeck.controllers")

ControllerFactory = Callable[[Environment], Controller]

#: Keys enqueued before other tasks get a turn.
_KEYS_PER_TURN = 256


class ControllerManager:
    """See the module.

    Args:
        client: the API, unfenced.
        caches: shared informers; the manager adds its indexes and handlers, the caller runs them.
        factories: what makes each controller (``all_controllers()`` and whatever else is plugged in).
        events: where controllers report.
        clock: time.
        rand: randomness.
    """

    def __init__(
        self,
        client: ApiClient,
        caches: Caches,
        factories: Sequence[ControllerFactory],
        *,
        events: EventSink,
        clock: Clock,
        rand: Rand,
    ) -> None:
        self._caches = caches
        self._clock = clock
        self._client = FencedClient(client, self._fenced_off)
        add_indexes(caches)
        env = Environment(self._client, caches, events, clock, rand)
        self._controllers = [make(env) for make in factories]
        self._queues: dict[str, WorkQueue[str]] = {c.name: WorkQueue(c.name, clock) for c in self._controllers}
        self._term: asyncio.Task[None] | None = None
        self._crash: BaseException | None = None
        self._crashed = asyncio.Event()

    async def run(self) -> None:
        """Wait until cancelled, or raise what a controller crashed with outside of a reconcile (a bug: the replica must
        not go on leading without controllers)."""
        await self._crashed.wait()
        if self._crash is not None:
            raise self._crash

    @property
    def leading(self) -> bool:
        """Whether controllers may write now."""
        return self._client.leading

    async def lead(self, fence: api_pb2.Fence) -> None:
        """Work under this fence from now on. Returns at once; work starts when the caches are warm."""
        await self.stop_leading()
        log.info("controllers start fence_revision=%d", fence.mod_revision)
        self._client.grant(fence)
        self._term = asyncio.get_running_loop().create_task(self._work(fence), name="controllers")
        self._term.add_done_callback(self._note_crash)

    async def stop_leading(self) -> None:
        """Stop writing now, and return when all work has stopped."""
        self._client.revoke()
        term, self._term = self._term, None
        if term is not None:
            term.cancel()
            await asyncio.wait([term])
            log.info("controllers stopped")

    def _fenced_off(self) -> None:
        """The store knows a newer leader: end the term without waiting to be told."""
        log.warning("controllers fenced off: another replica leads")
        if self._term is not None:
            self._term.cancel()

    def _note_crash(self, term: asyncio.Task[None]) -> None:
        if not term.cancelled() and term.exception() is not None:
            self._crash = term.exception()
            self._crashed.set()

    async def _work(self, fence: api_pb2.Fence) -> None:
        await self._caches.wait_for(fence.mod_revision)
        try:
            for controller in self._controllers:
                controller.on_lead()
                controller.attach(self._queues[controller.name].add_after)
            async with asyncio.TaskGroup() as group:
                for controller in self._controllers:
                    queue = self._queues[controller.name]
                    group.create_task(queue.run_workers(controller.reconcile, controller.workers))
                    group.create_task(_enqueue_all(controller, queue))
        finally:
            for controller in self._controllers:
                controller.attach(None)
                controller.on_stop()


async def _enqueue_all(controller: Controller, queue: WorkQueue[str]) -> None:
    for n, key in enumerate(controller.keys(), start=1):
        queue.add(key)
        if n % _KEYS_PER_TURN == 0:
            await asyncio.sleep(0)
