"""SharedInformers: one informer per kind for everything that runs in a process.

Owns which informers there are and runs them together. Every kind is asked for before ``run``; handlers and indexes are
added by whoever asks.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from controlplane.base.clock import Clock
from controlplane.base.rand import Rand
from controlplane.client.informer import Informer
from controlplane.client.interface import ApiClient, ObjT

__all__ = ["CATCH_UP_S", "SharedInformers"]

#: How long a new leader waits at most for its caches to show what was committed before its term.
CATCH_UP_S = 0.1
_CATCH_UP_STEP_S = 0.01


class SharedInformers:
    """See the module. Fulfils :class:`~controlplane.client.caches.Caches`."""

    def __init__(self, client: ApiClient, *, clock: Clock, rand: Rand) -> None:
        self._client = client
        self._clock = clock
        self._rand = rand
        self._informers: dict[type[Any], Informer[Any]] = {}
        self._running = False

    def of(self, kind: type[ObjT]) -> Informer[ObjT]:
        """The informer of a kind, of all namespaces.

        Raises:
            RuntimeError: a new kind is asked for while running.
        """
        informer = self._informers.get(kind)
        if informer is None:
            if self._running:
                raise RuntimeError(f"no informer of {kind.__name__}: kinds are asked for before run()")
            informer = Informer(self._client, kind, clock=self._clock, rand=self._rand)
            self._informers[kind] = informer
        return cast("Informer[ObjT]", informer)

    async def run(self) -> None:
        """Keep all caches current until cancelled. A handler's exception ends it."""
        self._running = True
        async with asyncio.TaskGroup() as group:
            for kind, informer in self._informers.items():
                group.create_task(informer.run(), name=f"informer-{kind.__name__}")

    async def wait_synced(self) -> None:
        """Return once every cache has had its first list."""
        for informer in self._informers.values():
            await informer.wait_synced()

    def revision(self) -> int:
        """Every cache has delivered all events up to this revision."""
        return min((i.resource_version for i in self._informers.values()), default=0)

    async def wait_for(self, revision: int) -> None:
        """Return when the caches have had their first list and show everything up to ``revision``.

        A new leader calls it with the revision its term began at. A stream with nothing to say may leave its place
        unknown, so after CATCH_UP_S it returns anyway: late caches cost conflicts and retries, not safety.
        """
        await self.wait_synced()
        deadline = self._clock.monotonic() + CATCH_UP_S
        while self.revision() < revision and self._clock.monotonic() < deadline:
            await self._clock.sleep(_CATCH_UP_STEP_S)
