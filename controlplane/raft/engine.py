"""The consensus engine: pysyncobj behind our own seams. With its seams
(``engine_seams.py``) the only code that knows the library's private names.

Owns: the library's instance, the translation between its messages (Python dicts) and our typed frames, and every
correction of its behaviour. Must not know the network, the disk, proposals, reads or snapshots files.

What is replaced (each private name used has a contract test in tests/unit/raft/test_engine_contract.py):

* log: our journal, which truncates only on conflict. The tail the library cuts stays hidden until the message is
  handled (so that nothing unverified is committed), then comes back; the commit index never goes down.
* transport: messages leave as protobuf and only through :meth:`Engine.take_messages`; nothing is ever pickled.
* commands: one type byte and our own bytes. Applying goes to a callback; its exceptions leave :meth:`Engine.tick`.
* clock and random: bound to this engine's for the length of each call.
* elections: a replica asks before it stands (pre-vote), and supports nobody while its leader lives, unless the
  leader itself asked for the election (Ongaro's dissertation 9.6, 4.2.3, 3.10). A message of a term that is over is
  answered with the present one, so that whoever is stuck in either learns.
* votes are counted once per voter and term; acknowledgements of another term and rewinds that answer a message
  sent before the last rewind are dropped; a rewind never points beyond the leader's log and skips a whole
  conflicting term at once.
* members: the library's sets of peers follow the membership in force, which CONFIG entries of the log hold. Learners
  are what it calls read-only nodes: they get the log and are not counted. A leader always votes: it hands over before
  it is removed. A member that is removed gets the entry that says so only once it is committed.
* the library's dump and fork logic is out of reach: compaction and snapshot install are driven from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Final

from controlplane.base.clock import Clock
from controlplane.base.errors import CorruptStateError
from controlplane.base.rand import Rand
from controlplane.pb.quarterdeck.internal.v1 import raft_pb2
from controlplane.raft.config import RaftConfig
from controlplane.raft.engine_seams import EngineJournal, Links, LogEntry, Peer, bind, make_consensus
from controlplane.raft.membership import Membership, Memberships
from controlplane.raft.prevote import LeaderWatch, PreVotes
from controlplane.raft.types import Member

__all__ = ["Engine", "EngineJournal", "LogEntry", "Role"]


_COMMAND: Final = 0
_NO_OP: Final = 1
#: The library has such a type byte of its own, and leaves it alone unless it is told to change members by itself.
_CONFIG: Final = 2
_KINDS: Final = {_COMMAND: raft_pb2.Entry.COMMAND, _NO_OP: raft_pb2.Entry.NO_OP, _CONFIG: raft_pb2.Entry.CONFIG}
_KIND_BYTES: Final = {
    raft_pb2.Entry.COMMAND: b"\x00",
    raft_pb2.Entry.NO_OP: b"\x01",
    raft_pb2.Entry.CONFIG: b"\x02",
}

_FOLLOWER: Final = 0
_CANDIDATE: Final = 1
_LEADER: Final = 2

_RETRIES_HASTENED: Final = 6
#: How long a leader tries to tell a removed member that it is.
_FAREWELL_S: Final = 30.0
#: Between two looks at the clock of a member that may not stand.
_IDLE_S: Final = 30.0
#: When such a member stands.
_NEVER_S: Final = 1e18
#: An election deadline that has passed on any clock.
_AT_ONCE_S: Final = -1.0


class Role(Enum):
    """What this replica is in its term."""

    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"


_ROLES: Final = {_FOLLOWER: Role.FOLLOWER, _CANDIDATE: Role.CANDIDATE, _LEADER: Role.LEADER}


class Engine:
    """One replica's consensus, without I/O: give it messages and time, take messages.

    Args:
        config: timers and sizes.
        member_id: this replica.
        peer_ids: the other members, unless ``memberships`` says who they are.
        journal: the recovered log; the engine adds the initial entry to an empty one.
        clock, rand: the only time and chance it sees.
        apply: called in order with (index, term, batch bytes) of each committed entry; ``None`` for a no-op.
        applied_index: what the state machine already holds (its snapshot's index), 0 when it is empty.
        memberships: who the members are where the log begins; the log's own entries are added to it here.
        on_config: called before ``apply`` with (index, membership) of each committed CONFIG entry.
    """

    def __init__(
        self,
        *,
        config: RaftConfig,
        member_id: int,
        peer_ids: Iterable[int],
        journal: EngineJournal,
        clock: Clock,
        rand: Rand,
        apply: Callable[[int, int, bytes | None], None],
        applied_index: int,
        memberships: Memberships | None = None,
        on_config: Callable[[int, Membership], None] = lambda index, membership: None,
    ) -> None:
        self._config = config
        self._journal = journal
        self._clock = clock
        self._rand = rand
        self._apply_entry = apply
        self._on_config = on_config
        self._me = Peer(member_id)
        if memberships is None:
            founders = tuple(Member(peer_id, "", "", "") for peer_id in sorted({member_id, *peer_ids}))
            memberships = Memberships(Membership(founders), 0)
        self._memberships = memberships
        #: Voters, learners, and removed members that are being told.
        self._peers: dict[int, Peer] = {}
        self._voters: frozenset[int] = frozenset()
        self._may_stand = False
        #: Removed members that do not know it yet -> when to give up.
        self._farewells: dict[int, float] = {}
        self._connected: set[int] = set()
        #: Counts changes of who is in force, spoken to, or removed.
        self.members_version = 0
        self._out: list[tuple[int, raft_pb2.RaftMessage]] = []
        self._answering_seq = 0
        self._append_seq: dict[int, int] = {}
        self._rewound_at: dict[int, int] = {}
        self._votes: tuple[int, set[int]] = (0, set())
        self._hastened_retries = 0
        self._watch = LeaderWatch(clock, alive_s=config.election_min_ms / 1000, grace_s=2 * config.heartbeat_ms / 1000)
        self._pre_votes = PreVotes()
        #: Connected peers of a version that does not know the question: their answer is taken for granted.
        self._without_pre_vote: set[int] = set()
        self._standing_for_transfer = False
        self._behind: set[int] = set()
        self._links = Links(self._translate_out)
        self._bind()
        self._sync = make_consensus(config, self._me, [], journal, self._links, self._apply, self._on_peer_behind)
        for command, index, term in self.entries(applied_index + 1, self.last_index + 1):
            if command[:1] == b"\x02":
                memberships.add(index, term, Membership.decode(command[1:]))
        self._adopt()
        if self.first_index > max(applied_index, 1):
            raise CorruptStateError(
                f"the log starts at index {self.first_index} and the newest snapshot holds {applied_index}: what lies "
                f"between is missing; replace the member, or put its newest snapshot back"
            )
        if applied_index > 0:
            self._sync._SyncObj__raftLastApplied = applied_index
            self._set_commit(max(self.commit_index, applied_index))
        else:
            # The library counts the initial entry as applied; the state machine hears of it like of any other.
            self._apply_entry(1, 0, None)
        if self.commit_index > self.last_index:
            raise CorruptStateError(
                f"the log ends at index {self.last_index}, before index {self.commit_index} which was committed: "
                f"this data directory has lost entries; replace the member"
            )

    def _bind(self) -> None:
        bind(self._clock, self._rand)

    # -- what it knows ---------------------------------------------------------------------------------------

    @property
    def role(self) -> Role:
        return _ROLES[self._sync._SyncObj__raftState]

    @property
    def is_leader(self) -> bool:
        """It believes so: another replica may already know better. Nothing may be answered on this alone."""
        return bool(self._sync._SyncObj__raftState == _LEADER)

    @property
    def term(self) -> int:
        return int(self._sync._SyncObj__raftCurrentTerm)

    @property
    def leader(self) -> int | None:
        """Member id of the leader of this term, if one was heard."""
        node = self._sync._SyncObj__raftLeader
        return None if node is None else int(node.member_id)

    @property
    def commit_index(self) -> int:
        return int(self._sync._SyncObj__raftCommitIndex)

    @property
    def applied_index(self) -> int:
        return int(self._sync._SyncObj__raftLastApplied)

    @property
    def first_index(self) -> int:
        """Index of the oldest entry kept."""
        return self._journal[0][1]

    @property
    def last_index(self) -> int:
        return self._journal[-1][1]

    def term_at(self, index: int) -> int | None:
        """Term of the entry at ``index``; None when it is not (or no longer) in the log."""
        position = index - self.first_index
        return self._journal[position][2] if 0 <= position < len(self._journal) else None

    def entries(self, start: int, end: int) -> Sequence[LogEntry]:
        """Entries with start <= index < end that are in the log."""
        first = self.first_index
        return self._journal[max(0, start - first) : max(0, end - first)]

    @property
    def voters(self) -> frozenset[int]:
        """The other members that vote."""
        return self._voters

    @property
    def memberships(self) -> Memberships:
        """Those of the log. For reading."""
        return self._memberships

    @property
    def settled(self) -> bool:
        """As leader: the membership in force is committed, and so is an entry of its own term: it may be changed.

        Without the latter, two leaders could each change it by one voter and end with majorities that do not meet
        (raft-dev, July 2015).
        """
        return self.term_committed and self._memberships.active_index <= self.commit_index

    @property
    def correspondents(self) -> tuple[Member, ...]:
        """The other members that there must be links to: those in force, those that may come back into force, and
        removed ones that are being told."""
        found = {m.id: m for membership in self._memberships.all for m in membership.members}
        found.pop(int(self._me.member_id), None)
        return tuple(found[member_id] for member_id in sorted(found))

    @property
    def farewells(self) -> frozenset[int]:
        """Removed members that this leader still tells so."""
        return frozenset(self._farewells)

    def match_index(self, peer_id: int) -> int:
        """As leader: up to where the peer's log is known to equal ours."""
        return int(self._sync._SyncObj__raftMatchIndex.get(Peer(peer_id), 0))

    def heard_within(self, peer_id: int, seconds: float) -> bool:
        """As leader: whether the peer answered so lately."""
        at = self._sync._SyncObj__lastResponseTime.get(Peer(peer_id))
        return at is not None and self._clock.monotonic() - at < seconds and peer_id in self._connected

    @property
    def term_committed(self) -> bool:
        """As leader: an entry of its own term is committed, so its commit index is not behind any earlier leader's."""
        return self.is_leader and self.term_at(self.commit_index) == self.term

    @property
    def behind(self) -> frozenset[int]:
        """As leader: peers that the log no longer reaches back to; they need a snapshot."""
        return frozenset(self._behind) if self.is_leader else frozenset()

    def next_wake(self) -> float:
        """Monotonic time at which :meth:`tick` has something to do even if nothing arrives."""
        if self.is_leader:
            return float(self._sync._SyncObj__newAppendEntriesTime)
        deadline = float(self._sync._SyncObj__raftElectionDeadline)
        if self._sync._SyncObj__connectedNodes or not self._voters:
            return min(deadline, self._clock.monotonic() + _IDLE_S)
        # It cannot stand for election without a link: look again when a heartbeat would be due.
        return max(deadline, self._clock.monotonic() + self._config.heartbeat_ms / 1000)

    # -- what happens to it ----------------------------------------------------------------------------------

    def connected(self, peer_id: int, *, knows_pre_vote: bool = True) -> None:
        """A link to the peer stands."""
        self._bind()
        self._connected.add(peer_id)
        self._watch.on_connected(peer_id)
        if knows_pre_vote:
            self._without_pre_vote.discard(peer_id)
        else:
            self._without_pre_vote.add(peer_id)
        if peer_id in self._peers:
            self._links._onNodeConnected(self._peers[peer_id])

    def disconnected(self, peer_id: int) -> None:
        """The link to the peer is gone, with whatever was in flight."""
        self._bind()
        self._connected.discard(peer_id)
        self._without_pre_vote.discard(peer_id)
        self._links._onNodeDisconnected(self._peer(peer_id))

    def peer_died(self, peer_id: int) -> None:
        """The peer's process is known to be dead: if it led, do not wait out the whole election timeout."""
        self._watch.on_died(peer_id)
        if self.leader == peer_id and not self.is_leader:
            self._hastened_retries = _RETRIES_HASTENED
            self._pull_in_election(self._config.hasten_min_ms, self._config.hasten_max_ms)

    def receive(self, peer_id: int, message: raft_pb2.RaftMessage) -> None:
        """Handle one checked consensus message of a peer (see ``transport.frames``).

        Raises:
            CorruptStateError: the message contradicts what is committed here, or shows two leaders in one term.
        """
        self._bind()
        kind = message.WhichOneof("body")
        if kind == "append_entries":
            self._on_append_entries(peer_id, message.term, message.append_entries)
        elif kind == "next_index":
            self._on_next_index(peer_id, message.term, message.next_index)
        elif kind == "request_vote":
            self._on_request_vote(peer_id, message.term, message.request_vote)
        elif kind == "pre_vote":
            self._on_pre_vote(peer_id, message.term, message.pre_vote)
        elif kind == "pre_vote_reply":
            self._on_pre_vote_reply(peer_id, message.term, message.pre_vote_reply)
        elif kind == "vote":
            self._on_vote(peer_id, message.term)
        elif kind == "timeout_now":
            self._deliver(peer_id, {"type": "timeout_now", "term": message.term})
        elif kind == "leader_alive":
            self._on_leader_alive(peer_id, message.term, message.leader_alive)
        else:
            raise ValueError(f"not a consensus message: {kind}")

    def append(self, batch: bytes) -> None:
        """As leader: make ``batch`` the next log entry, in the coming :meth:`tick`. Lost if leadership is."""
        self._bind()
        self._sync._applyCommand(batch, None, _COMMAND)

    def append_config(self, membership: Membership) -> int:
        """As leader of a settled membership: put ``membership`` in force, as the next log entry; its index."""
        assert self.is_leader
        assert self.settled
        self._bind()
        index, term = self.last_index + 1, self.term
        self._journal.add(b"\x02" + membership.encode(), index, term)
        self._memberships.add(index, term, membership)
        self._adopt()
        self._send_soon()
        return index

    def tick(self) -> None:
        """Let time act: elections, commits, applies, heartbeats, appends. Raises whatever applying raised."""
        self._bind()
        sync = self._sync
        was_leader, term = self.is_leader, self.term
        if not was_leader:
            self._consider_standing()
        sync.doTick(0.0)
        self._standing_for_transfer = False
        if not self.is_leader:
            self._behind.clear()
        self._end_farewells()
        if was_leader and not self.is_leader and self.term == term:
            # Stepped down for want of a quorum: its own election deadline dates from before it was elected.
            self._pull_in_election(self._config.election_min_ms, self._config.election_max_ms, keep_earlier=False)
        if self.term != term and self._sync._SyncObj__raftState == _CANDIDATE and self._hastened_retries > 0:
            self._hastened_retries -= 1
            self._pull_in_election(self._config.hastened_retry_min_ms, self._config.hastened_retry_max_ms)

    def take_messages(self) -> list[tuple[int, raft_pb2.RaftMessage]]:
        """What to send, in order, once everything journalled so far is durable."""
        taken, self._out = self._out, []
        return taken

    def transfer_target(self) -> int | None:
        """As leader: who should lead next. Among those that answered lately, the one with the longest log."""
        sync, now = self._sync, self._clock.monotonic()
        fresh_s = 3 * self._config.heartbeat_ms / 1000
        standing = [
            (now - sync._SyncObj__lastResponseTime[node] < fresh_s, sync._SyncObj__raftMatchIndex[node], node.member_id)
            for node in sync._SyncObj__otherNodes
            if node in sync._SyncObj__connectedNodes
        ]
        return max(standing)[2] if self.is_leader and standing else None

    def lag(self, peer_id: int) -> int:
        """As leader: entries of the log that the peer has not acknowledged."""
        return self.last_index - self.match_index(peer_id)

    def transfer_leadership(self, target_id: int) -> bool:
        """As leader: ask a peer to stand at once (dissertation 3.10). False if it has not the whole log."""
        self._bind()
        before = len(self._out)
        if self.is_leader:
            self._sync.transferLeadership(self._peers[target_id])
        return len(self._out) > before

    def installed(self, index: int, term: int, membership: Membership | None = None) -> None:
        """The state machine and the journal now stand at a snapshot: go on from there, with its membership."""
        if self.first_index != index or self.term_at(index) != term:
            raise CorruptStateError(
                f"snapshot {index} is installed but the log holds {self.first_index}-{self.last_index}"
            )
        self._sync._SyncObj__raftLastApplied = index
        self._set_commit(index)
        if membership is not None:
            self._bind()
            self._memberships.restart(membership, index)
            self._memberships.revert(self.term_at)
            self._adopt()

    def commit_to(self, index: int) -> None:
        """An entry in the log is known to be committed (a snapshot that contains it was offered)."""
        self._set_commit(max(self.commit_index, index))

    def peer_installed(self, peer_id: int, index: int) -> None:
        """As leader: the peer stands at a snapshot of ``index``; continue with the log."""
        if not self.is_leader or peer_id not in self._peers:
            return
        node = self._peers[peer_id]
        sync = self._sync
        sync._SyncObj__raftMatchIndex[node] = max(sync._SyncObj__raftMatchIndex[node], index)
        sync._SyncObj__raftNextIndex[node] = max(sync._SyncObj__raftMatchIndex[node], index) + 1
        self._behind.discard(peer_id)
        self._rewound_at[peer_id] = self._append_seq[peer_id]
        self._send_soon()

    def peer_alive(self, peer_id: int) -> None:
        """As leader: the peer answered in this term (counts towards the quorum that keeps the leader)."""
        if self.is_leader and peer_id in self._peers:
            self._sync._SyncObj__lastResponseTime[self._peers[peer_id]] = self._clock.monotonic()

    # -- inside ----------------------------------------------------------------------------------------------

    def _peer(self, peer_id: int) -> Peer:
        """A member, or somebody that may be one by a membership we have not heard of: it may lead or ask for a vote."""
        return self._peers.get(peer_id) or Peer(peer_id)

    def _adopt(self) -> None:
        """Let the library count and feed the members in force."""
        sync, active, my_id = self._sync, self._memberships.active, int(self._me.member_id)
        self._voters = active.voters - {my_id}
        self._may_stand = my_id in active.voters
        self._farewells = {p: until for p, until in self._farewells.items() if active.get(p) is None}
        fed = (active.learners - {my_id}) | self._farewells.keys()
        now = self._clock.monotonic()
        peers = {peer_id: self._peer(peer_id) for peer_id in sorted(self._voters | fed)}
        for peer_id in self._peers.keys() - peers.keys():
            gone = self._peers[peer_id]
            for by_node in (
                sync._SyncObj__raftNextIndex,
                sync._SyncObj__raftMatchIndex,
                sync._SyncObj__lastResponseTime,
            ):
                by_node.pop(gone, None)
            self._behind.discard(peer_id)
        for peer_id in peers.keys() - self._peers.keys():
            node = peers[peer_id]
            sync._SyncObj__raftNextIndex[node] = self.last_index + 1
            sync._SyncObj__raftMatchIndex[node] = 0
            sync._SyncObj__lastResponseTime[node] = now
            self._append_seq.setdefault(peer_id, 0)
            self._rewound_at[peer_id] = self._append_seq[peer_id]
        self._peers = peers
        sync._SyncObj__otherNodes = {peers[peer_id] for peer_id in sorted(self._voters)}
        sync._SyncObj__readonlyNodes = {peers[peer_id] for peer_id in sorted(fed)}
        sync._SyncObj__connectedNodes = {peers[peer_id] for peer_id in sorted(self._connected & peers.keys())}
        self.members_version += 1

    def _end_farewells(self) -> None:
        """Done with removed members that have heard of it or do not answer, and when it is no longer ours to do."""
        now = self._clock.monotonic()
        over = {
            peer_id
            for peer_id, until in self._farewells.items()
            if not self.is_leader or now >= until or self._has_heard_of_removal(peer_id)
        }
        if over:
            self._farewells = {p: until for p, until in self._farewells.items() if p not in over}
            self._adopt()

    def _has_heard_of_removal(self, peer_id: int) -> bool:
        # The entry was committed before the farewell began, so whatever brought it also said that it is committed.
        removal = self._memberships.active.removal_of(peer_id)
        return removal is None or self.match_index(peer_id) >= removal.index

    def _deliver(self, peer_id: int, message: dict[str, Any]) -> None:
        before = self.commit_index
        self._links._onMessageReceived(self._peer(peer_id), message)
        self._journal.handler_ended()
        if self.commit_index < before:
            # The library lowers it to the end of what this message verified. What is committed stays committed.
            self._set_commit(before)

    def _consider_standing(self) -> None:
        """Before the library holds an election: ask, unless the leader asked for it or a majority has agreed."""
        sync = self._sync
        if not self._may_stand:
            sync._SyncObj__raftElectionDeadline = _NEVER_S
            sync._SyncObj__transferInProgress = False
            self._pre_votes.close()
            return
        if sync._SyncObj__raftElectionDeadline == _NEVER_S:
            self._pull_in_election(self._config.election_min_ms, self._config.election_max_ms)
        if self._pre_votes.won(self.term, self.voters, willing=self._without_pre_vote):
            self._pre_votes.close()
            sync._SyncObj__raftElectionDeadline = _AT_ONCE_S
            return
        if sync._SyncObj__raftElectionDeadline >= self._clock.monotonic():
            return
        if sync._SyncObj__transferInProgress:
            self._standing_for_transfer = True
            return
        if not sync._SyncObj__connectedNodes and self.voters:
            return
        sync._SyncObj__raftLeader = None
        seq = self._pre_votes.ask(self.term)
        if self._pre_votes.won(self.term, self.voters, willing=self._without_pre_vote):
            self._pre_votes.close()
            return
        if self._pre_votes.rounds <= _RETRIES_HASTENED:
            low_ms, high_ms = self._config.hastened_retry_min_ms, self._config.hastened_retry_max_ms
        else:
            low_ms, high_ms = self._config.election_min_ms, self._config.election_max_ms
        self._pull_in_election(low_ms, high_ms, keep_earlier=False)
        last_index, last_term, _ = self._standing()
        question = raft_pb2.PreVote(last_index=last_index, last_term=last_term, seq=seq)
        for peer_id in sorted(self.voters - self._without_pre_vote):
            self._out.append((peer_id, raft_pb2.RaftMessage(term=self.term, pre_vote=question)))

    def _standing(self) -> tuple[int, int, int]:
        _, last_index, last_term = self._journal[-1]
        return last_index, last_term, int(self._me.member_id)

    def _leader_lives(self) -> bool:
        return self.is_leader or self._watch.alive(self.term)

    def _on_pre_vote(self, peer_id: int, term: int, ask: raft_pb2.PreVote) -> None:
        last_index, last_term, my_id = self._standing()
        granted = (
            term + 1 > self.term
            and (ask.last_term, ask.last_index) >= (last_term, last_index)
            and not self._leader_lives()
        )
        if (
            granted
            and self._pre_votes.open
            and (ask.last_term, ask.last_index, peer_id) > (last_term, last_index, my_id)
        ):
            # Both of us ask at once: one stands, so that the votes are not split.
            self._pre_votes.close()
        reply = raft_pb2.PreVoteReply(seq=ask.seq, granted=granted)
        self._out.append((peer_id, raft_pb2.RaftMessage(term=self.term, pre_vote_reply=reply)))

    def _on_pre_vote_reply(self, peer_id: int, term: int, reply: raft_pb2.PreVoteReply) -> None:
        if term > self.term:
            self._enter(term)
        elif reply.granted:
            self._pre_votes.on_granted(peer_id, reply.seq)

    def _on_request_vote(self, peer_id: int, term: int, ask: raft_pb2.RequestVote) -> None:
        if self._leader_lives() and not ask.transfer:
            return
        self._deliver(
            peer_id,
            {
                "type": "request_vote",
                "term": term,
                "last_log_index": ask.last_index,
                "last_log_term": ask.last_term,
            },
        )

    def _enter(self, term: int) -> None:
        """A peer is in a later term: so are we."""
        if self.is_leader:
            self._pull_in_election(self._config.election_min_ms, self._config.election_max_ms, keep_earlier=False)
        self._pre_votes.close()
        sync = self._sync
        sync._SyncObj__setCurrentTerm(term, None)
        sync._SyncObj__setState(_FOLLOWER)
        sync._SyncObj__raftLeader = None

    def _hear_leader(self, peer_id: int, term: int, seq: int) -> bool:
        """A message that only a leader sends. False when its term is over: then it is told."""
        self._check_one_leader(peer_id, term)
        if term < self.term:
            news = raft_pb2.NextIndex(next_index=self.commit_index + 1, success=False, reset=False, seq=seq)
            self._out.append((peer_id, raft_pb2.RaftMessage(term=self.term, next_index=news)))
            return False
        self._hastened_retries = 0
        self._pre_votes.leader_heard()
        self._watch.on_heard(term, peer_id)
        return True

    def _on_append_entries(self, peer_id: int, term: int, append: raft_pb2.AppendEntries) -> None:
        if not self._hear_leader(peer_id, term, append.seq):
            return
        self._check_against_committed(peer_id, append)
        entries = [(_KIND_BYTES[e.kind] + e.data, e.index, e.term) for e in append.entries]
        self._answering_seq = append.seq
        self._deliver(
            peer_id,
            {
                "type": "append_entries",
                "term": term,
                "commit_index": append.commit_index,
                "entries": entries,
                "prevLogIdx": append.prev_index,
                "prevLogTerm": append.prev_term,
            },
        )
        reverted = self._memberships.revert(self.term_at)
        configs = [e for e in append.entries if e.kind == raft_pb2.Entry.CONFIG and self.term_at(e.index) == e.term]
        for entry in configs:
            self._memberships.add(entry.index, entry.term, Membership.decode(entry.data))
        if reverted or configs:
            self._adopt()
        if self._watch.is_dead(peer_id):
            # It was sent before the news of the death: the library took it for a sign of life.
            self.peer_died(peer_id)

    def _on_leader_alive(self, peer_id: int, term: int, alive: raft_pb2.LeaderAlive) -> None:
        if not self._hear_leader(peer_id, term, alive.seq):
            return
        # Commit index 0: this heartbeat verifies nothing of our log, so it may commit nothing.
        self._deliver(peer_id, {"type": "append_entries", "term": term, "commit_index": 0, "serialized": None})
        answer = raft_pb2.NextIndex(next_index=self.commit_index + 1, success=False, reset=False, seq=alive.seq)
        self._out.append((peer_id, raft_pb2.RaftMessage(term=self.term, next_index=answer)))

    def _on_next_index(self, peer_id: int, term: int, answer: raft_pb2.NextIndex) -> None:
        if term > self.term:
            self._enter(term)
        if term != self.term or not self.is_leader or peer_id not in self._peers:
            return
        next_index = min(answer.next_index, self.last_index + 1)
        if answer.success and answer.next_index > self.last_index + 1:
            raise CorruptStateError(
                f"peer {peer_id:x} acknowledged index {answer.next_index - 1} in our own term, "
                f"our log ends at {self.last_index}"
            )
        reset = answer.reset and answer.seq > self._rewound_at[peer_id]
        if peer_id in self._behind:
            # It answers LeaderAlive with the end of what it has committed, which our log may reach after all.
            reset = not answer.reset and not answer.success and next_index > self.first_index
        if reset:
            self._behind.discard(peer_id)
            self._rewound_at[peer_id] = self._append_seq[peer_id]
            self._send_soon()
        self._deliver(
            peer_id, {"type": "next_node_idx", "next_node_idx": next_index, "reset": reset, "success": answer.success}
        )

    def _on_vote(self, peer_id: int, term: int) -> None:
        if term != self.term or peer_id not in self._voters:
            return
        if self._votes[0] != term:
            self._votes = (term, set())
        if peer_id in self._votes[1]:
            return
        self._votes[1].add(peer_id)
        self._deliver(peer_id, {"type": "response_vote", "term": term})

    def _check_one_leader(self, peer_id: int, term: int) -> None:
        heard_term, leader = self._watch.heard if not self.is_leader else (self.term, int(self._me.member_id))
        if term == heard_term and leader != peer_id:
            raise CorruptStateError(f"two leaders in term {term}: {leader:x} and {peer_id:x}")

    def _check_against_committed(self, peer_id: int, append: raft_pb2.AppendEntries) -> None:
        """A leader of Raft never contradicts what is committed: if one does, a vote or an entry was lost somewhere."""
        commit = self.commit_index
        claims = [(append.prev_index, append.prev_term)]
        if append.prev_index < commit:
            claims += [(e.index, e.term) for e in append.entries if e.index <= commit]
        for index, term in claims:
            ours = self.term_at(index)
            if index <= commit and ours is not None and ours != term:
                raise CorruptStateError(
                    f"leader {peer_id:x} has term {term} at index {index}, committed here with term {ours}: "
                    f"the replicas have diverged"
                )

    def _on_peer_behind(self, node: Peer) -> None:
        """The log no longer reaches back to this follower. The library would go on trying within this very call."""
        self._behind.add(node.member_id)
        self._sync._SyncObj__raftNextIndex[node] = self.last_index + 1

    def _apply(self, command: bytes) -> None:
        index = self.applied_index + 1
        term = self.term_at(index)
        assert term is not None
        if command[:1] == b"\x00":
            self._apply_entry(index, term, command[1:])
        elif command[:1] == b"\x01":
            self._apply_entry(index, term, None)
        elif command[:1] == b"\x02":
            self._apply_config(index, Membership.decode(command[1:]))
            self._apply_entry(index, term, None)
        else:
            raise CorruptStateError(f"log entry {index} has unknown kind {command[:1]!r}")

    def _apply_config(self, index: int, membership: Membership) -> None:
        self._memberships.applied(index)
        if self.is_leader:
            until = self._clock.monotonic() + _FAREWELL_S
            self._farewells |= {r.id: until for r in membership.removed if r.index == index}
        self._adopt()
        self._on_config(index, membership)

    def _translate_out(self, node: Peer, message: dict[str, Any]) -> None:
        peer_id, kind = node.member_id, message["type"]
        out = raft_pb2.RaftMessage(term=self.term)
        if kind == "append_entries" and (peer_id in self._behind or "serialized" in message):
            # Whatever the library would send, this follower cannot use it: keep it loyal until its snapshot is there.
            self._append_seq[peer_id] += 1
            out.leader_alive.CopyFrom(raft_pb2.LeaderAlive(seq=self._append_seq[peer_id]))
        elif kind == "append_entries" and "entries" in message and message["prevLogIdx"] is not None:
            self._append_seq[peer_id] += 1
            out.append_entries.CopyFrom(
                raft_pb2.AppendEntries(
                    commit_index=message["commit_index"],
                    prev_index=message["prevLogIdx"],
                    prev_term=message["prevLogTerm"],
                    entries=[
                        raft_pb2.Entry(index=index, term=term, kind=_KINDS[command[0]], data=command[1:])
                        for command, index, term in message["entries"]
                    ],
                    seq=self._append_seq[peer_id],
                )
            )
        elif kind == "next_node_idx":
            next_index = message["next_node_idx"]
            if message["reset"]:
                next_index = self._rewind_to(next_index)
            out.next_index.CopyFrom(
                raft_pb2.NextIndex(
                    next_index=next_index, success=message["success"], reset=message["reset"], seq=self._answering_seq
                )
            )
        elif kind == "request_vote":
            out.request_vote.CopyFrom(
                raft_pb2.RequestVote(
                    last_index=message["last_log_index"],
                    last_term=message["last_log_term"],
                    transfer=self._standing_for_transfer,
                )
            )
        elif kind == "response_vote":
            out.vote.CopyFrom(raft_pb2.Vote())
        elif kind == "timeout_now":
            out.timeout_now.CopyFrom(raft_pb2.TimeoutNow())
        elif kind == "apply_command":
            # Appended in a tick that ran out of time (the process was stopped for a moment), and by the next one we no
            # longer lead. Nothing is lost: whoever holds these writes sends them again.
            return
        else:
            raise CorruptStateError(f"the engine sent a message that has no place here: {kind} {sorted(message)}")
        self._out.append((peer_id, out))

    def _rewind_to(self, next_index: int) -> int:
        """Where the leader should go on: before the conflicting term's whole run, never below what is committed."""
        conflict = self.term_at(next_index)
        if conflict is None:
            return next_index  # our log is merely shorter
        while next_index - 1 > self.commit_index and self.term_at(next_index - 1) == conflict:
            next_index -= 1
        return max(next_index, self.commit_index + 1)

    def _send_soon(self) -> None:
        self._sync._SyncObj__newAppendEntriesTime = 0.0

    def _set_commit(self, index: int) -> None:
        self._sync._SyncObj__raftCommitIndex = index
        self._journal.setRaftCommitIndex(index)

    def _pull_in_election(self, min_ms: int, max_ms: int, *, keep_earlier: bool = True) -> None:
        deadline = self._clock.monotonic() + (min_ms + (max_ms - min_ms) * self._rand.random()) / 1000
        if keep_earlier:
            deadline = min(deadline, self._sync._SyncObj__raftElectionDeadline)
        self._sync._SyncObj__raftElectionDeadline = deadline
