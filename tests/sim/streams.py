"""gRPC streams of simulated replicas: the production servicers run inside the replica's process, over a fake context.

Owns the two directions of a stream, each in order, and its end: by the client, by the service, or with the process.
What the client sends reaches a service that lives; what the service writes travels back, and a client that does not
read holds it up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from controlplane.base.errors import StatusError
from tests.sim.net import SimNet
from tests.sim.node import SimNode
from tests.sim.rpc import Rpc

__all__ = ["SimContext", "SimStream"]

Serve = Callable[[AsyncIterator[Any], Any], Awaitable[None]]


class SimContext:
    """The parts of a servicer context that services use."""

    def __init__(self, write: Callable[[Any], Awaitable[None]], metadata: dict[str, str]) -> None:
        self.write = write
        self._metadata = tuple(metadata.items())

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def time_remaining(self) -> float | None:
        return None


class SimStream:
    """One bidirectional stream to one replica in its present life.

    Args:
        serve: the servicer's method, called with requests and context in the replica's process.
        take: told of every message, in order, at the client.
        ended: told once that the stream is over; with what the service said, if it failed.
        holds_up_s: how long the service waits to get rid of a message: a client that reads slowly.
    """

    def __init__(
        self,
        rpc: Rpc,
        net: SimNet,
        node: SimNode,
        serve: Serve,
        take: Callable[[Any], None],
        ended: Callable[[StatusError | None], None],
        *,
        metadata: dict[str, str] | None = None,
        holds_up_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._s = rpc.scheduler
        self._net = net
        self._node = node
        self._take = take
        self._ended = ended
        self._holds_up_s = holds_up_s
        self._loop, self._boot = node.loop, node.boot
        self._arrives = {True: 0.0, False: 0.0}
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self.over = False
        context = SimContext(self._write, metadata or {})
        self._in_order(True, lambda: self._loop.post(self._begin, serve, context))

    # -- the client's end

    def send(self, request: Any) -> None:
        """Ask."""
        self._in_order(True, lambda: self._loop.post(self._requests.put_nowait, request))

    def end(self) -> None:
        """Go away; nothing is heard of it any more."""
        self.over = True
        self._in_order(True, lambda: self._loop.post(self._cancel))

    @property
    def alive(self) -> bool:
        """Whether the process that serves it may still do so."""
        return not self.over and self._node.serving and self._node.boot == self._boot

    # -- the service's end

    def _begin(self, serve: Serve, context: SimContext) -> None:
        if self._node.serving and self._node.boot == self._boot:
            self._task = self._loop.create_task(self._serve(serve, context))
            self._task.add_done_callback(self._finished)

    async def _serve(self, serve: Serve, context: SimContext) -> None:
        await serve(self._read(), context)

    async def _read(self) -> AsyncIterator[Any]:
        while True:
            yield await self._requests.get()

    async def _write(self, message: Any) -> None:
        self._in_order(False, lambda: self._arrived(message))
        if (wait_s := self._holds_up_s()) > 0:
            await asyncio.sleep(wait_s)

    def _arrived(self, message: Any) -> None:
        if not self.over:
            self._take(message)

    def _finished(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, StatusError):
            self._s.fail(error)
            return
        said = error if isinstance(error, StatusError) else None
        self._in_order(False, lambda: self._over(said))

    def _over(self, said: StatusError | None) -> None:
        if not self.over:
            self.over = True
            self._ended(said)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _in_order(self, up: bool, action: Callable[[], None]) -> None:
        """As on one connection. A stream whose process dies is found out by its client (:attr:`alive`)."""
        self._arrives[up] = max(self._arrives[up], self._s.now + self._net.delay())
        self._s.at(self._arrives[up], action)
