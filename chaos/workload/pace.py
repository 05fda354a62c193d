"""When a client acts, and under which name: open-loop slots, and one outstanding operation per process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeVar

from chaos.history import Recorder
from chaos.records import Op
from controlplane.base.clock import Clock

__all__ = ["Pace", "Process"]

_BACKLOG_S: Final = 1.0

T = TypeVar("T")


class Pace:
    """Slots at a fixed rate, whether or not what is done in them is quick. Being late is made up for at once, but for
    at most a second's worth, so that an outage does not end in a flood."""

    def __init__(self, rate_per_s: float, clock: Clock) -> None:
        self._interval_s = 1.0 / rate_per_s
        self._clock = clock
        self._due_s = clock.monotonic()

    async def slot(self) -> None:
        """Return when the next slot begins."""
        now_s = self._clock.monotonic()
        self._due_s = max(self._due_s + self._interval_s, now_s - _BACKLOG_S)
        # Also when late: everything here shares one loop.
        await self._clock.sleep(max(0.0, self._due_s - now_s))


class Process:
    """One client process of the history: one operation at a time, a new name after one of unknown outcome."""

    def __init__(self, name: str, recorder: Recorder) -> None:
        self._base = name
        self._lives = 0
        self.name = name
        self.recorder = recorder

    async def run(
        self, call: Callable[[], Awaitable[T]], done: Callable[[int, int, int, T], Op], lost: Op | None = None
    ) -> T:
        """Do one operation and record it; its result. See :meth:`recorded`."""
        return (await self._do(call, done, lost))[0]

    async def recorded(
        self, call: Callable[[], Awaitable[T]], done: Callable[[int, int, int, T], Op], lost: Op | None = None
    ) -> Op:
        """Do one operation and record it; its record. ``done`` makes that from (id, call, return, result); ``lost`` is
        the record if this process is stopped meanwhile, when nobody knows the outcome; None: there is nothing to
        know."""
        return (await self._do(call, done, lost))[1]

    async def _do(
        self, call: Callable[[], Awaitable[T]], done: Callable[[int, int, int, T], Op], lost: Op | None
    ) -> tuple[T, Op]:
        op_id, call_ns = self.recorder.next_id(), self.recorder.now_ns()
        try:
            result = await call()
        except asyncio.CancelledError:
            if lost is not None:
                now_ns = self.recorder.now_ns()
                self.recorder.op(replace(lost, id=op_id, call_ns=call_ns, return_ns=now_ns, error="stopped"))
            raise
        op = done(op_id, call_ns, self.recorder.now_ns(), result)
        self.recorder.op(op)
        if op.outcome == "info":
            self._lives += 1
            self.name = f"{self._base}.{self._lives}"
        return result, op
