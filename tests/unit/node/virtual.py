"""A clock that a test runs forward: every sleeper wakes at its own time, in order, without real waiting."""

from __future__ import annotations

import asyncio

from controlplane.base.clock import ManualClock

__all__ = ["VirtualClock"]

#: Turns of the loop given to whoever woke, before time goes on.
_TURNS = 30


class VirtualClock(ManualClock):
    """ManualClock with ``run_for``."""

    async def run_for(self, seconds: float) -> None:
        """Let that much time pass, stopping at every sleeper."""
        end_s = self._now + seconds
        await self.settle()
        while True:
            due_s = min((at for at, future in self._sleepers if not future.done()), default=end_s + 1)
            if due_s > end_s:
                break
            self.advance(max(0.0, due_s - self._now))
            await self.settle()
        self.advance(max(0.0, end_s - self._now))
        await self.settle()

    async def settle(self) -> None:
        """Let everything that can run, run."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
