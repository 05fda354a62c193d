"""Watches on an etcd cluster that outlive its members: one stream at a time, resumed where it ended.

Owns the place: the revision from which the next stream has to begin. Invariants: the place only moves forward, past
what was handed on or what etcd has said holds nothing for this watch; an event before the place is never handed on.
Together: gap-free and without repetition, over any number of streams.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

import grpc

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import Rand
from controlplane.client.backoff import Backoff
from controlplane.external import metrics
from controlplane.external.connection import RETRIED, Connection
from controlplane.pb.etcd import rpc_pb2
from controlplane.pb.etcd.rpc_pb2_grpc import WatchStub

__all__ = ["follow"]

_log = logging.getLogger("quarterdeck.store")
_TOKEN_TEXT: Final = "etcdserver: invalid auth token"  # noqa: S105 - etcd's words


async def follow(
    connection: Connection,
    request: rpc_pb2.WatchCreateRequest,
    *,
    clock: Clock,
    rand: Rand,
    progress_every_s: float,
    progress_is_sound: Callable[[str], Awaitable[bool]],
) -> AsyncGenerator[rpc_pb2.WatchResponse, None]:
    """The responses of one watch for as long as it is read. A response's header names the place it leads to.

    Args:
        progress_is_sound: whether a member's answers to progress requests may be believed.

    Raises:
        StatusError: etcd refuses, for a reason that another attempt would meet too.
    """
    create = rpc_pb2.WatchCreateRequest()
    create.CopyFrom(request)
    backoff = Backoff(rand, base_s=0.02, cap_s=0.5)
    opened = False
    while True:
        endpoint, token, asking = "", "", None
        call: Any = None
        try:
            endpoint, call, token = await connection.stream(WatchStub, "Watch")
            await call.write(rpc_pb2.WatchRequest(create_request=create))
            if request.progress_notify and await progress_is_sound(endpoint):
                asking = asyncio.create_task(_ask_for_progress(call, clock, progress_every_s))
            async for response in call:
                if response.canceled and response.cancel_reason.startswith(_TOKEN_TEXT):
                    connection.forget_stale(response.cancel_reason, token)
                    raise StatusError(Code.UNAVAILABLE, response.cancel_reason)
                backoff.reset()
                handed = _advance(create, response)
                if handed is not None:
                    yield handed
                    if handed.canceled:
                        return
            raise StatusError(Code.UNAVAILABLE, f"etcd member {endpoint} ended the watch")
        except (grpc.aio.AioRpcError, StatusError) as error:
            failure = error
            if isinstance(error, grpc.aio.AioRpcError):
                failure = connection.failure(endpoint, error, write=False, token=token)
            if failure.code not in RETRIED:
                raise failure from error
            level = logging.INFO if opened else logging.DEBUG
            _log.log(
                level, "event=watch-resumes key=%r revision=%d reason=%s", create.key, create.start_revision, failure
            )
        finally:
            if asking is not None:
                asking.cancel()
            if call is not None:
                call.cancel()
        opened = True
        metrics.WATCH_RESUMES.inc()
        await clock.sleep(backoff.next_s())


def _advance(create: rpc_pb2.WatchCreateRequest, response: rpc_pb2.WatchResponse) -> rpc_pb2.WatchResponse | None:
    """Move the place (``create.start_revision``) past a response; what of it is to be handed on, if anything."""
    revision = response.header.revision
    if response.canceled:
        return response
    if response.created:
        # "From now on" is from this revision on, also when this stream ends before its first event.
        create.start_revision = create.start_revision or revision + 1
        return None
    if not response.events:
        if revision < create.start_revision:
            return None
        create.start_revision = revision + 1
        return response if create.progress_notify else None
    fresh = [event for event in response.events if event.kv.mod_revision >= create.start_revision]
    if not fresh:
        return None
    create.start_revision = fresh[-1].kv.mod_revision + 1
    handed = rpc_pb2.WatchResponse(header=response.header, watch_id=response.watch_id, events=fresh)
    handed.header.revision = create.start_revision - 1
    return handed


async def _ask_for_progress(call: Any, clock: Clock, every_s: float) -> None:
    """Ends with the stream, which is where a failure of it is met."""
    while True:
        await clock.sleep(every_s)
        try:
            await call.write(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return
