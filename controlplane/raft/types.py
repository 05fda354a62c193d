"""What the rest of the control plane sees of Raft: protocols and values, no engine.

``store`` implements :class:`StateMachine` without importing this package (structural typing); ``app`` plugs it in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from controlplane.base.errors import Code, StatusError
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Proposal

__all__ = [
    "AddMember",
    "Applied",
    "LeadershipListener",
    "LogReader",
    "LogTail",
    "Member",
    "MemberChange",
    "NeverSent",
    "Outcome",
    "PeerHandler",
    "PromoteMember",
    "RaftHandle",
    "RaftStatus",
    "RemoveMember",
    "Restore",
    "StateMachine",
    "Unknown",
    "UpdateMember",
    "outdated",
]


def outdated(names: Sequence[str]) -> StatusError:
    """Why something is not done before these members run a newer version; see RaftHandle.members_below."""
    runs = "runs" if len(names) == 1 else "run"
    return StatusError(
        Code.FAILED_PRECONDITION,
        f"quarterdeck: {', '.join(names)} {runs} an older version that does not know this request; upgrade first",
    )


@dataclass(frozen=True, slots=True)
class Applied:
    """The proposal is committed and applied here. ``reply`` is the state machine's answer (may be a rejection)."""

    reply: bytes
    index: int


@dataclass(frozen=True, slots=True)
class NeverSent:
    """Nothing left this replica: safe to retry as a new write. ``reason`` is for people."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """It may or may not be applied, now or later: retry only under the same request id."""

    reason: str


Outcome = Applied | NeverSent | Unknown


class Restore(Protocol):
    """A snapshot's state in the making, beside the present one."""

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk, in milliseconds: the loop waits. Raises CorruptStateError if it is damaged."""
        ...

    def commit(self) -> None:
        """Make it the state. Raises CorruptStateError and changes nothing if it is not whole."""
        ...


class StateMachine(Protocol):
    """The replicated state. Deterministic and total: same calls, same state and replies, on every replica.

    An exception out of any method is fail-stop for the replica.
    """

    def apply(self, index: int, term: int, proposals: Sequence[Proposal]) -> list[bytes]:
        """Apply one committed log entry; return one reply per proposal, in order. Synchronous, no I/O."""
        ...

    def snapshot(self) -> Iterable[bytes]:
        """Cut a snapshot of the state as applied now (O(1)); the chunks are produced lazily while writes go on."""
        ...

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Replace the whole state by a snapshot's. Raises CorruptStateError and changes nothing if it is damaged."""
        ...

    def begin_restore(self) -> Restore:
        """The same in steps. The present state is read, and entries are applied to it, until the last one."""
        ...

    @property
    def applied_index(self) -> int:
        """Index of the last applied entry (part of the state and of its snapshot)."""
        ...

    @property
    def revision(self) -> int:
        """The state's revision, for people and the snapshot's header; opaque to Raft."""
        ...


@dataclass(frozen=True, slots=True)
class Member:
    """One replica of the cluster. A member that was added and has not started yet has no name and no endpoints.

    A learner receives the log and answers serializable reads; it does not vote and is not counted.
    """

    id: int
    name: str
    peer_address: str
    client_endpoint: str
    metrics_endpoint: str = ""
    learner: bool = False


@dataclass(frozen=True, slots=True)
class AddMember:
    """A new member. Its id is made by the leader and is new even for an address that was a member before: a replica
    with an empty disk has forgotten its vote and must not come back under its old identity."""

    peer_address: str
    learner: bool = True
    name: str = ""
    client_endpoint: str = ""
    metrics_endpoint: str = ""


@dataclass(frozen=True, slots=True)
class RemoveMember:
    """It learns of it, and stops."""

    member_id: int


@dataclass(frozen=True, slots=True)
class PromoteMember:
    """A learner that has caught up becomes a voter."""

    member_id: int


@dataclass(frozen=True, slots=True)
class UpdateMember:
    """New addresses, or the name and endpoints that a member publishes when it first starts. None keeps a field."""

    member_id: int
    name: str | None = None
    peer_address: str | None = None
    client_endpoint: str | None = None
    metrics_endpoint: str | None = None


MemberChange = AddMember | RemoveMember | PromoteMember | UpdateMember


@dataclass(frozen=True, slots=True)
class RaftStatus:
    """A snapshot of what this replica knows of Raft."""

    name: str
    member_id: int
    cluster_id: int
    role: str  # leader | follower | candidate
    leader: str | None  # name
    term: int
    commit_index: int
    applied_index: int
    last_index: int
    snapshot_index: int
    members: tuple[Member, ...]
    ready: bool  # the first read barrier has passed
    pending: int  # proposals held here
    torn_bytes: int = 0  # cut off the end of the log when this replica started


@dataclass(frozen=True, slots=True)
class LogTail:
    """Entries of the log that are committed, applied here and durable here, in order, none missing between.

    Attributes:
        previous_term: term of the entry before the first of them.
        entries: (index, term, batch) each; no batch: the entry says nothing to the state machine.
    """

    previous_term: int
    entries: tuple[tuple[int, int, bytes | None], ...]


#: Called with (term, True) after this replica committed an entry of its own term as leader, and with (term, False)
#: as soon as it stops being leader of that term.
LeadershipListener = Callable[[int, bool], None]
#: A peer's request on a named channel -> the answer. Raise StatusError to refuse.
PeerHandler = Callable[[str, bytes], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class SnapshotCut:
    """A snapshot that was asked for. It holds everything up to entry ``index`` and to ``revision``; the log that can
    be sent to others begins at ``log_first_index``."""

    index: int
    term: int
    revision: int
    size_bytes: int
    log_first_index: int


class RaftHandle(Protocol):
    """One running replica, as the services use it. All methods are called on its loop."""

    async def propose(self, payload: bytes, *, request_id: bytes, timeout_ms: int, born_index: int = 0) -> Outcome:
        """Replicate one command. Any replica takes it; it travels to the leader and back. Survives a leader change:
        the replica that holds the write resubmits it under the same request id until ``timeout_ms``.
        ``born_index``: of a write that was tried elsewhere before, a log index from before that; 0: it is new."""
        ...

    async def read_barrier(self, *, timeout_ms: int) -> int:
        """ReadIndex (Raft dissertation 6.4): returns once this replica has applied everything that was committed
        when the call began. Coalesced: one quorum round serves all waiting reads.

        Raises:
            StatusError: Unavailable, `etcdserver: no leader` or `etcdserver: request timed out`.
        """
        ...

    async def change_members(self, change: MemberChange, *, timeout_ms: int) -> tuple[Member, ...]:
        """Change the membership by one step, through the log (Raft dissertation 4.1: one server at a time). Any
        replica takes it; it travels to the leader. Returns the members once the change is committed and applied here.

        Raises:
            StatusError: with etcd's code and text: member not found, peer URL already exists, too many learners, the
                learner is not in sync, not enough started members, unhealthy cluster; Unavailable with
                ``unknown_outcome`` when its fate is not known.
        """
        ...

    async def transfer_leadership(self, target_id: int | None, *, timeout_ms: int) -> None:
        """Hand leadership over (dissertation 3.10) and return when it has moved; writes go on meanwhile. None lets the
        leader choose the follower with the longest log.

        Raises:
            StatusError: FailedPrecondition `etcdserver: not leader` (only the leader can), `etcdserver: bad leader
                transferee` (not a voter); Unavailable `etcdserver: request timed out`.
        """
        ...

    def status(self) -> RaftStatus: ...

    @property
    def term(self) -> int:
        """The term this replica is in. Cheap, unlike status: every response carries it."""
        ...

    @property
    def is_learner(self) -> bool:
        """This replica does not vote: it serves nothing but its status and local reads. Cheap, unlike status."""
        ...

    def members_below(self, revision: int) -> list[str]:
        """Names of the members whose version understands less than this revision of the peer protocol, as far as this
        replica has met them: what they do not know must not enter the log. Cheap."""
        ...

    def on_leadership(self, listener: LeadershipListener) -> None: ...

    def serve(self, channel: str, handler: PeerHandler) -> None:
        """Answer peers' requests on a channel (session reports, lease renewals)."""
        ...

    async def call(self, peer: str, channel: str, payload: bytes, *, timeout_ms: int) -> bytes:
        """Ask a peer by name, itself included. Raises StatusError (Unavailable) when it cannot be reached."""
        ...

    def snapshot_file(self) -> AsyncIterator[bytes]:
        """The bytes of a snapshot file cut now: what `qd snapshot save` writes and restore reads."""
        ...

    async def cut_snapshot(self) -> SnapshotCut:
        """Save a snapshot here now, of everything applied when this is called, and drop the log that it holds. Returns
        when it is durable and the log is dropped.

        Raises:
            StorageError: the disk refused; the log is as it was.
            StoppedError: the replica stopped meanwhile.
        """
        ...


class LogReader(Protocol):
    """One running replica, as whoever archives its log sees it. All methods are called on its loop."""

    @property
    def leads(self) -> bool:
        """This replica has committed an entry of its own term as leader. It may have been deposed since."""
        ...

    @property
    def durable_index(self) -> int:
        """Entries up to here are applied, and durable here as well."""
        ...

    def tail(self, after: int, *, entries_max: int, bytes_max: int) -> LogTail | None:
        """What follows an entry, up to :attr:`durable_index`; at least one entry if there is one. None: this
        replica's log does not (or no longer) hold the entry at ``after``."""
        ...

    def snapshot_file(self) -> AsyncIterator[bytes]:
        """See :class:`RaftHandle`. It may hold entries that are not durable here yet: see :attr:`durable_index`."""
        ...
