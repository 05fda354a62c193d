"""The network between simulated processes, as TCP has it: byte streams, in order; what is in flight dies with them.

Owns delays, cuts, breaks and what becomes of a host's connections when its process or its machine dies. The production
links, handshakes and pings run on it; it knows of their frames only which ones may come twice.

- A cut is of one direction between two hosts. What is sent into it waits until it heals or the connection breaks.
- A process that dies has its connections closed by its kernel; a machine that loses power says nothing, and answers
  with a reset once it is back. Dialling a dead process is refused; dialling a dead machine, or through a cut, hangs.
- Segments may arrive in two pieces. In some runs single segments arrive once more, later, and a new connection begins
  with a few of the one before: more than TCP would do; Raft must not care.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import Frame, RaftMessage
from controlplane.transport.frames import HEADER_BYTES
from tests.sim.loop import SimLoop
from tests.sim.scheduler import Scheduler

__all__ = ["SimNet"]

_REPLAYED = 4


def _is_raft(data: bytes) -> bool:
    return len(data) > HEADER_BYTES and Frame.FromString(data[HEADER_BYTES:]).HasField("raft")


class _End(asyncio.Transport):
    """One end of a connection, as its process holds it."""

    def __init__(self, net: SimNet, loop: SimLoop, protocol: asyncio.Protocol, to: str) -> None:
        super().__init__()
        self.net = net
        self.loop = loop
        self.protocol = protocol
        self.here, self.there = loop.host, to
        self.other: _End
        self.closing = False
        self.ended = False
        #: Bytes on their way to the other end.
        self.flight: deque[bytes] = deque()
        self.flight_bytes = 0
        self.last_arrival = 0.0
        #: Our process opened it.
        self.dialled = False
        #: Frames of the connection before may come once more on this one.
        self.replays = True

    # -- what the protocol calls

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.closing and not self.ended:
            self.net.carry(self, bytes(data))

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.net.carry(self, b"")
            self.loop.call_soon(self.lost, None)

    def abort(self) -> None:
        if not self.closing:
            self.closing = True
            self.drop_flight()
            self.net.carry(self, b"")
            self.loop.call_soon(self.lost, None)

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.flight_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Ours never pauses a writer."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self.there, 0) if name == "peername" else default

    # -- what the network calls

    def lost(self, error: Exception | None) -> None:
        if not self.ended:
            self.ended = self.closing = True
            self.protocol.connection_lost(error)

    def drop_flight(self) -> None:
        self.net.lost += len(self.flight)
        self.flight.clear()
        self.flight_bytes = 0


class _Listener:
    def __init__(self, net: SimNet, loop: SimLoop, factory: Callable[[], asyncio.Protocol]) -> None:
        self.loop = loop
        self.factory = factory
        self._net = net

    def close(self) -> None:
        self._net.unlisten(self)

    async def wait_closed(self) -> None:
        """Closing takes no time."""


@dataclass(slots=True)
class _Way:
    """From one host to another."""

    cut: bool = False
    waiting: list[Callable[[], None]] = field(default_factory=list)
    recent: deque[bytes] = field(default_factory=lambda: deque(maxlen=_REPLAYED))


class SimNet:
    """All hosts and the connections between them."""

    def __init__(self, scheduler: Scheduler, *, delay_s: tuple[float, float], slow_share: float) -> None:
        self._s = scheduler
        self.delay_s = delay_s
        self._slow_share = slow_share
        self.duplicate_share = 0.0
        #: Sees every Raft message as it leaves: (from, to, message).
        self.tap: Callable[[str, str, RaftMessage], None] | None = None
        self._ways: defaultdict[tuple[str, str], _Way] = defaultdict(_Way)
        self._listeners: dict[str, _Listener] = {}
        self._dark: set[str] = set()
        self._ends: list[_End] = []
        self.lost = 0
        self.replayed = 0

    # -- hosts -------------------------------------------------------------------------------------------------

    def add(self, host: str, others: list[str]) -> None:
        """A machine that can reach and be reached by the others."""
        for other in others:
            self._ways[host, other] = _Way()
            self._ways[other, host] = _Way()

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return sorted(self._ways)

    def started(self, host: str) -> None:
        """The machine has power. What its peers still hold of it is reset when they use it."""
        self._dark.discard(host)

    def died(self, host: str, *, noticed: bool) -> None:
        """Its process is gone. ``noticed``: its kernel lives and closes connections; else its peers hear nothing."""
        self._listeners.pop(host, None)
        if not noticed:
            self._dark.add(host)
        for end in [e for e in self._ends if e.here == host]:
            end.ended = end.closing = True
            if noticed:
                self.carry(end, b"")
            else:
                end.drop_flight()
        self._ends = [e for e in self._ends if not (e.ended and e.other.ended)]

    # -- connections -------------------------------------------------------------------------------------------

    def listen(self, loop: SimLoop, host: str, port: int, factory: Callable[[], asyncio.Protocol]) -> _Listener:
        self._listeners[host] = listener = _Listener(self, loop, factory)
        return listener

    def unlisten(self, listener: _Listener) -> None:
        if self._listeners.get(listener.loop.host) is listener:
            del self._listeners[listener.loop.host]

    async def connect(
        self, loop: SimLoop, host: str, port: int, factory: Callable[[], asyncio.Protocol]
    ) -> tuple[_End, asyncio.Protocol]:
        opened: asyncio.Future[_End] = loop.create_future()
        self.travel(loop.host, host, lambda: self._knock(loop, host, factory, opened))
        end = await opened
        return end, end.protocol

    def _knock(
        self, loop: SimLoop, host: str, factory: Callable[[], asyncio.Protocol], opened: asyncio.Future[_End]
    ) -> None:
        if host in self._dark:
            return
        listener = self._listeners.get(host)
        if listener is None:
            self.travel(host, loop.host, lambda: self._refuse(loop, opened))
            return
        accepted = _End(self, listener.loop, asyncio.Protocol(), loop.host)
        dialled = _End(self, loop, asyncio.Protocol(), host)
        accepted.other, dialled.other = dialled, accepted
        dialled.dialled = True
        self._ends += [accepted, dialled]

        def accept() -> None:
            accepted.protocol = listener.factory()
            accepted.protocol.connection_made(accepted)

        def answered() -> None:
            if loop.dead or opened.done():  # nobody waits any more: the kernel closes it
                dialled.ended = dialled.closing = True
                self.carry(dialled, b"")
                return
            loop.run_inside(establish)

        def establish() -> None:
            dialled.protocol = factory()
            dialled.protocol.connection_made(dialled)
            opened.set_result(dialled)

        listener.loop.call_soon(accept)
        self.travel(host, loop.host, lambda: loop.post(answered))

    def _refuse(self, loop: SimLoop, opened: asyncio.Future[_End]) -> None:
        if not loop.dead and not opened.done():
            opened.set_exception(ConnectionRefusedError("connection refused"))

    def break_link(self, a: str, b: str) -> None:
        """The connections a dialled to b break, with what is in flight."""
        for end in [e for e in self._ends if e.here == a and e.there == b and not e.ended]:
            self._s.note("break", a, b)
            for side in (end, end.other):
                side.drop_flight()
                self._reset(side)

    def _reset(self, end: _End) -> None:
        end.drop_flight()
        if not end.ended and not end.loop.dead:
            end.loop.call_soon(end.lost, ConnectionResetError("connection reset by peer"))

    # -- bytes -------------------------------------------------------------------------------------------------

    def carry(self, end: _End, data: bytes) -> None:
        """Send bytes to the other end; none is the end of the stream."""
        way = self._ways[end.here, end.there]
        if self.tap is not None and _is_raft(data):
            self.tap(end.here, end.there, Frame.FromString(data[HEADER_BYTES:]).raft)
        pieces = [data]
        if len(data) > 8 and self._s.chance(0.02):
            cut = self._s.rand.randint(1, len(data) - 1)
            pieces = [data[:cut], data[cut:]]
        elif self.duplicate_share and end.dialled and _is_raft(data):
            if end.replays and self._s.chance(0.3):
                self.replayed += len(way.recent)
                pieces = [*way.recent, data]
            elif self._s.chance(self.duplicate_share):
                self.replayed += 1
                self._s.after(0.4 * self._s.rand.random() ** 4, lambda: self._again(end, data))
            end.replays = False
            way.recent.append(data)
        for piece in pieces:
            self._fly(end, piece)

    def _again(self, end: _End, data: bytes) -> None:
        if not end.closing:
            self._fly(end, data)

    def _fly(self, end: _End, data: bytes) -> None:
        end.flight.append(data)
        end.flight_bytes += len(data)
        end.last_arrival = arrival = max(end.last_arrival, self._s.now + self.delay())
        self._s.at(arrival, lambda: self._arrive(end))

    def _arrive(self, end: _End) -> None:
        way = self._ways[end.here, end.there]
        if way.cut:
            way.waiting.append(lambda: self._arrive(end))
            return
        if not end.flight:
            return
        data = end.flight.popleft()
        end.flight_bytes -= len(data)
        other = end.other
        if other.loop.dead:
            if end.there not in self._dark:
                self._reset(end)  # the machine is up, the connection is of a process that is not
            return
        if other.closing:
            return
        if data:
            other.loop.call_soon(self._receive, other, data)
        else:
            other.loop.call_soon(other.lost, None)

    def _receive(self, end: _End, data: bytes) -> None:
        if not end.closing:
            end.protocol.data_received(data)

    def travel(self, a: str, b: str, action: Callable[[], None]) -> None:
        """Do something at b that a caused, when a packet has made the way; wait while the way is cut."""
        way = self._ways[a, b]

        def arrive() -> None:
            if way.cut:
                way.waiting.append(arrive)
            else:
                action()

        self._s.after(self.delay(), arrive)

    def delay(self) -> float:
        delay = self._s.between(*self.delay_s)
        if self._s.chance(self._slow_share):
            delay += self._s.between(0.01, 0.15)
        return delay

    # -- cuts --------------------------------------------------------------------------------------------------

    def cut(self, a: str, b: str) -> None:
        """Nothing from a reaches b."""
        self._ways[a, b].cut = True

    def heal(self, a: str, b: str) -> None:
        way = self._ways[a, b]
        if way.cut:
            way.cut = False
            waiting, way.waiting = way.waiting, []
            for arrive in waiting:
                self._s.after(self._s.between(0.0001, 0.005), arrive)

    def calm(self) -> None:
        """Peace: nothing is cut, and nothing is very late."""
        self._slow_share = 0.0
        self.delay_s = (self.delay_s[0], min(self.delay_s[1], 0.03))
        for a, b in self.pairs:
            self.heal(a, b)
