"""Linearizable reads by ReadIndex (Ongaro's dissertation, section 6.4): who asks, and how the leader proves itself.

Owns the waiting reads of one replica and, on a leader, the round that is under way. Pure: the core hands in time and
messages and carries messages out. Never trusts the engine's belief that it leads.

A read asks for an index that covers everything committed when it was asked. The leader takes its commit index, which
is valid once an entry of its own term is committed, and sends ``Probe``; answers of a majority still in its term
prove that no later leader had committed anything before the probe was sent. All reads that wait ride on one round;
those that come while it runs ride on the next.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from controlplane.base.errors import Code, StatusError
from controlplane.pb.quarterdeck.internal.v1 import raft_pb2
from controlplane.raft.config import RaftConfig
from controlplane.raft.engine import Engine
from controlplane.raft.proposals import Route

__all__ = ["ReadDone", "Reads"]

#: Hears the index that is applied here and covers the read, or why there is none.
ReadDone = Callable[[int | StatusError], None]


@dataclass(slots=True)
class _Waiter:
    deadline: float
    done: ReadDone
    over: bool = False


@dataclass(slots=True)
class _Asked:
    """The question a follower has out."""

    seq: int
    route: Route | None
    at: float
    waiters: list[_Waiter]


@dataclass(slots=True)
class _Round:
    """The leader's proof under way."""

    term: int
    seq: int
    index: int
    at: float
    own: list[_Waiter]
    foreign: list[tuple[int, int]]
    acks: set[int] = field(default_factory=set)


class Reads:
    """All linearizable reads of one replica that have no answer yet."""

    def __init__(self, config: RaftConfig, peer_ids: list[int], first_seq: int) -> None:
        """``first_seq`` must differ between two lives of a replica: an answer to the earlier one proves too little."""
        self._voters = frozenset(peer_ids)
        self._resend_s = 2 * config.heartbeat_ms / 1000
        self._seq = itertools.count(first_seq)
        self._order = itertools.count()
        self._waiting: list[_Waiter] = []
        self._deadlines: list[tuple[float, int, _Waiter]] = []
        self._asked: _Asked | None = None
        self._indexed: list[tuple[int, list[_Waiter]]] = []
        self._requests: list[tuple[int, int]] = []
        self._round: _Round | None = None
        self._results: list[tuple[ReadDone, int | StatusError]] = []

    def set_voters(self, voters: frozenset[int]) -> None:
        """The other members whose word counts, from now on; also in the round under way."""
        self._voters = voters

    def add(self, deadline: float, done: ReadDone) -> None:
        """``done`` hears once this replica has applied everything committed before now, or at ``deadline``."""
        waiter = _Waiter(deadline, done)
        self._waiting.append(waiter)
        heapq.heappush(self._deadlines, (deadline, next(self._order), waiter))

    # -- messages ----------------------------------------------------------------------------------------------

    def on_request(self, peer_id: int, request: raft_pb2.ReadIndex) -> None:
        """A follower asks. An older question of the same one is obsolete: it asks again only if it gave that up."""
        self._requests = [r for r in self._requests if r[0] != peer_id]
        self._requests.append((peer_id, request.seq))

    def on_reply(self, reply: raft_pb2.ReadIndexReply) -> None:
        if self._asked is not None and reply.seq == self._asked.seq:
            self._indexed.append((reply.index, self._asked.waiters))
            self._asked = None

    def on_probe_ack(self, peer_id: int, term: int, ack: raft_pb2.ProbeAck) -> None:
        current = self._round
        if current is not None and (current.term, current.seq) == (term, ack.seq):
            current.acks.add(peer_id)

    # -- the turn ----------------------------------------------------------------------------------------------

    def step(self, engine: Engine, route: Route | None, now: float) -> list[tuple[int, raft_pb2.RaftMessage]]:
        """Advance everything after the engine's tick; messages to send. ``route`` leads to the leader, if known."""
        out: list[tuple[int, raft_pb2.RaftMessage]] = []
        if engine.is_leader:
            self._take_back_question()
            self._lead(engine, now, out)
        else:
            self._stop_leading()
            self._ask(engine.term, route, now, out)
        self._complete(engine.applied_index)
        self._expire(now, leader_known=engine.leader is not None)
        return out

    def take_results(self) -> list[tuple[ReadDone, int | StatusError]]:
        taken, self._results = self._results, []
        return taken

    def next_wake(self) -> float | None:
        times = []
        if self._deadlines:
            times.append(self._deadlines[0][0])
        if self._round is not None:
            times.append(self._round.at + self._resend_s)
        if self._asked is not None and self._asked.route is not None:
            times.append(self._asked.at + self._resend_s)
        return min(times, default=None)

    def abandon(self) -> None:
        """The replica stops."""
        error = StatusError(Code.UNAVAILABLE, "etcdserver: server stopped")
        waiters = [w for _, _, w in self._deadlines if not w.over]
        self._results += [(w.done, error) for w in waiters]
        for waiter in waiters:
            waiter.over = True

    def _lead(self, engine: Engine, now: float, out: list[tuple[int, raft_pb2.RaftMessage]]) -> None:
        if self._round is not None and self._round.term != engine.term:
            self._stop_leading()
        self._finish_round(engine.term, out)
        if self._round is None and (self._waiting or self._requests) and engine.term_committed:
            own, self._waiting = self._waiting, []
            foreign, self._requests = self._requests, []
            self._round = _Round(engine.term, next(self._seq), engine.commit_index, now, own, foreign)
            self._probe(self._round, out)
            self._finish_round(engine.term, out)
        elif self._round is not None and now - self._round.at >= self._resend_s:
            self._round.at = now
            self._probe(self._round, out)

    def _probe(self, current: _Round, out: list[tuple[int, raft_pb2.RaftMessage]]) -> None:
        probe = raft_pb2.RaftMessage(term=current.term, probe=raft_pb2.Probe(seq=current.seq))
        out.extend((peer_id, probe) for peer_id in sorted(self._voters - current.acks))

    def _finish_round(self, term: int, out: list[tuple[int, raft_pb2.RaftMessage]]) -> None:
        current = self._round
        if current is None or 2 * (1 + len(current.acks & self._voters)) <= 1 + len(self._voters):
            return
        self._round = None
        if current.own:
            self._indexed.append((current.index, current.own))
        for peer_id, seq in current.foreign:
            reply = raft_pb2.ReadIndexReply(seq=seq, index=current.index)
            out.append((peer_id, raft_pb2.RaftMessage(term=term, read_index_reply=reply)))

    def _stop_leading(self) -> None:
        """Followers ask the next leader by themselves; our own reads wait again."""
        self._requests.clear()
        if self._round is not None:
            self._waiting = self._round.own + self._waiting
            self._round = None

    def _ask(self, term: int, route: Route | None, now: float, out: list[tuple[int, raft_pb2.RaftMessage]]) -> None:
        if route is None:
            if self._asked is not None:
                self._asked.route = None
            return
        if self._asked is None and self._waiting:
            self._asked = _Asked(next(self._seq), route, now, self._waiting)
            self._waiting = []
        elif self._asked is not None and (self._asked.route != route or now - self._asked.at >= self._resend_s):
            # The same question again: an answer to either copy was proven after it was asked.
            self._asked.route, self._asked.at = route, now
        else:
            return
        question = raft_pb2.ReadIndex(seq=self._asked.seq)
        out.append((route[0], raft_pb2.RaftMessage(term=term, read_index=question)))

    def _take_back_question(self) -> None:
        if self._asked is not None:
            self._waiting = self._asked.waiters + self._waiting
            self._asked = None

    def _complete(self, applied_index: int) -> None:
        later = []
        for index, waiters in self._indexed:
            if index <= applied_index:
                for waiter in waiters:
                    if not waiter.over:
                        waiter.over = True
                        self._results.append((waiter.done, applied_index))
            else:
                later.append((index, waiters))
        self._indexed = later

    def _expire(self, now: float, *, leader_known: bool) -> None:
        while self._deadlines and (self._deadlines[0][2].over or self._deadlines[0][0] <= now):
            _, _, waiter = heapq.heappop(self._deadlines)
            if not waiter.over:
                waiter.over = True
                text = "etcdserver: request timed out" if leader_known else "etcdserver: no leader"
                self._results.append((waiter.done, StatusError(Code.UNAVAILABLE, text)))
        self._waiting = [w for w in self._waiting if not w.over]
