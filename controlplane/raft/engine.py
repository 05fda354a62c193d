"""The consensus engine: pysyncobj behind our own seams.

Owns what goes in and out of one replica's consensus. Its parts: the library's inside (``library``, ``engine_seams``),
elections (``elections``), the log on its way to followers (``replication``), whom it speaks to (``engine_peers``). Must
not know the network, the disk, proposals, reads or snapshots files.

What is replaced:

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
* a new commit index is told at once, and again as a heartbeat: what tells nothing else is neither sent before entries
  of the same turn, which tell it too, nor answered by who has the log.
* members: the library's sets of peers follow the membership in force, which CONFIG entries of the log hold. Learners
  are what it calls read-only nodes: they get the log and are not counted. A leader always votes: it hands over before
  it is removed. A member that is removed gets the entry that says so only once it is committed.
* the library's dump and fork logic is out of reach: compaction and snapshot install are driven from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from controlplane.base.clock import Clock
from controlplane.base.errors import CorruptStateError
from controlplane.base.rand import Rand
from controlplane.pb.quarterdeck.internal.v1 import raft_pb2
from controlplane.raft.config import RaftConfig
from controlplane.raft.elections import Elections
from controlplane.raft.engine_peers import Peers
from controlplane.raft.engine_seams import EngineJournal, LogEntry, Peer
from controlplane.raft.library import Library, Role
from controlplane.raft.membership import Membership, Memberships
from controlplane.raft.replication import Replication, without_old_news
from controlplane.raft.types import Member

__all__ = ["Engine", "EngineJournal", "LogEntry", "Role"]


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
        self._my_id = member_id
        if memberships is None:
            founders = tuple(Member(peer_id, "", "", "") for peer_id in sorted({member_id, *peer_ids}))
            memberships = Memberships(Membership(founders), 0)
        self._memberships = memberships
        self._out: list[tuple[int, raft_pb2.RaftMessage]] = []
        self._library = Library(
            config=config,
            me=Peer(member_id),
            journal=journal,
            clock=clock,
            rand=rand,
            send=lambda node, message: self._replication.translate(node, message),
            apply=self._apply,
            peer_is_behind=self._on_peer_behind,
        )
        self._peers = Peers(self._library, memberships, member_id, clock)
        self._elections = Elections(
            self._library,
            self._peers,
            config=config,
            member_id=member_id,
            clock=clock,
            rand=rand,
            send=self._send,
        )
        self._replication = Replication(
            self._library, self._peers, self._elections, memberships, member_id=member_id, send=self._send
        )
        for command, index, term in self.entries(applied_index + 1, self.last_index + 1):
            if command[:1] == b"\x02":
                memberships.add(index, term, Membership.decode(command[1:]))
        self._peers.adopt()
        if self.first_index > max(applied_index, 1):
            raise CorruptStateError(
                f"the log starts at index {self.first_index} and the newest snapshot holds {applied_index}: what lies "
                f"between is missing; replace the member, or put its newest snapshot back"
            )
        if applied_index > 0:
            self._library.set_applied(applied_index)
            self._library.set_commit(max(self.commit_index, applied_index))
        else:
            # The library counts the initial entry as applied; the state machine hears of it like of any other.
            self._apply_entry(1, 0, None)
        if self.commit_index > self.last_index:
            raise CorruptStateError(
                f"the log ends at index {self.last_index}, before index {self.commit_index} which was committed: "
                f"this data directory has lost entries; replace the member"
            )

    # -- what it knows ---------------------------------------------------------------------------------------

    @property
    def role(self) -> Role:
        return self._library.role

    @property
    def is_leader(self) -> bool:
        """It believes so: another replica may already know better. Nothing may be answered on this alone."""
        return self._library.is_leader

    @property
    def term(self) -> int:
        return self._library.term

    @property
    def leader(self) -> int | None:
        """Member id of the leader of this term, if one was heard."""
        return self._library.leader

    @property
    def commit_index(self) -> int:
        return self._library.commit_index

    @property
    def applied_index(self) -> int:
        return self._library.applied_index

    @property
    def first_index(self) -> int:
        """Index of the oldest entry kept."""
        return self._library.first_index

    @property
    def last_index(self) -> int:
        return self._library.last_index

    def term_at(self, index: int) -> int | None:
        """Term of the entry at ``index``; None when it is not (or no longer) in the log."""
        return self._library.term_at(index)

    def entries(self, start: int, end: int) -> Sequence[LogEntry]:
        """Entries with start <= index < end that are in the log."""
        return self._library.entries(start, end)

    @property
    def voters(self) -> frozenset[int]:
        """The other members that vote."""
        return self._peers.voters

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
        return self._peers.correspondents

    @property
    def members_version(self) -> int:
        """Counts changes of who is in force, spoken to, or removed."""
        return self._peers.version

    @property
    def farewells(self) -> frozenset[int]:
        """Removed members that this leader still tells so."""
        return frozenset(self._peers.farewells)

    def match_index(self, peer_id: int) -> int:
        """As leader: up to where the peer's log is known to equal ours."""
        return self._library.match_index(self._peers[peer_id])

    def heard_within(self, peer_id: int, seconds: float) -> bool:
        """As leader: whether the peer answered so lately."""
        at = self._library.answered_at(self._peers[peer_id])
        return at is not None and self._clock.monotonic() - at < seconds and peer_id in self._peers.connected

    @property
    def term_committed(self) -> bool:
        """As leader: an entry of its own term is committed, so its commit index is not behind any earlier leader's."""
        return self.is_leader and self.term_at(self.commit_index) == self.term

    @property
    def behind(self) -> frozenset[int]:
        """As leader: peers that the log no longer reaches back to; they need a snapshot."""
        return frozenset(self._peers.behind) if self.is_leader else frozenset()

    def next_wake(self) -> float:
        """Monotonic time at which :meth:`tick` has something to do even if nothing arrives."""
        return self._library.next_append_at if self.is_leader else self._elections.next_wake()

    # -- what happens to it ----------------------------------------------------------------------------------

    def connected(self, peer_id: int, *, knows_pre_vote: bool = True) -> None:
        """A link to the peer stands."""
        self._library.bind()
        self._peers.connected.add(peer_id)
        self._elections.connected(peer_id, knows_pre_vote=knows_pre_vote)
        if peer_id in self._peers:
            self._library.connected(self._peers[peer_id])

    def disconnected(self, peer_id: int) -> None:
        """The link to the peer is gone, with whatever was in flight."""
        self._library.bind()
        self._peers.connected.discard(peer_id)
        self._elections.disconnected(peer_id)
        self._library.disconnected(self._peers[peer_id])

    def peer_died(self, peer_id: int) -> None:
        """The peer's process is known to be dead: if it led, do not wait out the whole election timeout."""
        self._elections.peer_died(peer_id)

    def no_leader_yet(self) -> None:
        """This process has just begun, on data of before: perhaps all have, and none leads. Until a leader is heard,
        the question before an election is asked soon after each link comes up, not after an election timeout."""
        self._elections.eager = True

    def receive(self, peer_id: int, message: raft_pb2.RaftMessage) -> None:
        """Handle one checked consensus message of a peer (see ``transport.frames``).

        Raises:
            CorruptStateError: the message contradicts what is committed here, or shows two leaders in one term.
        """
        self._library.bind()
        kind = message.WhichOneof("body")
        if kind == "append_entries":
            self._replication.on_append_entries(peer_id, message.term, message.append_entries)
        elif kind == "next_index":
            self._replication.on_next_index(peer_id, message.term, message.next_index)
        elif kind == "request_vote":
            self._elections.on_request_vote(peer_id, message.term, message.request_vote)
        elif kind == "pre_vote":
            self._elections.on_pre_vote(peer_id, message.term, message.pre_vote)
        elif kind == "pre_vote_reply":
            self._elections.on_pre_vote_reply(peer_id, message.term, message.pre_vote_reply)
        elif kind == "vote":
            self._elections.on_vote(peer_id, message.term)
        elif kind == "timeout_now":
            self._library.deliver(self._peers[peer_id], {"type": "timeout_now", "term": message.term})
        elif kind == "leader_alive":
            self._replication.on_leader_alive(peer_id, message.term, message.leader_alive)
        else:
            raise ValueError(f"not a consensus message: {kind}")

    def append(self, batch: bytes) -> None:
        """As leader: make ``batch`` the next log entry, in the coming :meth:`tick`. Lost if leadership is."""
        self._library.bind()
        self._library.append(batch)

    def append_config(self, membership: Membership) -> int:
        """As leader of a settled membership: put ``membership`` in force, as the next log entry; its index."""
        assert self.is_leader
        assert self.settled
        self._library.bind()
        index, term = self.last_index + 1, self.term
        self._journal.add(b"\x02" + membership.encode(), index, term)
        self._memberships.add(index, term, membership)
        self._peers.adopt()
        self._library.append_soon()
        return index

    def tick(self) -> None:
        """Let time act: elections, commits, applies, heartbeats, appends. Raises whatever applying raised."""
        self._library.bind()
        was_leader, term = self.is_leader, self.term
        if not was_leader:
            self._elections.before_tick()
        self._replication.only_news = was_leader and self._clock.monotonic() <= self._library.next_append_at
        self._library.tick()
        self._replication.only_news = False
        if not self.is_leader:
            self._peers.behind.clear()
        self._peers.end_farewells()
        self._elections.after_tick(was_leader=was_leader, term=term)

    def take_messages(self) -> list[tuple[int, raft_pb2.RaftMessage]]:
        """What to send, in order, once everything journalled so far is durable."""
        taken, self._out = self._out, []
        return without_old_news(taken) if self.is_leader and len(taken) > 1 else taken

    def transfer_target(self) -> int | None:
        """As leader: who should lead next. Among those that answered lately, the one with the longest log."""
        library, now = self._library, self._clock.monotonic()
        fresh_s = 3 * self._config.heartbeat_ms / 1000
        standing = [
            (now - (library.answered_at(node) or 0.0) < fresh_s, library.match_index(node), node.member_id)
            for node in library.connected_voters()
        ]
        return max(standing)[2] if self.is_leader and standing else None

    def lag(self, peer_id: int) -> int:
        """As leader: entries of the log that the peer has not acknowledged."""
        return self.last_index - self.match_index(peer_id)

    def transfer_leadership(self, target_id: int) -> bool:
        """As leader: ask a peer to stand at once (dissertation 3.10). False if it has not the whole log."""
        self._library.bind()
        before = len(self._out)
        if self.is_leader:
            self._library.transfer_to(self._peers[target_id])
        return len(self._out) > before

    def installed(self, index: int, term: int, membership: Membership | None = None) -> None:
        """The state machine and the journal now stand at a snapshot: go on from there, with its membership."""
        if self.first_index != index or self.term_at(index) != term:
            raise CorruptStateError(
                f"snapshot {index} is installed but the log holds {self.first_index}-{self.last_index}"
            )
        self._library.set_applied(index)
        self._library.set_commit(index)
        if membership is not None:
            self._library.bind()
            self._memberships.restart(membership, index)
            self._memberships.revert(self.term_at)
            self._peers.adopt()

    def commit_to(self, index: int) -> None:
        """An entry in the log is known to be committed (a snapshot that contains it was offered)."""
        self._library.set_commit(max(self.commit_index, index))

    def peer_installed(self, peer_id: int, index: int) -> None:
        """As leader: the peer stands at a snapshot of ``index``; continue with the log."""
        if not self.is_leader or peer_id not in self._peers:
            return
        self._library.matches(self._peers[peer_id], index)
        self._peers.rewound(peer_id)

    def peer_alive(self, peer_id: int) -> None:
        """As leader: the peer answered in this term (counts towards the quorum that keeps the leader)."""
        if self.is_leader and peer_id in self._peers:
            self._library.note_answer(self._peers[peer_id])

    # -- inside ----------------------------------------------------------------------------------------------

    def _send(self, peer_id: int, message: raft_pb2.RaftMessage) -> None:
        self._out.append((peer_id, message))

    def _on_peer_behind(self, node: Peer) -> None:
        """The log no longer reaches back to this follower. The library would go on trying within this very call."""
        self._peers.behind.add(node.member_id)
        self._library.continue_at(node, self.last_index + 1)

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
            self._peers.bid_farewell({r.id for r in membership.removed if r.index == index})
        self._peers.adopt()
        self._on_config(index, membership)
