"""What a replica that asks for a change of the members makes of the leader's answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from controlplane.base.clock import ManualClock
from controlplane.base.rand import SeededRand
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import MembershipReply, MembershipRequest
from controlplane.raft.core import Core
from controlplane.raft.members import MemberChanges
from controlplane.raft.membership import Membership, Memberships
from controlplane.raft.types import Member, MemberChange, RemoveMember, UpdateMember

FOUNDERS = Membership(tuple(Member(n, f"r{n}", f"h:{n}", "") for n in (1, 2, 3, 4)))
ASKER, LEADER = 1, 2


@dataclass
class AppliedEngine:
    """What a change looks at of an engine that has applied all of its log."""

    memberships: Memberships
    applied_index: int
    leader: int = LEADER
    term: int = 1
    is_leader: bool = False


@dataclass
class AppliedCore:
    engine: AppliedEngine
    me: Member = field(default_factory=lambda: FOUNDERS.members[0])

    def change_members(self, change: MemberChange, *, attempt_id: bytes) -> int | None:
        assert attempt_id in self.engine.memberships.active.attempts
        return self.engine.memberships.active_index


@dataclass
class AnsweringReplica:
    """The leader answers at once that the change is the entry ``index``."""

    made: AppliedCore
    index: int
    #: How much of what is applied a turn has made durable.
    durable_index: int = 0

    @property
    def core(self) -> Core:
        return cast(Core, self.made)

    def kick(self) -> None:
        raise AssertionError("this replica does not lead")

    async def call_id(self, member_id: int, channel: str, payload: bytes, *, timeout_ms: int) -> bytes:
        assert member_id == LEADER
        return MembershipReply(index=self.index).SerializeToString()

    async def transfer_leadership(self, target_id: int | None, *, timeout_ms: int) -> None:
        raise AssertionError("this replica does not lead")

    async def next_turn(self, *, deadline: float) -> None:
        raise AssertionError("everything is applied")

    def members_below(self, revision: int) -> list[str]:
        return []


async def test_a_change_is_answered_with_what_is_in_force_when_the_next_change_was_quicker_than_the_answer() -> None:
    named = FOUNDERS.changed(UpdateMember(ASKER, name="r1", client_endpoint="h:9"), attempt_id=b"1", index=5)
    smaller = named.changed(RemoveMember(4), attempt_id=b"2", index=6)
    memberships = Memberships(FOUNDERS, 0)
    memberships.add(5, 1, named)
    memberships.add(6, 1, smaller)
    memberships.applied(6)
    replica = AnsweringReplica(AppliedCore(AppliedEngine(memberships, applied_index=6)), index=5)
    changes = MemberChanges(replica, ManualClock(), SeededRand(1))
    change = UpdateMember(ASKER, name="r1", client_endpoint="h:9")
    assert await changes.change(change, timeout_ms=1_000) == smaller.members


class SyncingReplica(AnsweringReplica):
    """It leads, and the turn that wrote and applied the change is being synced."""

    def kick(self) -> None:
        """A turn is under way."""

    async def next_turn(self, *, deadline: float) -> None:
        self.durable_index = self.made.engine.applied_index


async def test_a_leader_answers_for_a_change_once_its_own_disk_has_it() -> None:
    alone = Membership(FOUNDERS.members[:2]).changed(RemoveMember(2), attempt_id=b"1", index=5)
    memberships = Memberships(FOUNDERS, 0)
    memberships.add(5, 1, alone)
    memberships.applied(5)
    engine = AppliedEngine(memberships, applied_index=5, leader=ASKER, is_leader=True)
    replica = SyncingReplica(AppliedCore(engine), index=5)
    changes = MemberChanges(replica, ManualClock(), SeededRand(1))
    request = MembershipRequest(attempt_id=b"1", remove=2, timeout_ms=1_000)
    reply = MembershipReply.FromString(await changes.serve("r1", request.SerializeToString()))
    assert reply.index == 5
    assert replica.durable_index == 5, "alone it is a majority, and has committed what its disk does not hold yet"
