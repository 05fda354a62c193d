"""Links between simulated replicas, as TCP has them: in order, and what is in flight dies with the connection.

Owns delays, stalls, breaks and reconnections. Messages are serialized and parsed on the way, so that nothing is
shared between replicas. A cut direction stalls what is sent until it heals or the link breaks; a connection that
breaks may have delivered any prefix of what was in flight, and replays a few frames when it is back (more than TCP
would do; Raft must not care). In some runs single frames arrive once more, much later and out of order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import RaftMessage
from controlplane.transport.frames import check_raft
from tests.sim.scheduler import Scheduler

__all__ = ["Endpoint", "SimNet"]

_SILENCE_S = 3.0


class Endpoint(Protocol):
    """A node as the network sees it."""

    @property
    def alive(self) -> bool: ...
    def receive(self, peer_id: int, message: RaftMessage) -> None: ...
    def link_up(self, peer_id: int) -> None: ...
    def link_down(self, peer_id: int) -> None: ...
    def peer_died(self, peer_id: int) -> None: ...


@dataclass(slots=True)
class _Link:
    up: bool = False
    cut: bool = False
    generation: int = 0
    last_arrival: float = 0.0
    in_flight: deque[bytes] = field(default_factory=deque)
    stalled: deque[bytes] = field(default_factory=deque)
    recent: deque[bytes] = field(default_factory=lambda: deque(maxlen=4))


class SimNet:
    """All directed links of a cluster."""

    def __init__(self, scheduler: Scheduler, *, delay_s: tuple[float, float], slow_share: float) -> None:
        self._s = scheduler
        self._delay_s = delay_s
        self._slow_share = slow_share
        self.duplicate_share = 0.0
        self._nodes: dict[int, Endpoint] = {}
        self._links: dict[tuple[int, int], _Link] = {}
        self.delivered = 0
        self.lost = 0
        self.replayed = 0

    def add(self, node_id: int, node: Endpoint) -> None:
        for other in self._nodes:
            self._links[node_id, other] = _Link()
            self._links[other, node_id] = _Link()
        self._nodes[node_id] = node

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return sorted(self._links)

    # -- life of links -----------------------------------------------------------------------------------------

    def started(self, node_id: int) -> None:
        """The node's process runs: links from and to it are dialled."""
        for a, b in self.pairs:
            if node_id in (a, b):
                self._dial_later(a, b, self._s.between(0.0005, 0.03))

    def died(self, node_id: int, *, noticed: bool) -> None:
        """The node is gone. ``noticed``: its kernel lives and closes connections; else its peers wait for silence."""
        for a, b in self.pairs:
            if a == node_id:
                self._break(a, b)
            elif b == node_id:
                if noticed:
                    self._s.after(self._s.between(0.0001, 0.002), lambda a=a, b=b: self._notice(a, b))  # type: ignore[misc]
                else:
                    self._lose_flight(self._links[a, b])
                    self._s.after(_SILENCE_S, lambda a=a, b=b: self.break_link(a, b))  # type: ignore[misc]

    def _notice(self, a: int, b: int) -> None:
        self._break(a, b)
        if self._nodes[a].alive and not self._nodes[b].alive:
            self._nodes[a].peer_died(b)
        self._dial_later(a, b, self._s.between(0.02, 0.2))

    def break_link(self, a: int, b: int) -> None:
        """The connection a dialled to b breaks; a dials again."""
        if self._links[a, b].up:
            self._break(a, b)
            self._dial_later(a, b, self._s.between(0.001, 0.1))

    def _break(self, a: int, b: int) -> None:
        link = self._links[a, b]
        if not link.up:
            return
        self._lose_flight(link)
        link.up = False
        self._s.note("down", a, b)
        if self._nodes[a].alive:
            self._nodes[a].link_down(b)

    def _lose_flight(self, link: _Link) -> None:
        link.generation += 1
        self.lost += len(link.in_flight) + len(link.stalled)
        link.in_flight.clear()
        link.stalled.clear()

    def _dial_later(self, a: int, b: int, delay_s: float) -> None:
        self._s.after(delay_s, lambda: self._dial(a, b))

    def _dial(self, a: int, b: int) -> None:
        link = self._links[a, b]
        if link.up or not self._nodes[a].alive:
            return
        if not self._nodes[b].alive or link.cut or self._links[b, a].cut:
            self._dial_later(a, b, self._s.between(0.02, 0.5))
            return
        link.up = True
        link.generation += 1
        self._s.note("up", a, b)
        if self._s.chance(0.3):
            for data in list(link.recent):
                self.replayed += 1
                self._fly(a, b, data)
        self._nodes[a].link_up(b)

    # -- cuts --------------------------------------------------------------------------------------------------

    def cut(self, a: int, b: int) -> None:
        """Nothing from a reaches b."""
        link = self._links[a, b]
        if not link.cut:
            link.cut = True
            generation = link.generation
            self._s.after(_SILENCE_S, lambda: self._silence(a, b, generation))

    def _silence(self, a: int, b: int, generation: int) -> None:
        link = self._links[a, b]
        if link.cut and link.generation == generation:
            self.break_link(a, b)
            self.break_link(b, a)

    def heal(self, a: int, b: int) -> None:
        link = self._links[a, b]
        link.cut = False
        stalled, link.stalled = link.stalled, deque()
        for data in stalled:
            self._fly(a, b, data)

    def heal_all(self) -> None:
        for a, b in self.pairs:
            self.heal(a, b)

    # -- messages ----------------------------------------------------------------------------------------------

    def send(self, a: int, b: int, message: RaftMessage) -> None:
        link = self._links[a, b]
        if not link.up:
            self.lost += 1
            return
        data = message.SerializeToString()
        if link.cut:
            link.stalled.append(data)
        else:
            self._fly(a, b, data)
            if self.duplicate_share and self._s.chance(self.duplicate_share):
                self._s.after(0.4 * self._s.rand.random() ** 4, lambda: self._arrive_again(a, b, data))

    def _fly(self, a: int, b: int, data: bytes) -> None:
        link = self._links[a, b]
        low, high = self._delay_s
        delay = self._s.between(low, high)
        if self._s.chance(self._slow_share):
            delay += self._s.between(0.01, 0.15)
        link.last_arrival = arrival = max(link.last_arrival, self._s.now + delay)
        link.in_flight.append(data)
        generation = link.generation
        self._s.at(arrival, lambda: self._arrive(a, b, generation))

    def _arrive(self, a: int, b: int, generation: int) -> None:
        link = self._links[a, b]
        if link.generation != generation or not link.in_flight:
            return
        data = link.in_flight.popleft()
        if link.cut:
            link.stalled.append(data)
            return
        link.recent.append(data)
        self._deliver(a, b, data)

    def _arrive_again(self, a: int, b: int, data: bytes) -> None:
        if not self._links[a, b].cut:
            self.replayed += 1
            self._deliver(a, b, data)

    def _deliver(self, a: int, b: int, data: bytes) -> None:
        if self._nodes[b].alive:
            self.delivered += 1
            message = RaftMessage.FromString(data)
            check_raft(message)
            self._nodes[b].receive(a, message)
