"""The client port of simulated replicas: a request runs inside the replica's process, its answer travels back.

Owns what a client can learn: the answer, an error, or nothing until its own patience ends. A request whose replica dies
has an unknown outcome.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from controlplane.base.errors import Code, StatusError
from controlplane.etcd.local import LocalKV
from tests.sim.loop import SimLoop
from tests.sim.net import SimNet
from tests.sim.node import SimNode
from tests.sim.scheduler import NodeClock, Scheduler

__all__ = ["HOST", "PATIENCE_S", "TIMEOUT_MS", "Rpc"]

T = TypeVar("T")

#: All clients live on one machine.
HOST = "clients"
#: What a replica is given for one request.
TIMEOUT_MS = 500
#: When the client gives an answer up.
PATIENCE_S = 0.7


class Rpc:
    """The clients' process and its way to every replica."""

    def __init__(self, scheduler: Scheduler, net: SimNet) -> None:
        self.scheduler = scheduler
        self.loop = SimLoop(scheduler, NodeClock(scheduler, 0.0, 1.0), HOST)
        self._net = net
        self._ids = itertools.count()

    def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run a client."""

        async def run() -> None:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - a violation, or a defect of the client
                self.scheduler.fail(error)

        self.loop.spawn(run)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def call(self, node: SimNode, ask: Callable[[LocalKV], Awaitable[T]]) -> T:
        """Ask a replica.

        Raises:
            StatusError: what the replica said; or Unavailable, nobody lives there, or nobody knows what became of it.
        """
        answer: asyncio.Future[T] = self.loop.create_future()
        number = next(self._ids)

        def fail(error: StatusError) -> None:
            if not answer.done():
                answer.set_exception(error)

        def died() -> None:
            error = StatusError(Code.UNAVAILABLE, "connection reset by peer", unknown_outcome=True)
            self._net.travel(node.name, HOST, lambda: fail(error))

        def arrive() -> None:
            if not node.serving:
                refused = StatusError(Code.UNAVAILABLE, "connection refused")
                self._net.travel(node.name, HOST, lambda: fail(refused))
                return
            node.waiting[number] = died
            node.loop.spawn(handle)

        def answered(result: T) -> None:
            if not answer.done():
                answer.set_result(result)

        async def handle() -> None:
            try:
                reply = partial(answered, await ask(node.kv))
            except StatusError as error:
                reply = partial(fail, error)
            node.waiting.pop(number, None)
            self._net.travel(node.name, HOST, reply)

        self._net.travel(HOST, node.name, arrive)
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await answer
        except TimeoutError as error:
            raise StatusError(Code.DEADLINE_EXCEEDED, "no answer in time", unknown_outcome=True) from error

    def send(self, node: SimNode, ask: Callable[[LocalKV], Awaitable[object]]) -> None:
        """Ask, and do not care what becomes of it."""

        async def run() -> None:
            try:
                await self.call(node, ask)
            except StatusError as error:
                self.scheduler.note("refused", node.name, error.code)

        self.start(run)

    def stream(
        self, node: SimNode, run: Callable[[LocalKV], Awaitable[None]], ended: Callable[[], None]
    ) -> Callable[[], None]:
        """Run something that goes on inside a replica. Returns how to end it; ``ended`` hears when it is over."""
        loop, boot = node.loop, node.boot
        tasks: list[asyncio.Task[None]] = []

        async def handle() -> None:
            await run(node.kv)

        def begin() -> None:
            if node.serving and node.boot == boot:
                task = loop.create_task(handle())
                tasks.append(task)
                task.add_done_callback(over)

        def over(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.scheduler.fail(error)
            self._net.travel(node.name, HOST, ended)

        def end() -> None:
            for task in tasks:
                task.cancel()

        loop.post(begin)
        return lambda: loop.post(end)
