"""One replica's Raft as a pure step: inputs in, then :meth:`Core.step`, then outputs out. No I/O, no waiting.

Owns the order of a turn and what each input and output means. The production driver (``driver.py``) and the simulator
(``tests/sim``) run exactly this.

A turn::

    receive / link_up / propose / read ...   any number, kept in order
    step()                                   messages, then proposals, then the engine's tick, then reads
    journal flush                            by the driver: ONE sync for everything the step wrote
    Turn                                     only then its messages are sent and its answers given

Invariant: nothing in a :class:`Turn` may leave before what the journal recorded during the step is durable, and no
step may begin before that. Two things need not wait (Ongaro's dissertation, 10.2.1), for they promise nothing of this
disk: what a leader of some time sends its followers (``Turn.ahead``; its own log counts towards a majority only in the
next step, when it is durable), and what clients hear of entries that a majority holds (``Turn.settled``).
Any exception out of :meth:`Core.step` is fail-stop: the state in memory may be half a step ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from controlplane.base import failpoints
from controlplane.base.clock import Clock
from controlplane.base.errors import Code, CorruptStateError, StatusError
from controlplane.base.limits import INBOX_BYTES_MAX, INBOX_MESSAGES_MAX
from controlplane.base.rand import Rand
from controlplane.pb.quarterdeck.internal.v1 import raft_pb2
from controlplane.raft.changes import check_change
from controlplane.raft.config import RaftConfig
from controlplane.raft.engine import Engine, EngineJournal, Role
from controlplane.raft.membership import Membership, Memberships
from controlplane.raft.proposals import Done, Proposals, Route, decode_batch
from controlplane.raft.reads import ReadDone, Reads
from controlplane.raft.transfer import Transfer, TransferDone
from controlplane.raft.types import Applied, Member, MemberChange, Outcome, StateMachine, Unknown

__all__ = ["Core", "Turn"]

#: Messages handled in one step, so that a flood cannot keep heartbeats waiting.
_MESSAGES_PER_STEP = 1_024
_NEVER_S = float("inf")
_TIMED_OUT = StatusError(Code.UNAVAILABLE, "etcdserver: request timed out")

_CONSENSUS = frozenset(
    {
        "append_entries",
        "next_index",
        "request_vote",
        "vote",
        "timeout_now",
        "leader_alive",
        "pre_vote",
        "pre_vote_reply",
    }
)
_SNAPSHOT = frozenset({"snapshot_chunk", "snapshot_ack"})


#: What only a leader sends. Nothing in it says that this replica's disk holds something.
_OF_LEADER = frozenset({"append_entries", "leader_alive", "probe"})


@dataclass(slots=True)
class Turn:
    """What one step produced. Release it only after the journal is durable, but for what is said to need no waiting.

    Attributes:
        messages: (peer id, message), in order.
        ahead: the same, of a leader to its followers: may leave while the journal is being synced, before ``messages``.
        settled: ``outcomes`` and ``reads`` rest on nothing that this step wrote, and may be given at once.
        outcomes: writes that have one.
        reads: reads that may be served, by applied index, or have failed.
        transfers: who asked to move leadership and may hear that it has moved, or why not.
        leadership: (term, True) when it may act as leader of that term, (term, False) when it no longer is.
        snapshot_messages: the peers' snapshot transfer frames, for the driver's files.
        applied: log entries applied in this step.
        batched: writes that went into the log in this step.
    """

    messages: list[tuple[int, raft_pb2.RaftMessage]] = field(default_factory=list)
    ahead: list[tuple[int, raft_pb2.RaftMessage]] = field(default_factory=list)
    settled: bool = False
    outcomes: list[tuple[Done, Outcome]] = field(default_factory=list)
    reads: list[tuple[ReadDone, int | StatusError]] = field(default_factory=list)
    leadership: list[tuple[int, bool]] = field(default_factory=list)
    transfers: list[tuple[TransferDone, StatusError | None]] = field(default_factory=list)
    snapshot_messages: list[tuple[int, raft_pb2.RaftMessage]] = field(default_factory=list)
    applied: int = 0
    batched: int = 0

    def withheld(self, reason: str) -> Turn:
        """What its waiters hear when it could not be made durable: of writes nothing certain, of reads an error."""
        return Turn(
            outcomes=[
                (done, Unknown(reason) if isinstance(outcome, Applied) else outcome) for done, outcome in self.outcomes
            ],
            reads=[(done, StatusError(Code.UNAVAILABLE, "etcdserver: server stopped")) for done, _ in self.reads],
            transfers=[
                (done, StatusError(Code.UNAVAILABLE, "etcdserver: server stopped")) for done, _ in self.transfers
            ],
        )


class Core:
    """Raft, writes and reads of one replica.

    Args:
        config: validated settings.
        me: this replica.
        members: who founded the cluster, or who takes part as far as a new member was told.
        journal: the recovered log; memberships in it win over ``members``.
        state_machine: restored from its newest snapshot, or empty.
        clock, rand: the only time and chance.
        membership: that of the snapshot; it wins over ``members``.
    """

    def __init__(
        self,
        *,
        config: RaftConfig,
        me: Member,
        members: Sequence[Member],
        journal: EngineJournal,
        state_machine: StateMachine,
        clock: Clock,
        rand: Rand,
        membership: Membership | None = None,
    ) -> None:
        config.validate()
        self.config = config
        self.me = me
        self._clock = clock
        self._state_machine = state_machine
        self._inbox: deque[tuple[int, raft_pb2.RaftMessage, int]] = deque()
        self._inbox_bytes = 0
        #: Messages of peers that came when too many waited.
        self.dropped = 0
        self._proposals = Proposals()
        self._reads = Reads(config, [], int.from_bytes(rand.token(6), "big"))
        self._linked: set[int] = set()
        self._link_generation: dict[int, int] = {}
        self._leading_term: int | None = None
        self._announced_term: int | None = None
        self._applied = 0
        #: The end of the log when the last step ended, which is durable when another one begins.
        self._durable_index = 0
        self._outbox: list[tuple[int, raft_pb2.RaftMessage]] = []
        self._moved: list[tuple[TransferDone, StatusError | None]] = []
        #: Bytes of log entries applied since a snapshot was last cut (the cutter sets it back).
        self.bytes_since_snapshot = 0
        self._ready = False
        self._transfer: Transfer | None = None
        self._stepping_aside = False
        #: The log entry by which this replica ceased to be a member, once that is committed.
        self.removed_at: int | None = None
        self._members_version = -1
        self.engine = Engine(
            config=config,
            member_id=me.id,
            peer_ids=(),
            journal=journal,
            clock=clock,
            rand=rand,
            apply=self._apply,
            applied_index=state_machine.applied_index,
            memberships=Memberships(membership or Membership(tuple(members)), state_machine.applied_index),
            on_config=self._on_config,
        )
        self._follow_members()
        if membership is not None:
            self._on_config(state_machine.applied_index, membership)
        # Ready means: one linearizable read has passed, so this replica has caught up with a living cluster.
        self._reads.add(_NEVER_S, self._became_ready)

    # -- inputs ------------------------------------------------------------------------------------------------

    def receive(self, peer_id: int, message: raft_pb2.RaftMessage, size_bytes: int | None = None) -> None:
        """A checked message from a peer's current link. Dropped, as by a bad link, when too much waits: while a disk
        stalls, peers go on sending, and everything that is dropped is sent again."""
        size = message.ByteSize() if size_bytes is None else size_bytes  # it serializes, so do not ask in vain
        if len(self._inbox) >= INBOX_MESSAGES_MAX or (self._inbox and self._inbox_bytes + size > INBOX_BYTES_MAX):
            self.dropped += 1
            return
        self._inbox_bytes += size
        self._inbox.append((peer_id, message, size))

    def link_up(self, peer_id: int, *, knows_pre_vote: bool = True) -> None:
        """Our link to the peer stands: what is sent from now on may arrive."""
        self._linked.add(peer_id)
        self._link_generation[peer_id] = self._link_generation.get(peer_id, 0) + 1
        self.engine.connected(peer_id, knows_pre_vote=knows_pre_vote)

    def link_down(self, peer_id: int) -> None:
        """Our link to the peer is gone, with everything in flight."""
        self._linked.discard(peer_id)
        self._link_generation[peer_id] = self._link_generation.get(peer_id, 0) + 1
        self.engine.disconnected(peer_id)

    def peer_died(self, peer_id: int) -> None:
        """The peer's process is gone (its address refuses): a hint, which may be wrong."""
        self.engine.peer_died(peer_id)

    def propose(self, payload: bytes, *, request_id: bytes, deadline: float, done: Done, born_index: int = 0) -> None:
        """Replicate a write; ``done`` hears its outcome, at ``deadline`` (monotonic seconds) at the latest."""
        self._proposals.add(payload, request_id, deadline, born_index or self.engine.applied_index, done)

    def read(self, *, deadline: float, done: ReadDone) -> None:
        """``done`` hears once everything committed before this call is applied here."""
        self._reads.add(deadline, done)

    def send(self, peer_id: int, message: raft_pb2.RaftMessage) -> None:
        """Send with the next turn: after everything recorded until now is durable."""
        self._outbox.append((peer_id, message))

    def installed(self, index: int, term: int, membership: Membership | None = None) -> None:
        """State machine and journal stand at a snapshot of the leader: go on from there."""
        self.engine.installed(index, term, membership)
        if membership is not None:
            self._on_config(index, membership)
        self.bytes_since_snapshot = 0
        # Writes held here may be inside the snapshot, their entries never to be seen: ask again.
        self._proposals.send_again()

    def transfer(self, target_id: int | None, *, deadline: float, done: TransferDone) -> None:
        """As leader: hand leadership to a peer (None: to the one that is best prepared); ``done`` hears of it.

        A request that is under way gives way to a newer one.

        Raises:
            StatusError: not the leader, or the target cannot lead.
        """
        engine = self.engine
        if not engine.is_leader:
            raise StatusError(Code.FAILED_PRECONDITION, "etcdserver: not leader")
        if target_id == self.me.id:
            self._moved.append((done, None))
            return
        if target_id is not None and target_id not in engine.voters:
            raise StatusError(Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee")
        self._end_transfer(_TIMED_OUT)
        self._transfer = Transfer(self.config, engine.term, target_id, deadline, done)

    def change_members(self, change: MemberChange, *, attempt_id: bytes) -> int | None:
        """As leader: put one change of the membership in the log, and in force. The index of its entry; that of the
        present membership if it holds the attempt already; None while another change, or a transfer, is under way.

        Raises:
            StatusError: it does not fit the members, or would endanger the quorum; etcd's codes and texts.
        """
        engine = self.engine
        memberships = engine.memberships
        if attempt_id in memberships.active.attempts:
            return memberships.active_index
        if not engine.settled or self._transfer is not None or self._stepping_aside:
            return None
        index = engine.last_index + 1
        after = memberships.active.changed(change, attempt_id=attempt_id, index=index)
        check_change(change, memberships.active, after, me=self.me.id, engine=engine, config=self.config)
        engine.append_config(after)
        self._follow_members()
        return index

    def step_aside(self) -> None:
        """This replica is about to stop: hand leadership over, and take no write into the log any more."""
        self._stepping_aside = True

    def abandon(self, reason: str) -> Turn:
        """The replica stops now: every waiter gets an outcome."""
        self._proposals.abandon(reason)
        self._reads.abandon()
        self._end_transfer(StatusError(Code.UNAVAILABLE, "etcdserver: server stopped"))
        return Turn(
            outcomes=self._proposals.take_outcomes(), reads=self._reads.take_results(), transfers=self._take_moved()
        )

    # -- the turn ----------------------------------------------------------------------------------------------

    def step(self) -> Turn:
        """Do everything that can be done now."""
        turn = Turn()
        turn.messages, self._outbox = self._outbox, []
        engine, now = self.engine, self._clock.monotonic()
        before = (engine.role, engine.term)
        self._applied = 0
        self._handle_messages(turn)
        self._pump_proposals(now, turn)
        engine.tick()
        self._follow_leadership(turn)
        turn.messages += engine.take_messages()
        self._follow_members()
        turn.messages += self._reads.step(engine, self._route(), now)
        self._proposals.expire(now)
        turn.outcomes = self._proposals.take_outcomes()
        turn.reads = self._reads.take_results()
        turn.transfers = self._take_moved()
        turn.applied = self._applied
        self._part(turn, undisturbed=(engine.role, engine.term) == before)
        return turn

    @property
    def has_work(self) -> bool:
        """Another step would do something at once."""
        engine = self.engine
        return (
            bool(self._inbox)
            or bool(self._outbox)
            or engine.applied_index < engine.commit_index
            or (engine.is_leader and not engine.voters and engine.commit_index < engine.last_index)
            or (engine.is_leader and self._proposals.queued > 0 and self._may_append())
        )

    def next_wake(self) -> float:
        """Monotonic time of the next step that is due even if nothing arrives."""
        times = [self.engine.next_wake()]
        if (deadline := self._proposals.next_deadline()) is not None:
            times.append(deadline)
        resend = self._proposals.next_resend(self.config.resend_ms / 1000)
        if resend is not None and self._route() is not None:
            times.append(resend)
        if (wake := self._reads.next_wake()) is not None:
            times.append(wake)
        if self._transfer is not None:
            times.append(self._transfer.deadline)
        return min(times)

    # -- what it knows -----------------------------------------------------------------------------------------

    @property
    def members(self) -> tuple[Member, ...]:
        """In force here: perhaps not committed yet."""
        return self.engine.memberships.active.members

    @property
    def role(self) -> Role:
        return self.engine.role

    @property
    def ready(self) -> bool:
        """The first read barrier has passed."""
        return self._ready

    @property
    def pending(self) -> int:
        """Writes held here without an outcome."""
        return len(self._proposals)

    # -- inside ------------------------------------------------------------------------------------------------

    def _part(self, turn: Turn, *, undisturbed: bool) -> None:
        """Part what must wait for the disk from what need not. ``undisturbed``: role and term are what they were."""
        engine = self.engine
        durable_index, self._durable_index = self._durable_index, engine.last_index
        # A leader that votes alone commits what its disk may not hold yet: then everything waits.
        turn.settled = undisturbed and (not engine.is_leader or engine.commit_index <= durable_index)
        if turn.settled and engine.is_leader:
            messages, turn.messages = turn.messages, []
            for message in messages:
                whither = turn.ahead if message[1].WhichOneof("body") in _OF_LEADER else turn.messages
                whither.append(message)

    def _handle_messages(self, turn: Turn) -> None:
        engine = self.engine
        for _ in range(min(len(self._inbox), _MESSAGES_PER_STEP)):
            peer_id, message, size = self._inbox.popleft()
            self._inbox_bytes -= size
            kind = message.WhichOneof("body")
            if kind in _CONSENSUS:
                engine.receive(peer_id, message)
            elif kind == "forward":
                if engine.is_leader:
                    self._note_leading()
                    self._proposals.accept(message.forward.proposals, forwarded=True)
            elif kind == "probe":
                if message.term == engine.term and not engine.is_leader:
                    ack = raft_pb2.RaftMessage(term=engine.term, probe_ack=raft_pb2.ProbeAck(seq=message.probe.seq))
                    turn.messages.append((peer_id, ack))
            elif kind == "probe_ack":
                self._reads.on_probe_ack(peer_id, message.term, message.probe_ack)
            elif kind == "read_index":
                if engine.is_leader:
                    self._reads.on_request(peer_id, message.read_index)
            elif kind == "read_index_reply":
                self._reads.on_reply(message.read_index_reply)
            elif kind in _SNAPSHOT:
                turn.snapshot_messages.append((peer_id, message))
        turn.messages += engine.take_messages()

    def _note_leading(self) -> None:
        """Keep the leader's queue in step with who leads."""
        engine = self.engine
        if engine.is_leader and self._leading_term != engine.term:
            self._leading_term = engine.term
            tail = engine.entries(engine.commit_index + 1, engine.last_index + 1)
            self._proposals.lead(command[1:] for command, _, _ in tail if command[:1] == b"\x00")
        elif not engine.is_leader and self._leading_term is not None:
            self._leading_term = None
            self._proposals.follow()

    def _pump_proposals(self, now: float, turn: Turn) -> None:
        engine, proposals = self.engine, self._proposals
        self._note_leading()
        if engine.is_leader:
            proposals.accept_own()
            self._pump_transfer(now)
            if self._may_append() and (batch := proposals.next_batch()) is not None:
                data, turn.batched = batch
                engine.append(data)
        elif (route := self._route()) is not None:
            for frame in proposals.forward(route, now, self.config.resend_ms / 1000):
                forward = raft_pb2.RaftMessage(term=engine.term, forward=raft_pb2.Forward(proposals=frame))
                turn.messages.append((route[0], forward))

    def _pump_transfer(self, now: float) -> None:
        """As leader: bring the transfer under way forward, or begin the one that stopping needs."""
        if self._transfer is None and self._stepping_aside and self.engine.transfer_target() is not None:
            self._transfer = Transfer(self.config, self.engine.term, None, _NEVER_S, lambda error: None)
        if self._transfer is not None and self._transfer.pump(self.engine, now):
            self._end_transfer(_TIMED_OUT)

    def _follow_transfer(self) -> None:
        """Once another leader is known, the transfer has ended, one way or the other."""
        transfer, leader = self._transfer, self.engine.leader
        if transfer is None or (self.engine.is_leader and self.engine.term == transfer.term):
            return
        if leader is not None and leader != self.me.id and transfer.wanted in (leader, None):
            self._end_transfer(None)
        elif leader is not None or self._clock.monotonic() >= transfer.deadline:
            self._end_transfer(_TIMED_OUT)

    def _end_transfer(self, error: StatusError | None) -> None:
        if self._transfer is not None:
            self._moved.append((self._transfer.done, error))
            self._transfer = None

    def _take_moved(self) -> list[tuple[TransferDone, StatusError | None]]:
        taken, self._moved = self._moved, []
        return taken

    def _may_append(self) -> bool:
        engine = self.engine
        if self._stepping_aside or (self._transfer is not None and self._transfer.closing):
            return False
        return engine.last_index - engine.commit_index < self.config.inflight_entries_max

    def _route(self) -> Route | None:
        """The way to the leader, when it is another replica and a link to it stands."""
        leader = self.engine.leader
        if leader is None or leader not in self._linked:
            return None
        return leader, self.engine.term, self._link_generation[leader]

    def _follow_leadership(self, turn: Turn) -> None:
        self._note_leading()
        self._follow_transfer()
        engine = self.engine
        announced = self._announced_term
        if announced is not None and (not engine.is_leader or engine.term != announced):
            turn.leadership.append((announced, False))
            self._announced_term = None
        if self._announced_term is None and engine.term_committed:
            self._announced_term = engine.term
            turn.leadership.append((engine.term, True))

    def _apply(self, index: int, term: int, data: bytes | None) -> None:
        proposals = [] if data is None else list(decode_batch(data))
        failpoints.hit("apply.before")
        replies = self._state_machine.apply(index, term, proposals)
        failpoints.hit("apply.after")
        if len(replies) != len(proposals):
            raise CorruptStateError(f"entry {index}: {len(replies)} replies for {len(proposals)} writes")
        self._proposals.applied(proposals, replies, index)
        self.bytes_since_snapshot += len(data or b"")
        self._applied += 1

    def _on_config(self, index: int, membership: Membership) -> None:
        """A membership is committed. One that does not name this replica may be older than this replica."""
        removal = membership.removal_of(self.me.id)
        if removal is not None:
            self.removed_at = removal.index

    def _follow_members(self) -> None:
        if self._members_version != self.engine.members_version:
            self._members_version = self.engine.members_version
            self._reads.set_voters(self.engine.voters)

    def _became_ready(self, result: int | StatusError) -> None:
        self._ready = not isinstance(result, StatusError)
