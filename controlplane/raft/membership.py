"""Who belongs to the cluster, and how that changes: one member at a time, through the log.

Owns the replicated membership as a value, the rules of one change, and the memberships a log holds. Pure: knows no
engine, no network and no clock. (Ongaro's dissertation, chapter 4; learners and texts as in etcd.)

A CONFIG entry holds the whole membership and is in force from the moment it is in a log, committed or not; if the log
is cut before it, the one before is in force again. Two memberships that follow each other differ in one voter, so any
two majorities of them share a member.

The ids of removed members stay in the membership: they never come back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from google.protobuf.message import DecodeError

from controlplane.base.errors import Code, CorruptStateError, StatusError
from controlplane.pb.quarterdeck.internal.v1 import raft_pb2
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader, SnapshotMember
from controlplane.raft.types import AddMember, Member, MemberChange, PromoteMember, RemoveMember, UpdateMember

__all__ = ["LEARNERS_MAX", "Membership", "Memberships", "Removed", "membership_of", "to_wire"]

#: etcd's: the leader sends every learner the whole state.
LEARNERS_MAX: Final = 1
#: Changes that are remembered so that a retry of one is recognized.
_ATTEMPTS_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class Removed:
    """A member that is gone. ``index``: of the CONFIG entry that left it out."""

    id: int
    name: str
    index: int


@dataclass(frozen=True, slots=True)
class Membership:
    """The members, sorted by id, and what must never be forgotten about those that left."""

    members: tuple[Member, ...]
    removed: tuple[Removed, ...] = ()
    attempts: tuple[bytes, ...] = ()

    @property
    def voters(self) -> frozenset[int]:
        return frozenset(m.id for m in self.members if not m.learner)

    @property
    def learners(self) -> frozenset[int]:
        return frozenset(m.id for m in self.members if m.learner)

    def get(self, member_id: int) -> Member | None:
        return next((m for m in self.members if m.id == member_id), None)

    def removal_of(self, member_id: int) -> Removed | None:
        return next((r for r in self.removed if r.id == member_id), None)

    def changed(self, change: MemberChange, *, attempt_id: bytes, index: int) -> Membership:
        """What follows from ``change``, which is to be the log entry ``index``.

        Raises:
            StatusError: it does not fit the members; etcd's codes and texts.
        """
        if isinstance(change, AddMember):
            after = self._added(change, attempt_id)
        elif isinstance(change, RemoveMember):
            after = self._removed(self._need(change.member_id), index)
        elif isinstance(change, PromoteMember):
            member = self._need(change.member_id)
            if not member.learner:
                raise _failed("can only promote a learner member")
            after = self._with(replace(member, learner=False))
        else:
            after = self._updated(self._need(change.member_id), change)
        return replace(after, attempts=(*self.attempts, attempt_id)[-_ATTEMPTS_KEPT:])

    def _need(self, member_id: int) -> Member:
        member = self.get(member_id)
        if member is None:
            raise StatusError(Code.NOT_FOUND, "etcdserver: member not found")
        return member

    def _with(self, member: Member) -> Membership:
        others = [m for m in self.members if m.id != member.id]
        return replace(self, members=tuple(sorted([*others, member], key=lambda m: m.id)))

    def _check_unique(self, member_id: int, name: str, peer_address: str) -> None:
        for other in self.members:
            if other.id == member_id:
                continue
            if other.peer_address == peer_address:
                raise _failed("Peer URLs already exists")
            if name and other.name == name:
                raise StatusError(Code.FAILED_PRECONDITION, f"quarterdeck: there is a member named {name!r} already")

    def _added(self, change: AddMember, attempt_id: bytes) -> Membership:
        member_id = _new_id(change.peer_address, attempt_id)
        self._check_unique(member_id, change.name, change.peer_address)
        if self.get(member_id) is not None or self.removal_of(member_id) is not None:
            raise _failed("member ID already exist")
        if change.learner and len(self.learners) >= LEARNERS_MAX:
            raise _failed("too many learner members in cluster")
        return self._with(
            Member(
                member_id,
                change.name,
                change.peer_address,
                change.client_endpoint,
                change.metrics_endpoint,
                change.learner,
            )
        )

    def _removed(self, member: Member, index: int) -> Membership:
        if self.voters == {member.id}:
            raise _failed("re-configuration failed due to not enough started members")
        return replace(
            self,
            members=tuple(m for m in self.members if m.id != member.id),
            removed=(*self.removed, Removed(member.id, member.name, index)),
        )

    def _updated(self, member: Member, change: UpdateMember) -> Membership:
        after = replace(
            member,
            name=member.name if change.name is None else change.name,
            peer_address=member.peer_address if change.peer_address is None else change.peer_address,
            client_endpoint=member.client_endpoint if change.client_endpoint is None else change.client_endpoint,
            metrics_endpoint=member.metrics_endpoint if change.metrics_endpoint is None else change.metrics_endpoint,
        )
        self._check_unique(after.id, after.name, after.peer_address)
        return self._with(after)

    # -- bytes -------------------------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """The data of a CONFIG entry: the same bytes on every replica."""
        return raft_pb2.Membership(
            members=to_wire(self.members),
            removed=[raft_pb2.RemovedMember(id=r.id, name=r.name, index=r.index) for r in self.removed],
            attempts=[raft_pb2.MembershipAttempt(id=a) for a in self.attempts],
        ).SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, data: bytes) -> Membership:
        """Raises CorruptStateError: these bytes are no membership."""
        try:
            wire = raft_pb2.Membership.FromString(data)
        except DecodeError as error:
            raise CorruptStateError(f"a membership entry of the log cannot be read: {error}") from error
        if not wire.members:
            raise CorruptStateError("a membership entry of the log has no members")
        return cls(
            _from_wire(wire.members),
            tuple(Removed(r.id, r.name, r.index) for r in wire.removed),
            tuple(a.id for a in wire.attempts),
        )


def to_wire(members: Iterable[Member]) -> list[SnapshotMember]:
    """As a snapshot's header names them."""
    return [
        SnapshotMember(
            id=m.id,
            name=m.name,
            peer_address=m.peer_address,
            client_endpoint=m.client_endpoint,
            metrics_endpoint=m.metrics_endpoint,
            learner=m.learner,
        )
        for m in members
    ]


def _from_wire(members: Iterable[SnapshotMember]) -> tuple[Member, ...]:
    made = [Member(m.id, m.name, m.peer_address, m.client_endpoint, m.metrics_endpoint, m.learner) for m in members]
    return tuple(sorted(made, key=lambda m: m.id))


def membership_of(header: SnapshotHeader) -> Membership:
    """The membership at a snapshot's index."""
    return Membership.decode(header.membership) if header.membership else Membership(_from_wire(header.members))


def _failed(text: str) -> StatusError:
    return StatusError(Code.FAILED_PRECONDITION, f"etcdserver: {text}")


def _new_id(peer_address: str, attempt_id: bytes) -> int:
    digest = hashlib.sha256(b"\0".join([b"added member", peer_address.encode(), attempt_id])).digest()
    # 63 bits, never 0: some etcd clients print ids as signed numbers, and 0 means "none" in Raft.
    return (int.from_bytes(digest[:8], "big") >> 1) or 1


class Memberships:
    """The memberships one log holds: the one it starts from, then those of its CONFIG entries.

    Args:
        base: what the cluster was founded with, or what the snapshot before the log says.
        index: of the last entry ``base`` knows of.
    """

    def __init__(self, base: Membership, index: int) -> None:
        self._known: list[tuple[int, int, Membership]] = [(index, 0, base)]

    @property
    def active(self) -> Membership:
        """In force: the newest, committed or not."""
        return self._known[-1][2]

    @property
    def active_index(self) -> int:
        """Index of the entry that holds it; that of the start, if none does."""
        return self._known[-1][0]

    def at(self, index: int) -> Membership:
        """In force when ``index`` was the end of the log; ``index`` not below the newest membership that is applied:
        those before it are forgotten."""
        return next(membership for known, _, membership in reversed(self._known) if known <= index)

    @property
    def all(self) -> Sequence[Membership]:
        """Those that are in force or may come back into force."""
        return [membership for _, _, membership in self._known]

    def add(self, index: int, term: int, membership: Membership) -> None:
        """A CONFIG entry is in the log."""
        if index > self.active_index:
            self._known.append((index, term, membership))

    def revert(self, term_at: Callable[[int], int | None]) -> bool:
        """Forget those whose entry the log no longer holds. Whether there were any."""
        before = len(self._known)
        while len(self._known) > 1 and term_at(self._known[-1][0]) != self._known[-1][1]:
            self._known.pop()
        return len(self._known) < before

    def applied(self, index: int) -> None:
        """What is applied is committed: nothing before the membership then in force comes back."""
        while len(self._known) > 1 and self._known[1][0] <= index:
            self._known.pop(0)
        # Its entry may be compacted away now, and is not looked for any more.

    def restart(self, membership: Membership, index: int) -> None:
        """The log goes on from a snapshot of ``index``, which may keep entries behind it."""
        later = [known for known in self._known if known[0] > index]
        self._known = [(index, 0, membership), *later]
