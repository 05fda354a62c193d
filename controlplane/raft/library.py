"""pysyncobj's object under our names. With ``engine_seams.py`` the only code that knows the library's private ones.

Owns the library's instance. Must not know frames, memberships or elections: it reads, sets and calls, and decides
nothing. Each private name has a contract test in tests/unit/raft/test_engine_contract.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final

from controlplane.base.clock import Clock
from controlplane.base.rand import Rand
from controlplane.raft.config import RaftConfig
from controlplane.raft.engine_seams import EngineJournal, Links, LogEntry, Peer, bind, make_consensus

__all__ = ["COMMAND", "Library", "Role"]

COMMAND: Final = 0

_FOLLOWER: Final = 0
_CANDIDATE: Final = 1
_LEADER: Final = 2


class Role(Enum):
    """What this replica is in its term."""

    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"


_ROLES: Final = {_FOLLOWER: Role.FOLLOWER, _CANDIDATE: Role.CANDIDATE, _LEADER: Role.LEADER}


class Library:
    """One replica's consensus as the library sees it.

    Args:
        send: what it wants to tell a peer, as its dict.
        apply: a committed command; its exceptions leave :meth:`tick`.
        peer_is_behind: the log no longer reaches back to this follower.
    """

    def __init__(
        self,
        *,
        config: RaftConfig,
        me: Peer,
        journal: EngineJournal,
        clock: Clock,
        rand: Rand,
        send: Callable[[Peer, dict[str, Any]], None],
        apply: Callable[[bytes], None],
        peer_is_behind: Callable[[Peer], None],
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._rand = rand
        self._links = Links(send)
        self.bind()
        self.sync = make_consensus(config, me, [], journal, self._links, apply, peer_is_behind)

    def bind(self) -> None:
        """Before any call that may end in the library: its clock and chance are this replica's."""
        bind(self._clock, self._rand)

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def role(self) -> Role:
        return _ROLES[self.sync._SyncObj__raftState]

    @property
    def is_leader(self) -> bool:
        return bool(self.sync._SyncObj__raftState == _LEADER)

    @property
    def is_candidate(self) -> bool:
        return bool(self.sync._SyncObj__raftState == _CANDIDATE)

    @property
    def term(self) -> int:
        return int(self.sync._SyncObj__raftCurrentTerm)

    @property
    def leader(self) -> int | None:
        node = self.sync._SyncObj__raftLeader
        return None if node is None else int(node.member_id)

    def forget_leader(self) -> None:
        self.sync._SyncObj__raftLeader = None

    @property
    def commit_index(self) -> int:
        return int(self.sync._SyncObj__raftCommitIndex)

    def set_commit(self, index: int) -> None:
        self.sync._SyncObj__raftCommitIndex = index
        self._journal.setRaftCommitIndex(index)

    @property
    def applied_index(self) -> int:
        return int(self.sync._SyncObj__raftLastApplied)

    def set_applied(self, index: int) -> None:
        self.sync._SyncObj__raftLastApplied = index

    @property
    def election_deadline(self) -> float:
        """Monotonic seconds."""
        return float(self.sync._SyncObj__raftElectionDeadline)

    @election_deadline.setter
    def election_deadline(self, at: float) -> None:
        self.sync._SyncObj__raftElectionDeadline = at

    @property
    def asked_to_stand(self) -> bool:
        """The leader hands over to this replica."""
        return bool(self.sync._SyncObj__transferInProgress)

    def refuse_to_stand(self) -> None:
        self.sync._SyncObj__transferInProgress = False

    @property
    def next_append_at(self) -> float:
        """As leader: when followers are due to hear from it."""
        return float(self.sync._SyncObj__newAppendEntriesTime)

    def append_soon(self) -> None:
        self.sync._SyncObj__newAppendEntriesTime = 0.0

    # -- the log -----------------------------------------------------------------------------------------------

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

    # -- peers -------------------------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """To anybody."""
        return bool(self.sync._SyncObj__connectedNodes)

    def match_index(self, node: Peer) -> int:
        return int(self.sync._SyncObj__raftMatchIndex.get(node, 0))

    def answered_at(self, node: Peer) -> float | None:
        at: float | None = self.sync._SyncObj__lastResponseTime.get(node)
        return at

    def note_answer(self, node: Peer) -> None:
        self.sync._SyncObj__lastResponseTime[node] = self._clock.monotonic()

    def connected_voters(self) -> list[Peer]:
        sync = self.sync
        return [node for node in sync._SyncObj__otherNodes if node in sync._SyncObj__connectedNodes]

    def continue_at(self, node: Peer, next_index: int) -> None:
        """As leader: send it the log from here."""
        self.sync._SyncObj__raftNextIndex[node] = next_index

    def matches(self, node: Peer, index: int) -> None:
        """As leader: the follower's log is known to equal ours up to here."""
        match = self.sync._SyncObj__raftMatchIndex
        match[node] = max(match[node], index)
        self.sync._SyncObj__raftNextIndex[node] = match[node] + 1

    def meet(self, node: Peer, next_index: int) -> None:
        """Somebody to speak to."""
        self.sync._SyncObj__raftNextIndex[node] = next_index
        self.sync._SyncObj__raftMatchIndex[node] = 0
        self.sync._SyncObj__lastResponseTime[node] = self._clock.monotonic()

    def forget(self, node: Peer) -> None:
        sync = self.sync
        for by_node in (
            sync._SyncObj__raftNextIndex,
            sync._SyncObj__raftMatchIndex,
            sync._SyncObj__lastResponseTime,
        ):
            by_node.pop(node, None)

    def set_peers(self, *, voters: list[Peer], fed: list[Peer], connected: list[Peer]) -> None:
        """Whom it counts, whom it only feeds, and who of them can be reached."""
        self.sync._SyncObj__otherNodes = set(voters)
        self.sync._SyncObj__readonlyNodes = set(fed)
        self.sync._SyncObj__connectedNodes = set(connected)

    # -- events ------------------------------------------------------------------------------------------------

    def connected(self, node: Peer) -> None:
        self._links._onNodeConnected(node)

    def disconnected(self, node: Peer) -> None:
        self._links._onNodeDisconnected(node)

    def deliver(self, node: Peer, message: dict[str, Any]) -> None:
        """A peer's message, as a dict. Nothing that matches is truncated by it, nothing committed taken back."""
        before = self.commit_index
        self._links._onMessageReceived(node, message)
        self._journal.handler_ended()
        if self.commit_index < before:
            # The library lowers it to the end of what this message verified. What is committed stays committed.
            self.set_commit(before)

    def enter(self, term: int) -> None:
        """Follow, in this later term."""
        self.sync._SyncObj__setCurrentTerm(term, None)
        self.sync._SyncObj__setState(_FOLLOWER)
        self.forget_leader()

    def append(self, command: bytes) -> None:
        self.sync._applyCommand(command, None, COMMAND)

    def tick(self) -> None:
        self.sync.doTick(0.0)

    def transfer_to(self, node: Peer) -> None:
        self.sync.transferLeadership(node)
