"""What a replica serves in its present position: a learner almost nothing, and without a leader not everything.

``hasleader``: calls that would rather fail than be served by a replica that knows no leader.

A unary call is refused at once. An open stream is ended after :data:`PATIENCE_ELECTIONS` election timeouts without a
leader, as in etcd, so that its client moves to a replica on the majority's side.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from functools import wraps
from typing import Any, Final, TypeVar

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.etcd import metrics
from controlplane.etcd.context import Context, client_version_of, requires_leader
from controlplane.raft.types import RaftHandle

__all__ = ["PATIENCE_ELECTIONS", "LeaderGuard", "guarded", "no_leader"]

ServicerT = TypeVar("ServicerT")

PATIENCE_ELECTIONS: Final = 3


def no_leader() -> StatusError:
    """The error of a replica that knows no leader."""
    return StatusError(Code.UNAVAILABLE, "etcdserver: no leader")


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
            raise no_leader()

    async def until_lost(self) -> None:
        """Return when there was no leader for too long: run it beside a stream that asked for one."""
        without = 0
        while without < PATIENCE_ELECTIONS:
            await self._clock.sleep(self._election_timeout_s)
            without = without + 1 if self._raft.status().leader is None else 0


def guarded(servicer: ServicerT, guard: LeaderGuard, *, but: Collection[str] = ()) -> ServicerT:
    """The same servicer, each of whose calls the guard checks before anything else; not those in ``but``."""
    for name, method in inspect.getmembers(servicer, inspect.ismethod):
        # Calls are named as in the proto file, with a capital.
        if name[0].isupper() and name not in but:
            setattr(
                servicer, name, _stream(method, guard) if inspect.isasyncgenfunction(method) else _unary(method, guard)
            )
    return servicer


def _unary(method: Callable[[Any, Context], Awaitable[Any]], guard: LeaderGuard) -> Callable[[Any, Context], Any]:
    @wraps(method)
    async def call(request: Any, context: Context) -> Any:
        guard.check(context)
        return await method(request, context)

    return call


def _stream(method: Callable[[Any, Context], AsyncIterator[Any]], guard: LeaderGuard) -> Callable[[Any, Context], Any]:
    @wraps(method)
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        guard.check(context, stream=True)
        async for response in method(request, context):
            yield response

    return call
