"""gRPC services called in this process: the table of what a server serves, without a socket.

Owns the look-up from a method's full name to its handler, behind the interceptors a server would put before it, and a
stand-in for the context that grpc hands to a handler. Used by fronts that speak something else than gRPC (the JSON
gateway). Knows no service.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc

__all__ = ["Both", "HandlerTable", "LocalContext"]

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True, slots=True)
class _Details:
    """grpc.HandlerCallDetails, as interceptors and generic handlers read it."""

    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...]


class HandlerTable:
    """Takes services like a server does (``add_XServicer_to_server(servicer, table)``) and finds their handlers."""

    def __init__(self, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> None:
        """The first interceptor sees a call first, as in a server."""
        self._generic: list[Any] = []
        self._interceptors = tuple(interceptors)

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Called by generated code."""
        self._generic += handlers

    def add_registered_method_handlers(self, service_name: str, method_handlers: object) -> None:
        """Called by generated code with what :meth:`add_generic_rpc_handlers` was given already."""

    async def find(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> _Handler | None:
        """The handler of ``/package.Service/Method``, wrapped by the interceptors; None if nothing serves it."""
        details = _Details(method, tuple(metadata))

        async def bottom(asked: Any) -> _Handler | None:
            for generic in self._generic:
                handler: _Handler | None = generic.service(asked)
                if handler is not None:
                    return handler
            return None

        step: Callable[[Any], Awaitable[_Handler | None]] = bottom
        for interceptor in reversed(self._interceptors):
            step = _behind(interceptor, step)
        return await step(details)


class Both:
    """Adds services to two servers at once: the gRPC port's, and a table."""

    def __init__(self, *servers: Any) -> None:
        self._servers = servers

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Called by generated code."""
        for server in self._servers:
            server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        """Called by generated code."""
        for server in self._servers:
            server.add_registered_method_handlers(service_name, method_handlers)


def _behind(
    interceptor: grpc.aio.ServerInterceptor, rest: Callable[[Any], Awaitable[_Handler | None]]
) -> Callable[[Any], Awaitable[_Handler | None]]:
    async def step(details: Any) -> _Handler | None:
        return await interceptor.intercept_service(rest, details)

    return step


@dataclass(slots=True)
class LocalContext:
    """What a handler sees of a call made in this process: the part of ``grpc.aio.ServicerContext`` that ours use.

    Attributes:
        metadata: what came beside the request.
        writer: takes each message of a response stream, and waits while the receiver is slow.
        peer_name: who calls, for logs.
        auth: the caller's certificate in the shape of ``auth_context()``; empty without one.
        remaining_s: until the caller's deadline; None without one.
    """

    metadata: tuple[tuple[str, str | bytes], ...]
    writer: Callable[[Any], Awaitable[None]] | None = None
    peer_name: str = "local"
    auth: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    remaining_s: float | None = None
    status: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    trailing: tuple[tuple[str, str | bytes], ...] = ()

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self.metadata

    def time_remaining(self) -> float | None:
        return self.remaining_s

    def peer(self) -> str:
        return self.peer_name

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        return self.auth

    def code(self) -> grpc.StatusCode:
        return self.status

    def set_code(self, code: grpc.StatusCode) -> None:
        self.status = code

    def set_details(self, details: str) -> None:
        self.message = details

    def set_trailing_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        self.trailing = tuple(metadata)

    async def send_initial_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """A call in this process has no use for it."""

    async def write(self, message: Any) -> None:
        if self.writer is None:
            raise TypeError("a unary call writes no stream")
        await self.writer(message)

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[tuple[str, str | bytes]] = ()
    ) -> None:
        """End the call.

        Raises:
            grpc.aio.AbortError: always; the status is in :attr:`status` and :attr:`message`.
        """
        self.status, self.message, self.trailing = code, details, tuple(trailing_metadata)
        raise grpc.aio.AbortError(details)
