"""A Raft without Raft: a RaftHandle that commits at once, for tests of everything above it.

One :class:`FakeRaft` is one replica; ``join`` makes several that share a log, so that a write through one is applied
by all. The test decides what goes wrong: who leads (``set_leader``), what a proposal's outcome is (``lose_next``,
``fail_next``), whether proposals or read barriers wait (``hold``, ``release``).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import AsyncIterator

from controlplane.base.errors import Code, StatusError
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Proposal
from controlplane.raft.types import (
    AddMember,
    Applied,
    LeadershipListener,
    Member,
    MemberChange,
    NeverSent,
    Outcome,
    PeerHandler,
    PromoteMember,
    RaftStatus,
    RemoveMember,
    SnapshotCut,
    StateMachine,
    Unknown,
)

__all__ = ["FakeRaft"]


class _Shared:
    """What all replicas of one fake cluster have in common."""

    def __init__(self) -> None:
        self.replicas: dict[str, FakeRaft] = {}
        self.term = 1
        self.leader: str | None = None
        self.index = 0
        #: What membership changes made of members: None is removed.
        self.paper: dict[int, Member | None] = {}


class FakeRaft:
    """One replica over ``machine``. The first of a cluster leads it, in term 1.

    ``FakeRaft(store)`` is a cluster of one; ``FakeRaft(other_store, name="r2", join=first)`` adds a follower.
    """

    CLUSTER_ID = 0xC1

    def __init__(
        self, machine: StateMachine, *, name: str = "r1", join: FakeRaft | None = None, client_endpoint: str = ""
    ) -> None:
        self.machine = machine
        self.name = name
        self.proposals: list[Proposal] = []
        self.barriers = 0
        self._shared: _Shared = _Shared() if join is None else join._shared
        if name in self._shared.replicas:
            raise ValueError(f"there is a replica {name!r} already")
        if join is None:
            self._shared.leader = name
            self._shared.index = machine.applied_index
        self._shared.replicas[name] = self
        self._member_id = len(self._shared.replicas)
        self._client_endpoint = client_endpoint or f"127.0.0.1:{7000 + self._member_id}"
        self._listeners: list[LeadershipListener] = []
        self._handlers: dict[str, PeerHandler] = {}
        self._next: deque[tuple[Outcome, bool]] = deque()
        self._gate = asyncio.Event()
        self._gate.set()
        self.reachable = True
        #: It applies what others write when it must know: at its next read barrier, or its own write.
        self.lags = False
        self._owed: list[tuple[int, int, Proposal]] = []
        #: What this replica knows of others' versions: name -> revision of the peer protocol.
        self.revisions: dict[str, int] = {}
        #: Names of those that it has not met since its start.
        self.unmet: set[str] = set()

    # -- what a test decides ------------------------------------------------------------------------------------

    def set_leader(self, name: str | None) -> None:
        """A new term with that leader (None: nobody). Listeners hear of it at once."""
        shared = self._shared
        old, old_term = shared.leader, shared.term
        shared.leader = None
        if old is not None:
            shared.replicas[old]._announce(old_term, leading=False)
        shared.term += 1
        shared.leader = name
        if name is not None:
            shared.replicas[name]._announce(shared.term, leading=True)

    def lose_next(self, *, applied: bool, reason: str = "leader lost") -> None:
        """The next proposal's fate stays unknown to its proposer; ``applied`` says what really happened."""
        self._next.append((Unknown(reason), applied))

    def fail_next(self, reason: str = "no leader") -> None:
        """The next proposal never leaves this replica."""
        self._next.append((NeverSent(reason), False))

    def hold(self) -> None:
        """Proposals and read barriers wait from now on."""
        self._gate.clear()

    def release(self) -> None:
        """What waits goes on."""
        self._gate.set()

    # -- RaftHandle ---------------------------------------------------------------------------------------------

    async def propose(self, payload: bytes, *, request_id: bytes, timeout_ms: int, born_index: int = 0) -> Outcome:
        outcome, applied = self._next.popleft() if self._next else (None, True)
        if isinstance(outcome, NeverSent):
            return outcome
        if not await self._opened(timeout_ms):
            return Unknown("timed out")
        if self._shared.leader is None:
            return NeverSent("no leader")
        if not applied:
            return Unknown("timed out")
        proposal = Proposal(request_id=request_id, born_index=born_index or self.machine.applied_index, payload=payload)
        self.proposals.append(proposal)
        shared = self._shared
        shared.index += 1
        reply = b""
        for replica in shared.replicas.values():
            replica._owed.append((shared.index, shared.term, proposal))
            if replica is self:
                reply = replica._catch_up()
            elif not replica.lags:
                replica._catch_up()
        return Applied(reply, shared.index) if outcome is None else outcome

    def _catch_up(self) -> bytes:
        """Apply what there is; the last reply."""
        reply = b""
        owed, self._owed = self._owed, []
        for index, term, proposal in owed:
            reply = self.machine.apply(index, term, [proposal])[0]
        return reply

    async def read_barrier(self, *, timeout_ms: int) -> int:
        self.barriers += 1
        if self._shared.leader is None:
            raise StatusError(Code.UNAVAILABLE, "etcdserver: no leader")
        if not await self._opened(timeout_ms):
            raise StatusError(Code.UNAVAILABLE, "etcdserver: request timed out")
        self._catch_up()
        return self.machine.applied_index

    async def change_members(self, change: MemberChange, *, timeout_ms: int) -> tuple[Member, ...]:
        """Members that were added exist only on paper: nothing replicates to them."""
        paper, members = self._shared.paper, {m.id: m for m in self.status().members}
        if isinstance(change, AddMember):
            if any(m.peer_address == change.peer_address for m in members.values()):
                raise StatusError(Code.FAILED_PRECONDITION, "etcdserver: Peer URLs already exists")
            member_id = 0x1000 + len(paper)
            paper[member_id] = Member(
                member_id, change.name, change.peer_address, change.client_endpoint, change.metrics_endpoint,
                change.learner,
            )  # fmt: skip
            return self.status().members
        if change.member_id not in members:
            raise StatusError(Code.NOT_FOUND, "etcdserver: member not found")
        old = members[change.member_id]
        if isinstance(change, RemoveMember):
            paper[old.id] = None
        elif isinstance(change, PromoteMember):
            if not old.learner:
                raise StatusError(Code.FAILED_PRECONDITION, "etcdserver: can only promote a learner member")
            paper[old.id] = dataclasses.replace(old, learner=False)
        else:
            given = {
                field: value
                for field in ("name", "peer_address", "client_endpoint", "metrics_endpoint")
                if (value := getattr(change, field)) is not None
            }
            paper[old.id] = dataclasses.replace(old, **given)
        return self.status().members

    async def transfer_leadership(self, target_id: int | None, *, timeout_ms: int) -> None:
        shared = self._shared
        if shared.leader != self.name:
            raise StatusError(Code.FAILED_PRECONDITION, "etcdserver: not leader")
        names = [n for n, r in shared.replicas.items() if n != self.name and target_id in (None, r._member_id)]
        if not names:
            raise StatusError(Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee")
        self.set_leader(names[0])

    def members_below(self, revision: int) -> list[str]:
        return sorted(name for name, known in self.revisions.items() if known < revision)

    def members_unmet(self) -> list[str]:
        return sorted(self.unmet)

    @property
    def is_learner(self) -> bool:
        return any(m.learner for m in self.status().members if m.id == self._member_id)

    @property
    def term(self) -> int:
        return self.status().term

    def status(self) -> RaftStatus:
        shared = self._shared
        return RaftStatus(
            name=self.name,
            member_id=self._member_id,
            cluster_id=self.CLUSTER_ID,
            role="leader" if shared.leader == self.name else "follower",
            leader=shared.leader,
            term=shared.term,
            commit_index=shared.index,
            applied_index=self.machine.applied_index,
            last_index=shared.index,
            snapshot_index=0,
            members=self._members(),
            ready=shared.leader is not None,
            pending=0,
        )

    def _members(self) -> tuple[Member, ...]:
        members: dict[int, Member | None] = {
            r._member_id: Member(r._member_id, r.name, f"127.0.0.1:{6000 + r._member_id}", r._client_endpoint)
            for r in self._shared.replicas.values()
        }
        members |= self._shared.paper
        return tuple(m for m in members.values() if m is not None)

    def on_leadership(self, listener: LeadershipListener) -> None:
        self._listeners.append(listener)
        if self._shared.leader == self.name:
            listener(self._shared.term, True)

    def serve(self, channel: str, handler: PeerHandler) -> None:
        self._handlers[channel] = handler

    async def call(self, peer: str, channel: str, payload: bytes, *, timeout_ms: int) -> bytes:
        replica = self._shared.replicas.get(peer)
        if replica is None or not replica.reachable:
            raise StatusError(Code.UNAVAILABLE, f"replica {peer!r} cannot be reached")
        handler = replica._handlers.get(channel)
        if handler is None:
            raise StatusError(Code.UNIMPLEMENTED, f"replica {peer!r} serves no channel {channel!r}")
        return await handler(self.name, payload)

    async def snapshot_file(self) -> AsyncIterator[bytes]:
        for chunk in self.machine.snapshot():
            yield chunk

    async def cut_snapshot(self) -> SnapshotCut:
        raise NotImplementedError("no fake of a data directory")

    # -- inside -------------------------------------------------------------------------------------------------

    async def _opened(self, timeout_ms: int) -> bool:
        try:
            await asyncio.wait_for(self._gate.wait(), timeout_ms / 1000)
        except TimeoutError:
            return False
        return True

    def _announce(self, term: int, *, leading: bool) -> None:
        for listener in self._listeners:
            listener(term, leading)
