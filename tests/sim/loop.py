"""The asyncio loop of one simulated process, on the scheduler's virtual time.

Owns a process's callbacks, timers and helper threads, and what stops them: a pause holds everything back, death drops
it. The loop's time is the process's own clock, whose rate may be wrong. Production code runs on it unchanged: tasks
and futures are asyncio's own.

Helper threads (``run_in_executor``) are simulated by their effect: the operation happens as a whole, some time after
it was asked for, one after the other per executor. :meth:`SimLoop.unfinished` names those that death interrupts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tests.sim.disk import PowerLoss
from tests.sim.scheduler import NodeClock, Scheduler

__all__ = ["Network", "SimLoop"]


#: What one round of a loop takes, so that time goes on for whoever only lets others run.
_ROUND_S = 0.00001
#: Rounds without waiting for anything: nothing in here works that long.
_SPINS_MAX = 5_000


class Network(Protocol):
    """Where a loop's sockets lead."""

    def listen(self, loop: SimLoop, host: str, port: int, factory: Callable[[], asyncio.Protocol]) -> Any: ...
    async def connect(self, loop: SimLoop, host: str, port: int, factory: Callable[[], asyncio.Protocol]) -> Any: ...


@dataclass(slots=True)
class _Job:
    operation: Callable[[], Any]
    future: asyncio.Future[Any]


if TYPE_CHECKING:
    _Loop = asyncio.BaseEventLoop  # which leaves no method of the interface out
else:
    _Loop = asyncio.AbstractEventLoop


class SimLoop(_Loop):
    """One process. ``host`` is its address on the network."""

    def __init__(self, scheduler: Scheduler, clock: NodeClock, host: str, network: Network | None = None) -> None:
        self.host = host
        self.clock = clock
        self.dead = False
        #: Seconds that the next operation of a helper thread takes.
        self.operation_s: Callable[[], float] = lambda: 0.0
        #: The machine stopped in the middle of a disk operation.
        self.on_power_loss: Callable[[], None] = lambda: None
        self._s = scheduler
        self._network = network
        self._ready: deque[asyncio.Handle] = deque()
        self._armed = False
        self._spins = 0
        self._paused_until = 0.0
        self._jobs: list[_Job] = []
        self._busy_until: dict[Any, float] = {}

    # -- what happens to the process ---------------------------------------------------------------------------

    def pause(self, until_s: float) -> None:
        """SIGSTOP until then, virtual seconds."""
        self._paused_until = max(self._paused_until, until_s)

    @property
    def paused(self) -> bool:
        return self._s.now < self._paused_until

    def kill(self) -> None:
        """Nothing of it runs any more."""
        self.dead = True
        self._s.bury(asyncio.all_tasks(self))
        self._ready.clear()

    def unfinished(self) -> list[Callable[[], Any]]:
        """Operations of helper threads that were asked for and have not happened."""
        return [job.operation for job in self._jobs]

    # -- from outside ------------------------------------------------------------------------------------------

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Have it called inside the process, if that still lives."""
        self.call_soon(callback, *args)

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin a task inside the process."""
        self.post(lambda: self.create_task(work()))

    # -- callbacks and timers ----------------------------------------------------------------------------------

    def time(self) -> float:
        return self.clock.monotonic()

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override]
        handle = asyncio.Handle(callback, args, self, context)
        if not self.dead:
            self._ready.append(handle)
            self._arm()
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, **options: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        return self.call_at(self.time() + delay, callback, *args, **options)

    def call_at(self, when: float, callback: Any, *args: Any, **options: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        handle = asyncio.TimerHandle(when, callback, args, self, options.get("context"))
        self._s.at(self.clock.virtual(when), lambda: self._due(handle))
        return handle

    def _due(self, handle: asyncio.TimerHandle) -> None:
        if not self.dead and not handle.cancelled():
            self._ready.append(handle)
            self._arm()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """The scheduler forgets it when its time comes."""

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._s.at(self._paused_until, self._run)

    def _run(self) -> None:
        if self.dead:
            return
        if self.paused:
            self._s.at(self._paused_until, self._run)
            return
        ready = self._ready
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            for _ in range(len(ready)):
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
                if self.dead:
                    return
        finally:
            asyncio._set_running_loop(outer)
        self._spins = self._spins + 1 if ready else 0
        if self._spins > _SPINS_MAX:
            raise AssertionError(f"livelock: {self.host} never waits for anything: {ready[0]}")
        self._armed = bool(ready)
        if ready:
            self._s.after(_ROUND_S, self._run)

    def run_inside(self, action: Callable[[], object]) -> None:
        """Call it now, as code of this process."""
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            action()
        finally:
            asyncio._set_running_loop(outer)

    # -- tasks -------------------------------------------------------------------------------------------------

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        return asyncio.Task(coro, loop=self, **options)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future = self.create_future()
        job = _Job(lambda: func(*args), future)
        self._jobs.append(job)
        start = max(self._s.now, self._busy_until.get(executor, 0.0))
        self._busy_until[executor] = end = start + self.operation_s()
        self._s.at(end, lambda: self._finish(job))
        return future

    def _finish(self, job: _Job) -> None:
        if self.dead:
            return
        if self.paused:
            self._s.at(self._paused_until, lambda: self._finish(job))
            return
        self._jobs.remove(job)
        future = job.future
        try:
            result = job.operation()
        except PowerLoss:
            self.on_power_loss()
        except Exception as error:  # noqa: BLE001 - whoever waits for it hears it
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(result)

    # -- sockets -----------------------------------------------------------------------------------------------

    async def create_server(self, factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:  # type: ignore[override]
        assert self._network is not None
        return self._network.listen(self, host, port, factory)

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:  # type: ignore[override]
        assert self._network is not None
        return await self._network.connect(self, host, port, factory)

    # -- the rest that asyncio asks for ------------------------------------------------------------------------

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """An exception out of a callback is a defect of the code under test, and ends the run."""
        error = context.get("exception")
        if error is not None and "never retrieved" not in context.get("message", ""):
            self._s.fail(error)
