"""The log on its way from a leader to its followers, in our frames.

Owns the translation of the library's messages (Python dicts) to and from frames, the numbers that pair an answer with
what it answers, and the refusal of what a correct leader or follower never says. Must not know how it is decided what
to send.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from controlplane.base.errors import CorruptStateError
from controlplane.pb.quarterdeck.internal.v1 import raft_pb2
from controlplane.raft.elections import Elections
from controlplane.raft.engine_peers import Peers
from controlplane.raft.engine_seams import Peer
from controlplane.raft.library import COMMAND, Library
from controlplane.raft.membership import Membership, Memberships

__all__ = ["Replication", "without_old_news"]

_NO_OP: Final = 1
#: The library has such a type byte of its own, and leaves it alone unless it is told to change members by itself.
_CONFIG: Final = 2
_KINDS: Final = {COMMAND: raft_pb2.Entry.COMMAND, _NO_OP: raft_pb2.Entry.NO_OP, _CONFIG: raft_pb2.Entry.CONFIG}
_KIND_BYTES: Final = {
    raft_pb2.Entry.COMMAND: b"\x00",
    raft_pb2.Entry.NO_OP: b"\x01",
    raft_pb2.Entry.CONFIG: b"\x02",
}


def without_old_news(
    messages: list[tuple[int, raft_pb2.RaftMessage]],
) -> list[tuple[int, raft_pb2.RaftMessage]]:
    """The messages of a leader's turn, without news that a later message to the same follower tells as well."""
    kept: list[tuple[int, raft_pb2.RaftMessage]] = []
    told: set[int] = set()
    for peer_id, message in reversed(messages):
        if message.WhichOneof("body") == "append_entries":
            if message.append_entries.news and peer_id in told:
                continue
            told.add(peer_id)
        kept.append((peer_id, message))
    kept.reverse()
    return kept


class Replication:
    """See the module.

    Args:
        send: a message for a peer, to leave with the turn.
    """

    def __init__(
        self,
        library: Library,
        peers: Peers,
        elections: Elections,
        memberships: Memberships,
        *,
        member_id: int,
        send: Callable[[int, raft_pb2.RaftMessage], None],
    ) -> None:
        self._library = library
        self._peers = peers
        self._elections = elections
        self._memberships = memberships
        self._my_id = member_id
        self._send = send
        self._answering_seq = 0
        self._answering_news = False
        #: An empty message is no heartbeat now: a new commit index is all that it has to tell.
        self.only_news = False

    # -- frames in ---------------------------------------------------------------------------------------------

    def _hear_leader(self, peer_id: int, term: int, seq: int) -> bool:
        """A message that only a leader sends. False when its term is over: then it is told."""
        self._check_one_leader(peer_id, term)
        if term < self._library.term:
            news = raft_pb2.NextIndex(next_index=self._library.commit_index + 1, success=False, reset=False, seq=seq)
            self._send(peer_id, raft_pb2.RaftMessage(term=self._library.term, next_index=news))
            return False
        self._elections.leader_heard(peer_id, term)
        return True

    def on_append_entries(self, peer_id: int, term: int, append: raft_pb2.AppendEntries) -> None:
        if not self._hear_leader(peer_id, term, append.seq):
            return
        self._check_against_committed(peer_id, append)
        entries = [(_KIND_BYTES[e.kind] + e.data, e.index, e.term) for e in append.entries]
        self._answering_seq = append.seq
        self._answering_news = append.news and not entries
        self._library.deliver(
            self._peers[peer_id],
            {
                "type": "append_entries",
                "term": term,
                "commit_index": append.commit_index,
                "entries": entries,
                "prevLogIdx": append.prev_index,
                "prevLogTerm": append.prev_term,
            },
        )
        term_at = self._library.term_at
        reverted = self._memberships.revert(term_at)
        configs = [e for e in append.entries if e.kind == raft_pb2.Entry.CONFIG and term_at(e.index) == e.term]
        for entry in configs:
            self._memberships.add(entry.index, entry.term, Membership.decode(entry.data))
        if reverted or configs:
            self._peers.adopt()
        if self._elections.watch.is_dead(peer_id):
            # It was sent before the news of the death: the library took it for a sign of life.
            self._elections.peer_died(peer_id)

    def on_leader_alive(self, peer_id: int, term: int, alive: raft_pb2.LeaderAlive) -> None:
        if not self._hear_leader(peer_id, term, alive.seq):
            return
        # Commit index 0: this heartbeat verifies nothing of our log, so it may commit nothing.
        self._library.deliver(
            self._peers[peer_id], {"type": "append_entries", "term": term, "commit_index": 0, "serialized": None}
        )
        answer = raft_pb2.NextIndex(
            next_index=self._library.commit_index + 1, success=False, reset=False, seq=alive.seq
        )
        self._send(peer_id, raft_pb2.RaftMessage(term=self._library.term, next_index=answer))

    def on_next_index(self, peer_id: int, term: int, answer: raft_pb2.NextIndex) -> None:
        if term > self._library.term:
            self._elections.enter(term)
        if term != self._library.term or not self._library.is_leader or peer_id not in self._peers:
            return
        next_index = min(answer.next_index, self._library.last_index + 1)
        if answer.success and answer.next_index > self._library.last_index + 1:
            raise CorruptStateError(
                f"peer {peer_id:x} acknowledged index {answer.next_index - 1} in our own term, "
                f"our log ends at {self._library.last_index}"
            )
        reset = answer.reset and answer.seq > self._peers.rewound_at[peer_id]
        if peer_id in self._peers.behind:
            # It answers LeaderAlive with the end of what it has committed, which our log may reach after all.
            reset = not answer.reset and not answer.success and next_index > self._library.first_index
        if reset:
            self._peers.rewound(peer_id)
        self._library.deliver(
            self._peers[peer_id],
            {"type": "next_node_idx", "next_node_idx": next_index, "reset": reset, "success": answer.success},
        )

    # -- frames out --------------------------------------------------------------------------------------------

    def translate(self, node: Peer, message: dict[str, Any]) -> None:
        """What the library wants to tell a peer."""
        peer_id, kind = node.member_id, message["type"]
        out = raft_pb2.RaftMessage(term=self._library.term)
        if kind == "append_entries" and (peer_id in self._peers.behind or "serialized" in message):
            # Whatever the library would send, this follower cannot use it: keep it loyal until its snapshot is there.
            out.leader_alive.CopyFrom(raft_pb2.LeaderAlive(seq=self._peers.next_seq(peer_id)))
        elif kind == "append_entries" and "entries" in message and message["prevLogIdx"] is not None:
            # Filled in place: every message that is assigned is copied, and these are large.
            append = out.append_entries
            append.commit_index = message["commit_index"]
            append.prev_index = message["prevLogIdx"]
            append.prev_term = message["prevLogTerm"]
            append.seq = self._peers.next_seq(peer_id)
            append.news = self.only_news and not message["entries"]
            for command, index, term in message["entries"]:
                append.entries.add(index=index, term=term, kind=_KINDS[command[0]], data=command[1:])
        elif kind == "next_node_idx":
            next_index = message["next_node_idx"]
            if message["success"] and self._answering_news:
                return  # the leader knows that we have these, from our answers to the entries themselves
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
                    transfer=self._elections.for_transfer,
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
        self._send(peer_id, out)

    # -- inside ------------------------------------------------------------------------------------------------

    def _rewind_to(self, next_index: int) -> int:
        """Where the leader should go on: before the conflicting term's whole run, never below what is committed."""
        conflict = self._library.term_at(next_index)
        if conflict is None:
            return next_index  # our log is merely shorter
        while next_index - 1 > self._library.commit_index and self._library.term_at(next_index - 1) == conflict:
            next_index -= 1
        return max(next_index, self._library.commit_index + 1)

    def _check_one_leader(self, peer_id: int, term: int) -> None:
        library = self._library
        heard_term, leader = (library.term, self._my_id) if library.is_leader else self._elections.watch.heard
        if term == heard_term and leader != peer_id:
            raise CorruptStateError(f"two leaders in term {term}: {leader:x} and {peer_id:x}")

    def _check_against_committed(self, peer_id: int, append: raft_pb2.AppendEntries) -> None:
        """A leader of Raft never contradicts what is committed: if one does, a vote or an entry was lost somewhere."""
        commit = self._library.commit_index
        claims = [(append.prev_index, append.prev_term)]
        if append.prev_index < commit:
            claims += [(e.index, e.term) for e in append.entries if e.index <= commit]
        for index, term in claims:
            ours = self._library.term_at(index)
            if index <= commit and ours is not None and ours != term:
                raise CorruptStateError(
                    f"leader {peer_id:x} has term {term} at index {index}, committed here with term {ours}: "
                    f"the replicas have diverged"
                )
