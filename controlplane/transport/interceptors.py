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
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import grpc

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError, StoppedError
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


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Counts every RPC and gives every failure its status. One per server."""

    #: What it returns depends on the method alone: a server may keep it.
    per_method = True

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wrapped: dict[str, tuple[object, grpc.RpcMethodHandler[Any, Any]]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:  # unknown methods are not counted by name: their names are the caller's to invent
            return None
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(method, handler))
        return known[1]

    def _wrap(self, path: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        service, _, method = path.removeprefix("/").rpartition("/")
        if handler.response_streaming:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            kind = "bidi_stream" if handler.request_streaming else "server_stream"
            make: Any = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
        else:
            inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
            kind = "client_stream" if handler.request_streaming else "unary"
            make = (
                grpc.stream_unary_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_unary_rpc_method_handler
            )
        metrics = MethodMetrics.of(service, method, kind)
        wrap = _streaming if handler.response_streaming else _unary
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(
            wrap(inner, path, metrics, self._clock),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return wrapped


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
    # Written with context.write, which waits for flow control, so that both styles of handler pass through here.
    async def handle(request: Any, context: _Context) -> None:
        metrics.started()
        begin_s = clock.monotonic()
        try:
            result = inner(request, context)
            if hasattr(result, "__aiter__"):
                async for response in result:
                    await context.write(response)
            else:
                await result
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
