"""Requests between replicas and their answers, as frames on links that carry one direction each.

Owns the requests that wait for an answer, the channels that are served, and how many requests of one peer are handled
at once. Must not know connections, or what a payload means: frames leave by ``send``.

- Every request ends: answered, at its deadline, or when the link it left on breaks.
- An answer that comes late, or from another peer than was asked, is dropped.
- Whatever a handler raises reaches the asking peer as a typed error; this replica goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine

from controlplane.base.errors import Code, StatusError
from controlplane.base.limits import FRAME_BYTES_MAX
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import CallRequest, CallResponse, Frame

__all__ = ["CallHandler", "PeerCalls"]

_log = logging.getLogger("quarterdeck.peer")

#: Takes the asking peer's name and the payload.
CallHandler = Callable[[str, bytes], Awaitable[bytes]]

#: Requests of one peer being handled.
_CALLS_MAX = 256
_CALL_BYTES_MAX = FRAME_BYTES_MAX // 2


class PeerCalls:
    """The requests of one replica, both ways.

    Args:
        me: this replica's name, for what it says.
        first_id: the first request has the number after it; another one in each life, so no old answer fits.
        send: queues a frame on the link to a peer; False when it was dropped.
        name: what to call a peer.
        spawn: runs the handling of a request beside the caller.
    """

    def __init__(
        self,
        *,
        me: str,
        first_id: int,
        send: Callable[[int, Frame], bool],
        name: Callable[[int], str],
        spawn: Callable[[Coroutine[None, None, None]], object],
    ) -> None:
        self._me = me
        self._last_id = first_id
        self._send = send
        self._name = name
        self._spawn = spawn
        self._handlers: dict[str, CallHandler] = {}
        #: Request -> the peer that was asked, and who waits.
        self._waiting: dict[int, tuple[int, asyncio.Future[bytes]]] = {}
        #: Peer -> requests of it being handled.
        self._answering: defaultdict[int, int] = defaultdict(int)

    def serve(self, channel: str, handler: CallHandler) -> None:
        """Answer peers' requests on ``channel``."""
        self._handlers[channel] = handler

    async def call(self, peer_id: int, channel: str, payload: bytes, *, timeout_ms: int) -> bytes:
        """Ask a peer.

        Raises:
            StatusError: Unavailable when there is no link or it breaks, DeadlineExceeded, ResourceExhausted when the
                payload exceeds a frame, or what the handler raised.
        """
        _check_payload(payload)
        self._last_id += 1
        call_id = self._last_id
        request = CallRequest(id=call_id, channel=channel, payload=payload)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = (peer_id, future)
        try:
            if not self._send(peer_id, Frame(call_request=request)):
                raise StatusError(Code.UNAVAILABLE, f"no link to {self._name(peer_id)}")
            async with asyncio.timeout(timeout_ms / 1000):
                return await future
        except TimeoutError as error:
            text = f"{self._name(peer_id)} did not answer on {channel} within {timeout_ms} ms"
            raise StatusError(Code.DEADLINE_EXCEEDED, text) from error
        finally:
            self._waiting.pop(call_id, None)

    def on_request(self, peer_id: int, request: CallRequest) -> None:
        """A peer asks: handle it, or say that it asks too much at once."""
        if self._answering[peer_id] >= _CALLS_MAX:
            refused = CallResponse(id=request.id, code=Code.RESOURCE_EXHAUSTED, error="too many requests of this peer")
            self._send(peer_id, Frame(call_response=refused))
            return
        self._answering[peer_id] += 1
        self._spawn(self._answer(peer_id, request))

    def on_response(self, peer_id: int, response: CallResponse) -> None:
        """A peer answers: hand it to who waits."""
        asked, future = self._waiting.get(response.id, (0, None))
        if future is None or asked != peer_id or future.done():
            return  # too late, or not asked of this peer
        if response.code == Code.OK:
            future.set_result(response.payload)
        else:
            code = Code(response.code) if response.code in Code._value2member_map_ else Code.UNKNOWN
            future.set_exception(StatusError(code, response.error))

    def link_broke(self, peer_id: int) -> None:
        """What was asked of the peer will not be answered."""
        for asked, future in self._waiting.values():
            if asked == peer_id and not future.done():
                future.set_exception(StatusError(Code.UNAVAILABLE, f"the link to {self._name(peer_id)} broke"))

    def stop(self) -> None:
        """Nothing will be answered any more."""
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(StatusError(Code.UNAVAILABLE, "replica is stopping"))
        self._waiting.clear()

    async def _answer(self, peer_id: int, request: CallRequest) -> None:
        response = CallResponse(id=request.id)
        handler = self._handlers.get(request.channel)
        try:
            if handler is None:
                raise StatusError(Code.UNIMPLEMENTED, f"{self._me} serves no channel {request.channel[:64]!r}")
            payload = await handler(self._name(peer_id), request.payload)
            _check_payload(payload)
            response.payload = payload
        except StatusError as error:
            response.code, response.error = error.code, error.message
        except Exception as error:  # noqa: BLE001 - the asking replica is told; ours goes on and says so
            _log.exception("peer request failed channel=%s peer=%s", request.channel, self._name(peer_id))
            response.code, response.error = Code.INTERNAL, f"{type(error).__name__}: {error}"
        finally:
            self._answering[peer_id] -= 1
        self._send(peer_id, Frame(call_response=response))


def _check_payload(payload: bytes) -> None:
    if len(payload) > _CALL_BYTES_MAX:
        raise StatusError(
            Code.RESOURCE_EXHAUSTED, f"message of {len(payload)} bytes to a peer: want at most {_CALL_BYTES_MAX}"
        )
