"""What a replica serves in its present position: a learner almost nothing, and without a leader not everything.

``hasleader``: calls that would rather fail than be served by a replica that knows no leader.

A unary call is refused at once. An open stream, of whatever service, is ended after :data:`PATIENCE_ELECTIONS` election
timeouts without a leader, as in etcd, so that its client moves to a replica on the majority's side.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import aclosing, asynccontextmanager
from functools import wraps
from typing import Any, Final, TypeVar

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.etcd import metrics
from controlplane.etcd.context import Context, client_version_of, requires_leader
from controlplane.raft.types import RaftHandle

__all__ = ["PATIENCE_ELECTIONS", "LeaderGuard", "guarded"]

ServicerT = TypeVar("ServicerT")
ResponseT = TypeVar("ResponseT")
ResultT = TypeVar("ResultT")

PATIENCE_ELECTIONS: Final = 3


class LeaderGuard:
    """Answers whether this replica may serve a call."""

    def __init__(self, raft: RaftHandle, clock: Clock, *, election_timeout_ms: int) -> None:
        self._raft = raft
        self._clock = clock
        self._election_timeout_s = election_timeout_ms / 1000

    def check(self, context: Context, *, local_read: bool = False, stream: bool = False) -> None:
        """Count the call, and let it pass or not.

        Raises:
            StatusError: Unavailable, the client wants a leader and there is none; or this replica is a learner and the
                call is no ``local_read``.
        """
        version = metrics.client_version(client_version_of(context))
        metrics.CLIENT_REQUESTS.labels("stream" if stream else "unary", version).inc()
        if self._raft.is_learner and not local_read:
            raise StatusError(Code.UNAVAILABLE, "etcdserver: rpc not supported for learner")
        if requires_leader(context) and self._raft.status().leader is None:
            raise _no_leader()

    async def serve(self, context: Context, work: Coroutine[Any, Any, None]) -> None:
        """Run a stream's work to its end, or until a leader which its client asked for is lost: the work is over when
        this returns or raises.

        Raises:
            StatusError: Unavailable, the leader is lost; or what the work raises.
        """
        if not requires_leader(context):
            await work
            return
        async with self._losing() as lost:
            await _first(asyncio.ensure_future(work), lost)

    async def served(
        self, context: Context, responses: AsyncGenerator[ResponseT, None]
    ) -> AsyncGenerator[ResponseT, None]:
        """The same for a stream whose work is to yield responses. It is cut between two of them, so one that its client
        takes no more from ends when the client does."""
        async with aclosing(responses):
            if not requires_leader(context):
                async for response in responses:
                    yield response
                return
            async with self._losing() as lost:
                while True:
                    coming = await _first(asyncio.create_task(_next(responses)), lost)
                    if not coming:
                        return
                    yield coming[0]

    @asynccontextmanager
    async def _losing(self) -> AsyncIterator[asyncio.Task[None]]:
        lost = asyncio.create_task(self._until_lost())
        try:
            yield lost
        finally:
            lost.cancel()
            await asyncio.wait((lost,))

    async def _until_lost(self) -> None:
        """Return when there was no leader for too long."""
        without = 0
        while without < PATIENCE_ELECTIONS:
            await self._clock.sleep(self._election_timeout_s)
            without = without + 1 if self._raft.status().leader is None else 0


async def _next(responses: AsyncGenerator[ResponseT, None]) -> list[ResponseT]:
    """The next one; none: there are no more."""
    async for response in responses:
        return [response]
    return []


async def _first(work: asyncio.Task[ResultT], lost: asyncio.Task[None]) -> ResultT:
    """What the work comes to, if the leader is not lost before. None of the work goes on."""
    try:
        await asyncio.wait((work, lost), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise _no_leader()
        return work.result()
    finally:
        if work.cancel():
            await asyncio.wait((work,))


def _no_leader() -> StatusError:
    return StatusError(Code.UNAVAILABLE, "etcdserver: no leader")


def guarded(servicer: ServicerT, guard: LeaderGuard, *, local: Collection[str] = ()) -> ServicerT:
    """The same servicer, each of whose calls the guard checks before anything else, and whose streams it ends when a
    required leader is lost. ``local``: calls that a learner serves too."""
    for name, method in inspect.getmembers(servicer, inspect.ismethod):
        # Calls are named as in the proto file, with a capital.
        if name[0].isupper():
            guarding = _stream if inspect.isasyncgenfunction(method) else _unary
            setattr(servicer, name, guarding(method, guard, name in local))
    return servicer


def _unary(
    method: Callable[[Any, Context], Awaitable[Any]], guard: LeaderGuard, local: bool
) -> Callable[[Any, Context], Any]:
    @wraps(method)
    async def call(request: Any, context: Context) -> Any:
        guard.check(context, local_read=local)
        return await method(request, context)

    return call


def _stream(
    method: Callable[[Any, Context], AsyncGenerator[Any, None]], guard: LeaderGuard, local: bool
) -> Callable[[Any, Context], Any]:
    @wraps(method)
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        guard.check(context, local_read=local, stream=True)
        async with aclosing(guard.served(context, method(request, context))) as responses:
            async for response in responses:
                yield response

    return call
