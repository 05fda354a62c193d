"""The node session: one stream to one replica, kept alive, moved when that replica dies or stops answering.

Owns endpoints, heartbeats and the delivery of statuses; decides nothing about pods. A session ends when the stream
breaks, when a heartbeat has had no answer for :data:`SILENCE_MAX_S`, or when statuses were not stored for
:data:`STATUS_ACK_MAX_S`; then the next replica is tried after a short random pause, so that the agents of a dead
replica do not all arrive in one instant. When no replica can be had, it tries for ever, at most a second apart: the
pods run on meanwhile and know nothing of it.

Invariant: a broken session is never a reason to stop a pod. Handlers are only called with what a replica said.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import grpc

from controlplane.base.aio import run_until_first, wait_event
from controlplane.base.clock import Clock
from controlplane.base.errors import QuarterdeckError
from controlplane.base.limits import GRPC_RECV_BYTES_MAX
from controlplane.base.rand import Rand
from controlplane.client.backoff import Backoff
from controlplane.client.tls import Credentials, credentials_now
from controlplane.pb.quarterdeck.v1.node_pb2 import (
    AgentMessage,
    Assignments,
    Goodbye,
    Heartbeat,
    Hello,
    PodStatusReport,
    ReplicaMessage,
    Welcome,
)
from controlplane.pb.quarterdeck.v1.node_pb2_grpc import NodesStub
from node import metrics
from node.outbox import StatusOutbox

if TYPE_CHECKING:
    _Call = grpc.aio.StreamStreamCall[AgentMessage, ReplicaMessage]

__all__ = ["NodeSession", "SessionEndedError", "SessionHandler"]

log = logging.getLogger("quarterdeck.session")

#: A heartbeat unanswered for so long: the replica is dead, paused or cut off.
SILENCE_MAX_S: Final = 1.0
#: A connection and the Welcome must come within these.
CONNECT_MAX_S: Final = 1.0
WELCOME_MAX_S: Final = 2.0
#: Statuses not stored for so long: the replica may have no quorum; another may.
STATUS_ACK_MAX_S: Final = 5.0
#: Statuses are collected for so long before they are sent.
COALESCE_S: Final = 0.02
#: The pause before the first move is drawn from 0 to this.
MOVE_JITTER_S: Final = 0.2
RETRY_CAP_S: Final = 1.0
#: The loop was not run for so long (a stopped process, a starved machine): silence counts from now.
_OWN_PAUSE_S: Final = 0.5

_CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 16 * GRPC_RECV_BYTES_MAX),
    ("grpc.max_send_message_length", 16 * GRPC_RECV_BYTES_MAX),
    ("grpc.enable_retries", 0),
    # Every session its own connection: a shared subchannel would carry its back-off over to the next attempt.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


T = TypeVar("T")


class SessionEndedError(QuarterdeckError):
    """This session is over; the message says why."""


class SessionHandler(Protocol):
    """What an agent does with what replicas say. Called on the loop; must not block."""

    def hello(self) -> Hello:
        """The agent as it is now."""
        ...

    def welcomed(self, welcome: Welcome) -> None: ...

    def assigned(self, assignments: Assignments) -> None: ...


class NodeSession:
    """Keeps one session, on whichever replica answers.

    Args:
        endpoints: ``host:port`` of replicas known at start; a Welcome's list is added.
        handler: the agent.
        credentials: this node's certificate; None speaks plainly.
        discover: whether the Welcome's list is added.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        handler: SessionHandler,
        *,
        clock: Clock,
        rand: Rand,
        credentials: Credentials | None = None,
        discover: bool = True,
    ) -> None:
        self._discover = discover
        self._endpoints = list(dict.fromkeys(endpoints))
        self._handler = handler
        self._credentials = credentials
        self._clock = clock
        self._rand = rand
        self._backoff = Backoff(rand, base_s=0.1, cap_s=RETRY_CAP_S)
        self.outbox = StatusOutbox()
        self._to_send = asyncio.Event()
        self._changed = asyncio.Event()
        self._goodbye: Goodbye | None = None
        self.replica = ""
        self._last_contact_s = clock.monotonic()

    @property
    def connected(self) -> bool:
        return bool(self.replica)

    @property
    def silent_s(self) -> float:
        """Seconds since a replica was last heard."""
        return self._clock.monotonic() - self._last_contact_s

    def report(self, report: PodStatusReport) -> None:
        """Tell the control plane of a pod, now or as soon as there is one."""
        if self.outbox.put(report):
            self._to_send.set()

    def drop(self, uid: str) -> None:
        """Say no more about a pod."""
        self.outbox.drop(uid)

    async def settle(self, timeout_s: float) -> bool:
        """Wait until every report is stored, if a replica takes them in time."""
        deadline = self._clock.monotonic() + timeout_s
        while not self.outbox.settled:
            remaining_s = deadline - self._clock.monotonic()
            self._changed.clear()
            if remaining_s <= 0 or not await wait_event(self._changed, self._clock, remaining_s):
                return False
        return True

    def say_goodbye(self, goodbye: Goodbye) -> None:
        """End the session in good order: :meth:`run` returns."""
        self._goodbye = goodbye
        self._to_send.set()

    async def run(self) -> None:
        """Hold sessions until goodbye is said, or cancelled."""
        order = self._shuffled()
        failures = 0
        while self._goodbye is None:
            endpoint = order.pop(0)
            try:
                await self._hold(endpoint)
            except SessionEndedError as ended:
                held = bool(self.replica)
                self.replica = ""
                metrics.SESSION_MOVES.inc()
                log.warning("session ended endpoint=%s why=%s", endpoint, ended)
                if held:
                    failures = 0
                    self._backoff.reset()
                    order = [e for e in self._shuffled() if e != endpoint]
                order.append(endpoint)
            failures += 1
            if failures <= len(self._endpoints):
                # A round over all replicas is quick: most likely only one of them is gone.
                await self._pause(self._rand.random() * (MOVE_JITTER_S if failures == 1 else MOVE_JITTER_S / 4))
            else:
                await self._pause(self._backoff.next_s())

    async def _pause(self, seconds: float) -> None:
        if self._goodbye is None:
            await self._clock.sleep(seconds)

    def _shuffled(self) -> list[str]:
        keyed = [(self._rand.random(), endpoint) for endpoint in self._endpoints]
        return [endpoint for _, endpoint in sorted(keyed)]

    async def _hold(self, endpoint: str) -> None:
        """One session from connect to end. Returns after a goodbye; raises SessionEndedError otherwise."""
        async with _stream(endpoint, self._clock, self._credentials) as call:
            try:
                await call.write(AgentMessage(hello=self._handler.hello()))
                welcome = await _within(self._clock, WELCOME_MAX_S, call.read(), "no welcome")
                if not isinstance(welcome, ReplicaMessage) or not welcome.HasField("welcome"):
                    raise SessionEndedError("the first answer was no welcome")
                self._begin(endpoint, welcome.welcome)
                await _Live(self, call, welcome.welcome.heartbeat_interval_ms / 1000).run()
                await call.done_writing()
                # The replica closes when it has read the goodbye.
                await _within(self._clock, SILENCE_MAX_S, call.read(), "no end after goodbye")
            except grpc.aio.AioRpcError as error:
                raise SessionEndedError(f"{error.code().name}: {error.details()}") from error
            except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                raise SessionEndedError(f"stream closed: {error}") from error

    def _begin(self, endpoint: str, welcome: Welcome) -> None:
        self.replica = welcome.replica or endpoint
        self._heard()
        for known in welcome.endpoints if self._discover else ():
            if known not in self._endpoints:
                self._endpoints.append(known)
        log.info("session open replica=%s endpoint=%s pods=%s", self.replica, endpoint, welcome.pod_cidr)
        self.outbox.resend_all()
        self._to_send.set()
        self._handler.welcomed(welcome)

    def _heard(self) -> None:
        self._last_contact_s = self._clock.monotonic()


class _Live:
    """One open session: reads, heartbeats and statuses, until one of them says it is over."""

    def __init__(self, session: NodeSession, call: _Call, interval_s: float) -> None:
        self._session = session
        self._call = call
        self._clock = session._clock
        self._interval_s = min(max(interval_s, 0.05), 10.0)
        self._sequence = 0
        #: Heartbeats without an answer: (sequence, when sent).
        self._unanswered: deque[tuple[int, float]] = deque()
        self._batch_sent_s: float | None = None
        # grpc.aio allows one write at a time on a stream.
        self._write_turn = asyncio.Lock()

    async def run(self) -> None:
        await run_until_first(self._read(), self._beat(), self._send())

    async def _write(self, message: AgentMessage) -> None:
        async with self._write_turn:
            await self._call.write(message)

    async def _read(self) -> None:
        session = self._session
        while True:
            message = await self._call.read()
            if not isinstance(message, ReplicaMessage):
                raise SessionEndedError("closed by the replica")
            session._heard()
            match message.WhichOneof("message"):
                case "heartbeat_ack":
                    while self._unanswered and self._unanswered[0][0] <= message.heartbeat_ack.sequence:
                        self._unanswered.popleft()
                case "welcome":
                    # The control plane's state was replaced by a snapshot's: it knows of nothing that was said since.
                    self._batch_sent_s = None
                    session._begin(session.replica, message.welcome)
                case "assignments":
                    session._handler.assigned(message.assignments)
                case "status_ack":
                    if session.outbox.ack(message.status_ack.sequence):
                        self._batch_sent_s = None
                        session._changed.set()
                        session._to_send.set()
                case _:
                    pass  # a message of a later protocol version

    async def _beat(self) -> None:
        clock = self._clock
        watch_every_s = min(self._interval_s, 0.1)
        next_beat_s = woke_s = clock.monotonic()
        while True:
            now = clock.monotonic()
            if now - woke_s > watch_every_s + _OWN_PAUSE_S:
                # We slept, not the replica: its answers are in the socket.
                self._unanswered = deque((sequence, now) for sequence, _ in self._unanswered)
                self._batch_sent_s = now if self._batch_sent_s is not None else None
            woke_s = now
            if self._unanswered and now - self._unanswered[0][1] > SILENCE_MAX_S:
                raise SessionEndedError(f"no answer to a heartbeat for {now - self._unanswered[0][1]:.1f} s")
            if self._batch_sent_s is not None and now - self._batch_sent_s > STATUS_ACK_MAX_S:
                raise SessionEndedError(f"statuses not stored for {now - self._batch_sent_s:.1f} s")
            if now >= next_beat_s:
                self._sequence += 1
                next_beat_s = now + self._interval_s
                self._unanswered.append((self._sequence, now))
                # Bounded: a write blocked by a paused replica must not stop the watch kept here.
                await _within(
                    clock, SILENCE_MAX_S, self._write(_heartbeat(self._sequence)), "heartbeat could not be sent"
                )
            await clock.sleep(watch_every_s)

    async def _send(self) -> None:
        session = self._session
        while True:
            await session._to_send.wait()
            if session._goodbye is None:
                await self._clock.sleep(COALESCE_S)
            session._to_send.clear()
            batch = session.outbox.next_batch()
            if batch is not None:
                self._batch_sent_s = self._clock.monotonic()
                await self._write(AgentMessage(statuses=batch))
            elif session._goodbye is not None:
                await self._write(AgentMessage(goodbye=session._goodbye))
                return


def _heartbeat(sequence: int) -> AgentMessage:
    return AgentMessage(heartbeat=Heartbeat(sequence=sequence))


@asynccontextmanager
async def _stream(endpoint: str, clock: Clock, credentials: Credentials | None) -> AsyncIterator[_Call]:
    """A session stream on a connection of its own. Raises SessionEndedError if there is no connection in time."""
    now = credentials_now(credentials)
    if now is None:
        channel = grpc.aio.insecure_channel(endpoint, options=_CHANNEL_OPTIONS)
    else:
        channel = grpc.aio.secure_channel(endpoint, now, options=_CHANNEL_OPTIONS)
    try:
        await _within(clock, CONNECT_MAX_S, _connected(channel), "no connection")
        call = NodesStub(channel).Session()
        try:
            yield call
        finally:
            call.cancel()
    finally:
        await channel.close()


async def _connected(channel: grpc.aio.Channel) -> None:
    """Return when the channel is connected; a refused connection is said at once instead of tried again."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            raise SessionEndedError("the connection was refused")
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


async def _within(clock: Clock, timeout_s: float, awaitable: Awaitable[T], what: str) -> T:
    """Its result, or SessionEndedError after ``timeout_s`` seconds."""
    work = asyncio.ensure_future(awaitable)
    sleeper = asyncio.ensure_future(clock.sleep(timeout_s))
    try:
        await asyncio.wait({work, sleeper}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise SessionEndedError(f"{what} within {timeout_s:g} s")
        return work.result()
    finally:
        sleeper.cancel()
        if not work.done():
            work.cancel()
