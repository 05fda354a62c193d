"""Runs a handler for a stream: one task a call.

Owns the way from a message to a handler and from its outcome to a status. Knows no frames.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import grpc

from controlplane.transport.h2.context import Context, RequestIterator
from controlplane.transport.h2.stream import Stream

__all__ = ["serve"]

_log = logging.getLogger("quarterdeck.grpc")

_CANCELLED: Final = 1
_UNKNOWN: Final = 2
_UNIMPLEMENTED: Final = 12
_INTERNAL: Final = 13


async def serve(stream: Stream) -> None:
    """One call from its first message (unary request) or its headers (streamed requests) to its status."""
    method = stream.method
    handler: Any = method.resolved
    context: Context | None = None
    try:
        if handler is None:
            handler = await method.resolve(stream.request)
            if handler is None:
                stream.finish(_UNIMPLEMENTED, f"unknown method {stream.request.method[:256]}", ())
                return
        context = Context(stream, handler.request_deserializer, handler.response_serializer)
        if method.request_streaming:
            request: Any = RequestIterator(context)
        else:
            request = _parse(stream, handler)
            if request is None:
                return
        if handler.response_streaming:
            await _stream_out(handler, request, context)
            stream.finish(*context.status())
        else:
            await _one_out(handler, request, context, stream)
    except asyncio.CancelledError:
        stream.finish(_CANCELLED, "the call was cancelled", ())  # no effect if the caller or the front ended it
        raise
    except grpc.aio.AbortError:
        stream.finish(*(context.status() if context is not None else (_UNKNOWN, "", ())))
    except Exception as error:  # noqa: BLE001 - a handler's bug ends its call, not the server
        _log.exception("event=rpc_failed method=%s", stream.request.method)
        stream.finish(_UNKNOWN, f"Unexpected {type(error).__name__}", ())
    finally:
        stream.task = None
        if context is not None:
            context.ended()


def _parse(stream: Stream, handler: Any) -> Any:
    message = stream.take()
    if handler.request_deserializer is None:
        return message
    try:
        return handler.request_deserializer(message)
    except Exception as error:  # noqa: BLE001 - whatever a parser raises, the caller's bytes are at fault
        stream.finish(_INTERNAL, f"grpc: error unmarshalling request: {type(error).__name__}", ())
        return None


async def _one_out(handler: Any, request: Any, context: Context, stream: Stream) -> None:
    response = (handler.stream_unary if handler.request_streaming else handler.unary_unary)(request, context)
    if hasattr(response, "__await__"):
        response = await response
    if isinstance(response, list):
        stream.send_pieces(response)
        stream.finish(*context.status())
        return
    payload = response if handler.response_serializer is None else handler.response_serializer(response)
    code, details, trailing = context.status()
    if code or details or trailing:
        stream.send(payload)
        stream.finish(code, details, trailing)
    else:
        stream.respond(payload)


async def _stream_out(handler: Any, request: Any, context: Context) -> None:
    responses = (handler.stream_stream if handler.request_streaming else handler.unary_stream)(request, context)
    if hasattr(responses, "__aiter__"):
        async for response in responses:
            await context.write(response)
    else:
        await responses
