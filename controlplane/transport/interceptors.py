"""What happens around every RPC handler: metrics, and errors turned into statuses.

Owns the one translation from :class:`StatusError` to a gRPC status: the code and the exact text, because real
etcd clients match on both. An exception nobody meant becomes INTERNAL with a log line that has the traceback; its
text does not travel. Knows no service.

Every failure says in the trailing metadata :data:`OUTCOME_KEY` whether the call is known to have had no effect
(``definite``) or may have had one (``unknown``), which a client cannot tell from an UNAVAILABLE alone: its own
library makes those too. A StatusError with ``trailing_metadata`` (a sequence of pairs) adds its own, which is how
rich error details travel.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError, StoppedError
from controlplane.transport.around import AroundInterceptor, kind_of, respond
from controlplane.transport.metrics import MethodMetrics

__all__ = ["OUTCOME_DEFINITE", "OUTCOME_KEY", "OUTCOME_UNKNOWN", "StatusInterceptor"]

#: Trailing metadata of every failed call: whether it may have happened all the same.
OUTCOME_KEY: Final = "qd-outcome"
OUTCOME_UNKNOWN: Final = "unknown"
OUTCOME_DEFINITE: Final = "definite"

_log = logging.getLogger("quarterdeck.grpc")
_STATUS: Final = {status.value[0]: status for status in grpc.StatusCode}

_Context = grpc.aio.ServicerContext[Any, Any]
_Handler = Callable[[Any, _Context], Any]


class StatusInterceptor(AroundInterceptor):
    """Counts every RPC and gives every failure its status."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def around(self, method: str, handler: grpc.RpcMethodHandler[Any, Any], inner: Any) -> Any:
        """The handler, counted, its failures translated."""
        service, _, name = method.removeprefix("/").rpartition("/")
        metrics = MethodMetrics.of(service, name, kind_of(handler))
        wrap = _streaming if handler.response_streaming else _unary
        return wrap(inner, method, metrics, self._clock)


def _unary(inner: Any, path: str, metrics: MethodMetrics, clock: Clock) -> _Handler:
    async def handle(request: Any, context: _Context) -> Any:
        metrics.started()
        begin_s = clock.monotonic()
        try:
            response = await inner(request, context)
        except BaseException as error:
            await _fail(error, context, path, metrics, clock.monotonic() - begin_s)
            raise
        metrics.handled(_code_of(context), clock.monotonic() - begin_s)
        return response

    return handle


def _streaming(inner: Any, path: str, metrics: MethodMetrics, clock: Clock) -> _Handler:
    async def handle(request: Any, context: _Context) -> None:
        metrics.started()
        begin_s = clock.monotonic()
        try:
            await respond(inner, request, context)
        except BaseException as error:
            await _fail(error, context, path, metrics, clock.monotonic() - begin_s)
            raise
        metrics.handled(_code_of(context), clock.monotonic() - begin_s)

    return handle


async def _fail(error: BaseException, context: _Context, path: str, metrics: MethodMetrics, seconds: float) -> None:
    """Count first, so that whoever has seen the failure finds it counted."""
    metrics.handled(_code_for(error, context), seconds)
    await _abort(error, context, path)


def _code_of(context: _Context) -> int:
    """The code a handler set by itself; 0 when it set none."""
    code: Any = context.code()
    if isinstance(code, grpc.StatusCode):
        return int(code.value[0])
    return int(code or 0)


def _code_for(error: BaseException, context: _Context) -> int:
    if isinstance(error, StatusError):
        return int(error.code)
    if isinstance(error, StoppedError):
        return Code.UNAVAILABLE
    if isinstance(error, asyncio.CancelledError):
        return Code.CANCELLED
    if isinstance(error, grpc.aio.AbortError):
        return _code_of(context) or Code.UNKNOWN
    return Code.INTERNAL


async def _abort(error: BaseException, context: _Context, path: str) -> None:
    """End the RPC with the error's status, or return when grpc knows how to end it (cancelled, aborted already)."""
    if isinstance(error, StatusError):
        await context.abort(_STATUS[int(error.code)], error.message, _trailers(error))
    if isinstance(error, StoppedError):
        await context.abort(grpc.StatusCode.UNAVAILABLE, "etcdserver: server stopped")
    if isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
        _log.error("event=rpc_failed method=%s error=%s", path, type(error).__name__, exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, f"internal error in {path}; the replica's log has it")


def _trailers(error: StatusError) -> tuple[tuple[str, str | bytes], ...]:
    extra: Sequence[tuple[str, str | bytes]] = getattr(error, "trailing_metadata", ())
    outcome = OUTCOME_UNKNOWN if error.unknown_outcome else OUTCOME_DEFINITE
    return ((OUTCOME_KEY, outcome), *extra)
