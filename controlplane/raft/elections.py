"""One replica in elections: when it asks, stands and votes, and whose votes it has.

Owns what goes beyond the library's elections: the question before one (pre-vote), stickiness to a leader that lives,
hastened elections when its process is known to be dead, votes counted once per voter and term. Must not know the log
beyond its last entry, nor memberships beyond who votes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from controlplane.base.clock import Clock
from controlplane.base.rand import Rand
from controlplane.pb.quarterdeck.internal.v1 import raft_pb2
from controlplane.raft.config import RaftConfig
from controlplane.raft.engine_peers import Peers
from controlplane.raft.library import Library
from controlplane.raft.prevote import LeaderWatch, PreVotes

__all__ = ["Elections"]

_RETRIES_HASTENED: Final = 6
#: Between two looks at the clock of a member that may not stand.
_IDLE_S: Final = 30.0
#: When such a member stands.
_NEVER_S: Final = 1e18
#: An election deadline that has passed on any clock.
_AT_ONCE_S: Final = -1.0


class Elections:
    """See the module.

    Args:
        send: a message for a peer, to leave with the turn.
    """

    def __init__(
        self,
        library: Library,
        peers: Peers,
        *,
        config: RaftConfig,
        member_id: int,
        clock: Clock,
        rand: Rand,
        send: Callable[[int, raft_pb2.RaftMessage], None],
    ) -> None:
        self._library = library
        self._peers = peers
        self._config = config
        self._my_id = member_id
        self._clock = clock
        self._rand = rand
        self._send = send
        self._votes: tuple[int, set[int]] = (0, set())
        self._hastened_retries = 0
        self.watch = LeaderWatch(clock, alive_s=config.election_min_ms / 1000, grace_s=2 * config.heartbeat_ms / 1000)
        self._pre_votes = PreVotes()
        #: Connected peers of a version that does not know the question: their answer is taken for granted.
        self._without_pre_vote: set[int] = set()
        #: Nobody has been heard to lead since this process began: whoever meets the others need not wait out a timeout.
        #: That there is a leader after all, its heartbeat tells, or the question before an election.
        self.eager = False
        #: The election of the present tick was asked for by the leader.
        self.for_transfer = False

    def next_wake(self) -> float:
        """As follower or candidate: when to look again."""
        deadline = self._library.election_deadline
        if self._library.is_connected or not self._peers.voters:
            return min(deadline, self._clock.monotonic() + _IDLE_S)
        # It cannot stand for election without a link: look again when a heartbeat would be due.
        return max(deadline, self._clock.monotonic() + self._config.heartbeat_ms / 1000)

    # -- links -------------------------------------------------------------------------------------------------

    def connected(self, peer_id: int, *, knows_pre_vote: bool) -> None:
        self.watch.on_connected(peer_id)
        if knows_pre_vote:
            self._without_pre_vote.discard(peer_id)
        else:
            self._without_pre_vote.add(peer_id)
        if self.eager:
            self.pull_in(self._config.hastened_retry_min_ms, self._config.hastened_retry_max_ms)

    def disconnected(self, peer_id: int) -> None:
        self._without_pre_vote.discard(peer_id)

    def peer_died(self, peer_id: int) -> None:
        self.watch.on_died(peer_id)
        if self._library.leader == peer_id and not self._library.is_leader:
            self._hastened_retries = _RETRIES_HASTENED
            self.pull_in(self._config.hasten_min_ms, self._config.hasten_max_ms)

    # -- around the library's tick -----------------------------------------------------------------------------

    def before_tick(self) -> None:
        """Before the library holds an election: ask, unless the leader asked for it or a majority has agreed."""
        library, voters = self._library, self._peers.voters
        if not self._peers.may_stand:
            library.election_deadline = _NEVER_S
            library.refuse_to_stand()
            self._pre_votes.close()
            return
        if library.election_deadline == _NEVER_S:
            self.pull_in(self._config.election_min_ms, self._config.election_max_ms)
        if self._pre_votes.won(library.term, voters, willing=self._without_pre_vote):
            self._pre_votes.close()
            library.election_deadline = _AT_ONCE_S
            return
        if library.election_deadline >= self._clock.monotonic():
            return
        if library.asked_to_stand:
            self.for_transfer = True
            return
        if not library.is_connected and voters:
            return
        library.forget_leader()
        seq = self._pre_votes.ask(library.term)
        if self._pre_votes.won(library.term, voters, willing=self._without_pre_vote):
            self._pre_votes.close()
            return
        if self._pre_votes.rounds <= _RETRIES_HASTENED:
            low_ms, high_ms = self._config.hastened_retry_min_ms, self._config.hastened_retry_max_ms
        else:
            low_ms, high_ms = self._config.election_min_ms, self._config.election_max_ms
        self.pull_in(low_ms, high_ms, keep_earlier=False)
        last_index, last_term = self._standing()
        question = raft_pb2.PreVote(last_index=last_index, last_term=last_term, seq=seq)
        for peer_id in sorted(voters - self._without_pre_vote):
            self._send(peer_id, raft_pb2.RaftMessage(term=library.term, pre_vote=question))

    def after_tick(self, *, was_leader: bool, term: int) -> None:
        """What it was, and in which term, before."""
        library, config = self._library, self._config
        self.for_transfer = False
        if was_leader and not library.is_leader and library.term == term:
            # Stepped down for want of a quorum: its own election deadline dates from before it was elected.
            self.pull_in(config.election_min_ms, config.election_max_ms, keep_earlier=False)
        if library.term != term and library.is_candidate and self._hastened_retries > 0:
            self._hastened_retries -= 1
            self.pull_in(config.hastened_retry_min_ms, config.hastened_retry_max_ms)

    def pull_in(self, min_ms: int, max_ms: int, *, keep_earlier: bool = True) -> None:
        """Stand between these from now on, unless that was due earlier."""
        deadline = self._clock.monotonic() + (min_ms + (max_ms - min_ms) * self._rand.random()) / 1000
        if keep_earlier:
            deadline = min(deadline, self._library.election_deadline)
        self._library.election_deadline = deadline

    # -- messages ----------------------------------------------------------------------------------------------

    def on_pre_vote(self, peer_id: int, term: int, ask: raft_pb2.PreVote) -> None:
        library = self._library
        last_index, last_term = self._standing()
        granted = (
            term + 1 > library.term
            and (ask.last_term, ask.last_index) >= (last_term, last_index)
            and not self._leader_lives()
        )
        if (
            granted
            and self._pre_votes.open
            and (ask.last_term, ask.last_index, peer_id) > (last_term, last_index, self._my_id)
        ):
            # Both of us ask at once: one stands, so that the votes are not split.
            self._pre_votes.close()
        reply = raft_pb2.PreVoteReply(seq=ask.seq, granted=granted)
        self._send(peer_id, raft_pb2.RaftMessage(term=library.term, pre_vote_reply=reply))

    def on_pre_vote_reply(self, peer_id: int, term: int, reply: raft_pb2.PreVoteReply) -> None:
        if term > self._library.term:
            self.enter(term)
        elif reply.granted:
            self._pre_votes.on_granted(peer_id, reply.seq)

    def on_request_vote(self, peer_id: int, term: int, ask: raft_pb2.RequestVote) -> None:
        if self._leader_lives() and not ask.transfer:
            return
        self._library.deliver(
            self._peers[peer_id],
            {
                "type": "request_vote",
                "term": term,
                "last_log_index": ask.last_index,
                "last_log_term": ask.last_term,
            },
        )

    def on_vote(self, peer_id: int, term: int) -> None:
        if term != self._library.term or peer_id not in self._peers.voters:
            return
        if self._votes[0] != term:
            self._votes = (term, set())
        if peer_id in self._votes[1]:
            return
        self._votes[1].add(peer_id)
        self._library.deliver(self._peers[peer_id], {"type": "response_vote", "term": term})

    def enter(self, term: int) -> None:
        """A peer is in a later term: so are we."""
        if self._library.is_leader:
            self.pull_in(self._config.election_min_ms, self._config.election_max_ms, keep_earlier=False)
        self._pre_votes.close()
        self._library.enter(term)

    def leader_heard(self, peer_id: int, term: int) -> None:
        self._hastened_retries = 0
        self.eager = False
        self._pre_votes.leader_heard()
        self.watch.on_heard(term, peer_id)

    # -- inside ------------------------------------------------------------------------------------------------

    def _standing(self) -> tuple[int, int]:
        last_index = self._library.last_index
        last_term = self._library.term_at(last_index)
        assert last_term is not None
        return last_index, last_term

    def _leader_lives(self) -> bool:
        return self._library.is_leader or self.watch.alive(self._library.term)
