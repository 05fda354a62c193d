"""Writes on their way: held by the replica that took them until it applies them, queued by the leader for its log.

Owns what waits, what was sent where, and which ids are in the leader's queue and log tail. Pure: knows no engine, no
network and no clock; the core hands time in and carries messages out.

A write ends as ``Applied`` when *this* replica applies an entry that holds its id, whoever put it there; as
``NeverSent`` only if no copy ever left this object; as ``Unknown`` otherwise. Sending it again is always safe: the
store remembers request ids.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from controlplane.base.errors import ConfigError
from controlplane.base.limits import BATCH_BYTES_MAX, BATCH_PROPOSALS_MAX, PROPOSALS_PENDING_MAX
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Batch, Proposal
from controlplane.raft.types import Applied, NeverSent, Outcome, Unknown

__all__ = ["Done", "Proposals", "Route", "decode_batch"]

Done = Callable[[Outcome], None]
#: (leader, term, generation of the link to it): when it changes, what was sent along the old one may be lost.
Route = tuple[int, int, int]

BATCH_FORMAT_VERSION = 1
#: A proposal's own bytes around its payload, at most.
_ENVELOPE_BYTES = 256


def decode_batch(data: bytes) -> Sequence[Proposal]:
    """The writes of one log entry.

    Raises:
        ConfigError: a newer version wrote it: this one does not know what applying it means.
    """
    batch = Batch.FromString(data)
    if batch.format_version > BATCH_FORMAT_VERSION:
        raise ConfigError(
            f"a log entry has format {batch.format_version}, this version applies up to {BATCH_FORMAT_VERSION}; "
            "start the newer version that the others run"
        )
    return batch.proposals


@dataclass(slots=True)
class _Pending:
    proposal: Proposal
    deadline: float
    done: list[Done] = field(default_factory=list)
    sent: bool = False


class Proposals:
    """All writes of one replica that have no outcome yet, and the leader's queue."""

    def __init__(self, *, pending_max: int = PROPOSALS_PENDING_MAX) -> None:
        self._pending_max = pending_max
        self._pending: dict[bytes, _Pending] = {}
        self._deadlines: list[tuple[float, bytes]] = []
        self._unsent: deque[bytes] = deque()
        self._route: Route | None = None
        self._resent_at = 0.0
        self._queue: deque[Proposal] = deque()
        self._queued: set[bytes] = set()
        self._in_log: set[bytes] = set()
        self._outcomes: list[tuple[Done, Outcome]] = []

    # -- held here ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, payload: bytes, request_id: bytes, deadline: float, born_index: int, done: Done) -> None:
        """Hold a write until it is applied here or ``deadline`` (monotonic seconds) passes; then ``done`` hears."""
        if (held := self._pending.get(request_id)) is not None:
            held.done.append(done)
            held.deadline = max(held.deadline, deadline)
            heapq.heappush(self._deadlines, (held.deadline, request_id))
            return
        if len(self._pending) >= self._pending_max:
            self._outcomes.append((done, NeverSent("too many writes are waiting on this replica")))
            return
        if len(payload) + _ENVELOPE_BYTES > BATCH_BYTES_MAX:
            self._outcomes.append((done, NeverSent(f"write of {len(payload)} bytes exceeds the log entry limit")))
            return
        proposal = Proposal(request_id=request_id, born_index=born_index, payload=payload)
        sent = request_id in self._queued or request_id in self._in_log
        self._pending[request_id] = _Pending(proposal, deadline, [done], sent)
        heapq.heappush(self._deadlines, (deadline, request_id))
        self._unsent.append(request_id)

    def expire(self, now: float) -> None:
        """Give up on what is past its deadline."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heapq.heappop(self._deadlines)
            held = self._pending.get(request_id)
            if held is None or held.deadline > now:
                continue
            del self._pending[request_id]
            if not held.sent and request_id in self._queued:
                self._queued.discard(request_id)
                self._queue = deque(p for p in self._queue if p.request_id != request_id)
            outcome: Outcome
            if held.sent:
                outcome = Unknown("no answer in time: the write may still be applied")
            else:
                outcome = NeverSent("no leader to send the write to in time")
            self._outcomes += [(done, outcome) for done in held.done]

    def applied(self, proposals: Sequence[Proposal], replies: Sequence[bytes], index: int) -> None:
        """An entry was applied here: answer whoever waits for one of its writes."""
        for proposal, reply in zip(proposals, replies, strict=True):
            self._in_log.discard(proposal.request_id)
            held = self._pending.pop(proposal.request_id, None)
            if held is not None:
                self._outcomes += [(done, Applied(reply, index)) for done in held.done]

    def take_outcomes(self) -> list[tuple[Done, Outcome]]:
        """What may be told once the turn is durable."""
        taken, self._outcomes = self._outcomes, []
        return taken

    def next_deadline(self) -> float | None:
        return self._deadlines[0][0] if self._deadlines else None

    def abandon(self, reason: str) -> None:
        """The replica stops: what was sent is unknown, the rest never left."""
        for held in self._pending.values():
            outcome: Outcome = Unknown(reason) if held.sent else NeverSent(reason)
            self._outcomes += [(done, outcome) for done in held.done]
        self._pending.clear()
        self._deadlines.clear()

    # -- towards the leader ------------------------------------------------------------------------------------

    def forward(self, route: Route, now: float, resend_s: float) -> list[list[Proposal]]:
        """As follower: what to send along ``route`` now, in frames within the batch limits."""
        if route != self._route or now - self._resent_at >= resend_s:
            self._route = route
            self._resent_at = now
            self._unsent.clear()
            due: Iterable[bytes] = list(self._pending)
        else:
            due = self._unsent
        frames: list[list[Proposal]] = []
        room_bytes = 0
        for request_id in due:
            held = self._pending.get(request_id)
            if held is None:
                continue
            held.sent = True
            size = len(held.proposal.payload) + _ENVELOPE_BYTES
            if not frames or size > room_bytes or len(frames[-1]) >= BATCH_PROPOSALS_MAX:
                frames.append([])
                room_bytes = BATCH_BYTES_MAX
            frames[-1].append(held.proposal)
            room_bytes -= size
        self._unsent.clear()
        return frames

    def send_again(self) -> None:
        """Whatever was sent may be answered by something this replica will never see: forward it anew."""
        self._route = None

    def next_resend(self, resend_s: float) -> float | None:
        """When :meth:`forward` sends again what has no answer."""
        return self._resent_at + resend_s if self._pending else None

    # -- as leader ---------------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Writes that wait for a log entry."""
        return len(self._queue)

    def lead(self, uncommitted: Iterable[bytes]) -> None:
        """This replica was elected; ``uncommitted`` are the batches of its log not yet committed."""
        self.follow()
        for data in uncommitted:
            self._in_log.update(p.request_id for p in decode_batch(data))
        self.accept(held.proposal for held in self._pending.values())

    def follow(self) -> None:
        """This replica no longer leads: the queue belongs to those who sent it, and they send it again."""
        self._queue.clear()
        self._queued.clear()
        self._in_log.clear()
        self._route = None

    def accept(self, proposals: Iterable[Proposal], *, forwarded: bool = False) -> None:
        """Queue writes for the log, unless they are there already."""
        for proposal in proposals:
            request_id = proposal.request_id
            if forwarded and (held := self._pending.get(request_id)) is not None:
                held.sent = True
            if request_id not in self._queued and request_id not in self._in_log:
                self._queued.add(request_id)
                self._queue.append(proposal)

    def accept_own(self) -> None:
        """Queue what was proposed here since the last turn."""
        if self._unsent:
            held = [self._pending.get(request_id) for request_id in self._unsent]
            self._unsent.clear()
            self.accept(h.proposal for h in held if h is not None)

    def next_batch(self) -> tuple[bytes, int] | None:
        """The next log entry's bytes, within BATCH_BYTES_MAX, and how many writes it holds, at most
        BATCH_PROPOSALS_MAX; None if nothing waits."""
        if not self._queue:
            return None
        taken: list[Proposal] = []
        room_bytes = BATCH_BYTES_MAX
        while self._queue and len(taken) < BATCH_PROPOSALS_MAX:
            proposal = self._queue[0]
            size = len(proposal.payload) + _ENVELOPE_BYTES
            if size > room_bytes and taken:
                break
            room_bytes -= size
            self._queue.popleft()
            request_id = proposal.request_id
            self._queued.discard(request_id)
            self._in_log.add(request_id)
            if (held := self._pending.get(request_id)) is not None:
                held.sent = True
            taken.append(proposal)
        return Batch(format_version=BATCH_FORMAT_VERSION, proposals=taken).SerializeToString(), len(taken)
