"""What a handler sees of its call: ``grpc.aio.ServicerContext`` over a stream.

Owns the status a handler set, its trailing metadata, and the shape grpc.aio gives to everything. Knows no frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import grpc

from controlplane.transport.h2.request import Metadata
from controlplane.transport.h2.stream import SEND_AHEAD_BYTES, Stream

__all__ = ["Context", "RequestIterator"]

#: A handler that is never made to wait still lets others run, after so many bytes.
_YIELD_BYTES = SEND_AHEAD_BYTES


class Context(grpc.aio.ServicerContext[Any, Any]):
    """One call. Where grpc.aio documents a behaviour, this is it; compression is not offered."""

    #: A unary handler may return a list of bytes: its response, serialized already, in pieces.
    takes_pieces = True

    def __init__(
        self,
        stream: Stream,
        deserialize: Callable[[bytes], Any] | None,
        serialize: Callable[[Any], bytes] | None,
    ) -> None:
        self._stream = stream
        self._deserialize = deserialize
        self._serialize = serialize
        self._code: Any = 0
        self._details = ""
        self._trailing: Metadata = ()
        self._callbacks: list[Callable[[Any], None]] | None = None
        self._unyielded = 0
        self._ended = False

    # -- messages

    async def read(self) -> Any:
        """The next request message, or ``grpc.aio.EOF``."""
        message = await self._stream.next_message()
        if message is None:
            return grpc.aio.EOF
        return message if self._deserialize is None else self._deserialize(message)

    async def write(self, message: Any) -> None:
        """Send one response message; waits while the peer reads more slowly than this.

        Raises:
            asyncio.CancelledError: the call is over.
        """
        stream = self._stream
        if stream.closed:
            raise asyncio.CancelledError
        payload = message if self._serialize is None else self._serialize(message)
        stream.send(payload)
        if stream.queued > SEND_AHEAD_BYTES:
            self._unyielded = 0
            await stream.drained()
        else:
            self._unyielded += len(payload) + 256
            if self._unyielded > _YIELD_BYTES:
                self._unyielded = 0
                await asyncio.sleep(0)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        self._stream.send_headers(tuple(initial_metadata))

    # -- status

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """End the call with this status.

        Raises:
            grpc.aio.AbortError: always; the handler must let it pass.
        """
        if code is grpc.StatusCode.OK:
            code, details = grpc.StatusCode.UNKNOWN, "a handler aborted with OK"
        self._code, self._details = code, details
        if trailing_metadata:
            self._trailing = tuple(trailing_metadata)
        raise grpc.aio.AbortError("Locally aborted.")

    async def abort_with_status(self, status: Any) -> NoReturn:
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._trailing = tuple(trailing_metadata)

    def trailing_metadata(self) -> Any:
        return self._trailing

    def set_code(self, code: Any) -> None:
        self._code = code

    def code(self) -> Any:
        return self._code

    def set_details(self, details: str) -> None:
        self._details = details

    def details(self) -> str:
        return self._details

    def status(self) -> tuple[int, str, Metadata]:
        """What the handler set: code as a number, details, trailing metadata."""
        code = self._code
        return (code.value[0] if isinstance(code, grpc.StatusCode) else int(code)), self._details, self._trailing

    # -- the caller

    def invocation_metadata(self) -> Any:
        return self._stream.request.metadata

    def time_remaining(self) -> Any:
        """Seconds until the caller's deadline; None without one."""
        timeout_s, timer = self._stream.request.timeout_s, self._stream.timer
        if timeout_s is None:
            return None
        return max(0.0, timer.when() - asyncio.get_running_loop().time()) if timer is not None else 0.0

    def peer(self) -> str:
        return self._stream.connection.peer

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:  # type: ignore[override, unused-ignore]
        return self._stream.connection.auth_context()

    def peer_identity_key(self) -> str | None:
        auth = self.auth_context()
        return next((key for key in ("x509_subject_alternative_name", "x509_common_name") if key in auth), None)

    def peer_identities(self) -> Iterable[bytes] | None:
        key = self.peer_identity_key()
        return None if key is None else self.auth_context()[key]

    # -- life

    def cancelled(self) -> bool:
        return self._stream.closed and not self._ended

    def done(self) -> bool:
        return self._ended or self._stream.closed

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append(callback)

    def ended(self) -> None:
        """The handler has returned or failed."""
        self._ended = True
        for callback in self._callbacks or ():
            callback(self)

    def set_compression(self, compression: Any) -> None:
        """Messages are never compressed."""

    def disable_next_message_compression(self) -> None:
        """Messages are never compressed."""


class RequestIterator:
    """A request stream as handlers take it."""

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    def __aiter__(self) -> RequestIterator:
        return self

    async def __anext__(self) -> Any:
        message = await self._context.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message
