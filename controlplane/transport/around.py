"""Interceptors that put something around the handler of each method, once per method.

Owns the memory of what was wrapped and the choice among grpc's four kinds of handlers. Must not know what is put around
them: subclasses say it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc

__all__ = ["AroundInterceptor", "kind_of", "respond"]

_MAKE: Final[dict[tuple[bool, bool], Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
#: As grpc's metrics call them.
_KINDS: Final = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}


def kind_of(handler: grpc.RpcMethodHandler[Any, Any]) -> str:
    """``unary``, ``client_stream``, ``server_stream`` or ``bidi_stream``."""
    return _KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]


class AroundInterceptor(grpc.aio.ServerInterceptor):
    """See the module. One per server."""

    #: What it returns depends on the method alone: a server may keep it.
    per_method = True

    def __init__(self) -> None:
        self._wrapped: dict[str, tuple[object, grpc.RpcMethodHandler[Any, Any]]] = {}

    @abstractmethod
    def around(self, method: str, handler: grpc.RpcMethodHandler[Any, Any], inner: Any) -> Any:
        """What is called in place of ``inner``, the handler's function, with the same two arguments. One that streams
        responses writes them to its context (see :func:`respond`)."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:  # unknown methods are left alone: their names are the caller's to invent
            return None
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(method, handler))
        return known[1]

    def _wrap(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        if handler.response_streaming:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
        else:
            inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
        make = _MAKE[bool(handler.request_streaming), bool(handler.response_streaming)]
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(
            self.around(method, handler, inner),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return wrapped


async def respond(inner: Any, request: Any, context: Any) -> None:
    """Call a handler that streams responses, in either of grpc's styles, and write what it yields to the context, which
    waits for flow control."""
    result = inner(request, context)
    if hasattr(result, "__aiter__"):
        async for response in result:
            await context.write(response)
    else:
        await result
