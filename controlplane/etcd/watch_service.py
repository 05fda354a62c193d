"""etcdserverpb.Watch: many watches over one stream.

Owns the streams: what was created on each, which watches have something to send, and the order of what leaves. A watch
holds no events here: the store has the history, a watch has a position in it, and events are read when the stream is
ready to take them. So a slow client costs a position, never memory; when compaction overtakes it, it is told.

Per stream three tasks: one reads requests, one sends, one says when progress is due. None per watch.

Invariants:

- A watch's ``created`` answer leaves before its first event, and nothing leaves after its ``canceled``.
- A revision's events leave in one response, unless the client asked for fragments and they are too big.
- What is sent was permitted when it was read. A change of the auth store makes every watch be looked at again: one
  whose user may no longer read its keys is cut, before any event of a later revision. (etcd asks only when a watch is
  created.)
- The header revision of every response is one up to which this watch has been sent everything, so that a client may
  resume after it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from controlplane.base.clock import Clock
from controlplane.base.errors import StatusError
from controlplane.base.limits import REQUEST_BYTES_MAX, WATCH_BUFFER_EVENTS_MAX, WATCHERS_MAX
from controlplane.base.rand import Rand
from controlplane.etcd import metrics
from controlplane.etcd.authorizer import Authorizer
from controlplane.etcd.caller import Caller
from controlplane.etcd.context import Context
from controlplane.etcd.guard import LeaderGuard
from controlplane.etcd.local import LocalKV
from controlplane.etcd.together import together
from controlplane.pb.etcd import kv_pb2, rpc_pb2, rpc_pb2_grpc
from controlplane.store.errors import CompactedError, compacted
from controlplane.store.permissions import check_read
from controlplane.store.store import Store
from controlplane.store.watch import Watcher

__all__ = ["PROGRESS_EVERY_S", "WatchService", "fragments"]

#: How often an idle watch that asked for it is told the revision (etcd's --watch-progress-notify-interval).
PROGRESS_EVERY_S: Final = 600.0

#: Answers (created, canceled, progress) waiting to leave on one stream; beyond it requests wait unread.
_ANSWERS_MAX: Final = 1_000
#: Events of one response: adapted between these so that a response of big values stays near one request's size.
_BATCH_EVENTS_MIN: Final = 1
_BATCH_EVENTS_START: Final = 128
#: Responses kept for the next stream that is sent the same, and the largest that is: the events of bigger ones are not
#: shared either (``store.watch``).
_SHARED_RESPONSES_MAX: Final = 64
_SHARED_BYTES_MAX: Final = 20 * 1024


class _Watch:
    """One watch of a stream."""

    __slots__ = (
        "auth_changes",
        "batch_events",
        "fragment",
        "id",
        "idle",
        "progress_due",
        "progress_notify",
        "request",
        "user",
        "watcher",
    )

    def __init__(
        self, id: int, watcher: Watcher, request: rpc_pb2.WatchCreateRequest, user: str | None, auth_changes: int
    ) -> None:
        self.id = id
        self.watcher = watcher
        self.request = request
        self.user = user  # None: created while nobody had to say who they are
        self.auth_changes = auth_changes  # of the stream, when the permission was looked at last
        self.fragment = request.fragment
        self.progress_notify = request.progress_notify
        self.progress_due = False
        self.idle = True  # nothing was sent since the last progress tick
        self.batch_events = _BATCH_EVENTS_START


class WatchService(rpc_pb2_grpc.WatchServicer):
    """etcdserverpb.Watch."""

    def __init__(
        self,
        kv: LocalKV,
        store: Store,
        guard: LeaderGuard,
        authorizer: Authorizer,
        clock: Clock,
        rand: Rand,
        *,
        progress_every_s: float = PROGRESS_EVERY_S,
    ) -> None:
        self._kv = kv
        self._store = store
        self._guard = guard
        self._authorizer = authorizer
        self._clock = clock
        self._rand = rand
        self._progress_every_s = progress_every_s
        self._responses = _Responses(kv)

    async def Watch(self, requests: Any, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        """Serves one stream until the client, the server or a lost leader ends it."""
        self._guard.check(context, stream=True)
        stream = _Stream(self._kv, self._store, context, self._authorizer.caller(context), self._responses)
        metrics.WATCH_STREAMS.inc()
        try:
            await self._guard.serve(context, together(stream.read(requests), stream.send(), self._tick(stream)))
        finally:
            stream.close()
            metrics.WATCH_STREAMS.dec()

    async def _tick(self, stream: _Stream) -> None:
        while True:
            await self._clock.sleep(self._progress_every_s * (1 + 0.1 * self._rand.random()))
            stream.progress_tick()


class _Responses:
    """Responses with one event, shared by the streams that are sent the same: a thousand clients that watch one key,
    each with its first watch, get one message."""

    def __init__(self, kv: LocalKV) -> None:
        self._kv = kv
        # The event is kept beside the response, so its id names nothing else.
        self._known: dict[tuple[int, int, int, int], tuple[kv_pb2.Event, rpc_pb2.WatchResponse]] = {}

    def of(self, watch_id: int, revision: int, event: kv_pb2.Event) -> rpc_pb2.WatchResponse:
        """The response to send. Only to be read."""
        key = (watch_id, revision, self._kv.term, id(event))
        known = self._known.get(key)
        if known is not None:
            return known[1]
        response = rpc_pb2.WatchResponse(header=self._kv.header(revision), watch_id=watch_id, events=[event])
        if response.ByteSize() <= _SHARED_BYTES_MAX:
            if len(self._known) >= _SHARED_RESPONSES_MAX:
                self._known.clear()
            self._known[key] = event, response
        return response


class _Stream:
    """What one client stream watches, and what is to be sent on it."""

    def __init__(self, kv: LocalKV, store: Store, context: Context, caller: Caller, responses: _Responses) -> None:
        self._kv = kv
        self._store = store
        self._context = context
        self._caller = caller
        self._auth_changes = 0
        self._unlisten = store.auth.listen(self._on_auth)
        self._watches: dict[int, _Watch] = {}
        self._next_id = 0
        self._answers: deque[rpc_pb2.WatchResponse] = deque()
        self._answers_low = asyncio.Event()
        #: Watches with something to read, in the order they will be served (a dict as an ordered set).
        self._ready: dict[int, _Watch] = {}
        self._progress_asked = False
        self._responses = responses
        self._sleeper: asyncio.Future[None] | None = None

    # -- requests

    async def read(self, requests: Any) -> None:
        """Take requests until the client says it has no more; its watches go on."""
        async for request in requests:
            kind = request.WhichOneof("request_union")
            if kind == "create_request":
                await self._create(request.create_request)
            elif kind == "cancel_request":
                self._cancel(request.cancel_request.watch_id)
            elif kind == "progress_request":
                self._progress_asked = True
                self._wake()
            while len(self._answers) >= _ANSWERS_MAX:
                self._answers_low.clear()
                await self._answers_low.wait()

    async def _create(self, request: rpc_pb2.WatchCreateRequest) -> None:
        key = request.key = request.key or b"\x00"
        reason = compacted().message if request.start_revision < 0 else ""
        user = None
        if not reason:
            try:
                user = await self._permitted(request, None)
            except StatusError as error:
                reason = _in_words_of_go(error)
        reason = reason or self._refusal(request, key)
        if reason:
            self._answer(
                rpc_pb2.WatchResponse(
                    header=self._kv.header(), watch_id=-1, created=True, canceled=True, cancel_reason=reason
                )
            )
            return
        watch_id = request.watch_id or self._free_id()

        def wake() -> None:
            self._ready[watch_id] = watch
            self._wake()

        watcher = self._store.watches.create(
            key,
            request.range_end,
            request.start_revision,
            filters=request.filters,
            prev_kv=request.prev_kv,
            wake=wake,
        )
        watch = _Watch(watch_id, watcher, request, user, self._auth_changes)
        self._watches[watch_id] = watch
        self._answer(rpc_pb2.WatchResponse(header=self._kv.header(), watch_id=watch_id, created=True))
        wake()  # what is there already is not announced

    def _refusal(self, request: rpc_pb2.WatchCreateRequest, key: bytes) -> str:
        if request.range_end not in (b"", b"\x00") and request.range_end <= key:
            return "mvcc: watcher range is empty"
        if request.watch_id in self._watches and request.watch_id != 0:
            return "mvcc: duplicate watch ID provided on the WatchStream"
        if len(self._store.watches) >= WATCHERS_MAX:
            return f"quarterdeck: too many watches on this replica, the limit is {WATCHERS_MAX}"
        return ""

    async def _permitted(self, request: rpc_pb2.WatchCreateRequest, user: str | None) -> str | None:
        """On whose behalf this may be watched now; ``user``, once it is known. Raises: StatusError."""
        user = user or await self._caller.user()
        if user is not None and self._store.auth.enabled:
            check_read(self._store.auth, user, request.key, request.range_end)
        return user

    def _on_auth(self) -> None:
        """Who may do what has changed: look at every watch again before it gets anything more."""
        self._auth_changes += 1
        self._ready.update(self._watches)
        self._wake()

    async def _still_permitted(self, watch: _Watch) -> bool:
        """Whether the watch goes on; else it has been ended."""
        while watch.auth_changes != self._auth_changes:
            watch.auth_changes = self._auth_changes
            try:
                watch.user = await self._permitted(watch.request, watch.user)
            except StatusError as error:
                self._forget(watch.id)
                await self._context.write(
                    rpc_pb2.WatchResponse(
                        header=self._kv.header(),
                        watch_id=watch.id,
                        canceled=True,
                        cancel_reason=_in_words_of_go(error),
                    )
                )
                return False
        return True

    def _free_id(self) -> int:
        while self._next_id in self._watches:
            self._next_id += 1
        watch_id = self._next_id
        self._next_id += 1
        return watch_id

    def _cancel(self, watch_id: int) -> None:
        if self._forget(watch_id):
            self._answer(rpc_pb2.WatchResponse(header=self._kv.header(), watch_id=watch_id, canceled=True))

    def _forget(self, watch_id: int) -> bool:
        watch = self._watches.pop(watch_id, None)
        if watch is None:
            return False
        watch.watcher.cancel()
        self._ready.pop(watch_id, None)
        return True

    def close(self) -> None:
        """Stop watching."""
        self._unlisten()
        for watch_id in tuple(self._watches):
            self._forget(watch_id)

    def progress_tick(self) -> None:
        """Time to tell idle watches the revision."""
        for watch in self._watches.values():
            if watch.progress_notify:
                watch.progress_due = watch.idle
                watch.idle = True
                if watch.progress_due:
                    self._ready[watch.id] = watch
        self._wake()

    def _answer(self, response: rpc_pb2.WatchResponse) -> None:
        self._answers.append(response)
        self._wake()

    def _wake(self) -> None:
        """There is something to send. Not an asyncio.Event: this is what an event costs each watcher."""
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None and not sleeper.done():
            sleeper.set_result(None)

    # -- sending

    async def send(self) -> None:
        """Send answers first, then each ready watch its next batch, in turn."""
        loop = asyncio.get_running_loop()
        while True:
            if not (self._answers or self._ready or self._progress_asked):
                self._sleeper = loop.create_future()
                await self._sleeper
            while self._answers or self._ready:
                while self._answers:
                    await self._context.write(self._answers.popleft())
                self._answers_low.set()
                if self._ready:
                    watch_id = next(iter(self._ready))
                    await self._serve(self._ready.pop(watch_id))
            if self._progress_asked:  # nothing is ready: every watch of the stream has all there is
                self._progress_asked = False
                await self._context.write(rpc_pb2.WatchResponse(header=self._kv.header(), watch_id=-1))

    async def _serve(self, watch: _Watch) -> None:
        """One batch of one watch."""
        if watch.auth_changes != self._auth_changes and not await self._still_permitted(watch):
            return
        try:
            batch = watch.watcher.poll(watch.batch_events)
        except CompactedError as error:
            self._forget(watch.id)
            header = self._kv.header()
            header.revision = 0  # as etcd: this answer says nothing of how far the watch came
            await self._context.write(
                rpc_pb2.WatchResponse(
                    header=header,
                    watch_id=watch.id,
                    canceled=True,
                    compact_revision=error.compact_revision,
                )
            )
            return
        if not watch.watcher.synced:
            self._ready[watch.id] = watch  # at the end of the queue: the others first
        progress = watch.watcher.progress
        if not batch:
            if watch.progress_due and watch.watcher.synced:
                watch.progress_due = False
                header = self._kv.header(progress)
                await self._context.write(rpc_pb2.WatchResponse(header=header, watch_id=watch.id))
            else:
                await asyncio.sleep(0)  # a long stretch of history without an event for it
            return
        watch.idle = watch.progress_due = False
        events = batch[0][1] if len(batch) == 1 else [event for _, events in batch for event in events]
        metrics.WATCH_EVENTS.inc(len(events))
        if len(events) == 1:
            await self._context.write(self._responses.of(watch.id, progress, events[0]))
            return
        response = rpc_pb2.WatchResponse(header=self._kv.header(progress), watch_id=watch.id, events=events)
        size_bytes = response.ByteSize()
        if size_bytes >= REQUEST_BYTES_MAX:
            watch.batch_events = max(_BATCH_EVENTS_MIN, watch.batch_events // 2)
        else:
            watch.batch_events = min(WATCH_BUFFER_EVENTS_MAX, watch.batch_events * 2)
        if watch.fragment and size_bytes >= REQUEST_BYTES_MAX:
            for piece in fragments(response, REQUEST_BYTES_MAX):
                await self._context.write(piece)
        else:
            await self._context.write(response)


def _in_words_of_go(error: StatusError) -> str:
    """As etcd, where the reason of a cancellation is what Go prints for a gRPC error; clients look for texts in it."""
    code = error.code.name.title().replace("_", "")
    return f"rpc error: code = {code} desc = {error.message}"


def fragments(response: rpc_pb2.WatchResponse, bytes_max: int) -> Iterator[rpc_pb2.WatchResponse]:
    """The response in pieces below ``bytes_max`` where events allow it; all but the last say ``fragment``."""
    piece: list[kv_pb2.Event] = []
    size_bytes = 0
    for event in response.events:
        event_bytes = event.ByteSize() + 8  # and its tag and length
        if piece and size_bytes + event_bytes >= bytes_max:
            yield _piece(response, piece, more=True)
            piece, size_bytes = [], 0
        piece.append(event)
        size_bytes += event_bytes
    yield _piece(response, piece, more=False)


def _piece(response: rpc_pb2.WatchResponse, events: list[kv_pb2.Event], *, more: bool) -> rpc_pb2.WatchResponse:
    return rpc_pb2.WatchResponse(header=response.header, watch_id=response.watch_id, fragment=more, events=events)
