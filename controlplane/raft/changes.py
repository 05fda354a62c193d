"""May the membership be changed now? What the leader asks before it puts a change in its log.

Owns the checks that depend on who is there: strict reconfiguration and the learner's readiness, as in etcd. Pure
decisions over the engine's knowledge; whether the change fits the members at all is ``membership``'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from controlplane.base.errors import Code, StatusError
from controlplane.raft.config import RaftConfig
from controlplane.raft.engine import Engine
from controlplane.raft.membership import Membership
from controlplane.raft.types import AddMember, Member, MemberChange, PromoteMember, RemoveMember

__all__ = ["check_change"]

#: A learner is in sync from this share of the leader's log on, in percent (etcd's), and so few entries behind.
_READY_PERCENT: Final = 90
_READY_ENTRIES: Final = 100


def check_change(
    change: MemberChange, before: Membership, after: Membership, *, me: int, engine: Engine, config: RaftConfig
) -> None:
    """As leader (``me``): refuse a change that would leave the cluster without a quorum of living voters.

    Raises:
        StatusError: FailedPrecondition or Unavailable, with etcd's texts.
    """
    if isinstance(change, PromoteMember):
        _check_in_sync(change.member_id, engine, config)
    if isinstance(change, AddMember) and change.learner:
        return  # it is not counted: nobody's quorum changes
    if isinstance(change, RemoveMember):
        if (member := before.get(change.member_id)) is None or member.learner:
            return
    elif not isinstance(change, (AddMember, PromoteMember)):
        return
    voters = [m for m in after.members if not m.learner]
    _check_started(voters, growing=not isinstance(change, RemoveMember))
    _check_alive(change, before, voters, me=me, engine=engine, config=config)


def _check_in_sync(learner_id: int, engine: Engine, config: RaftConfig) -> None:
    match, last = engine.match_index(learner_id), engine.last_index
    near = match * 100 >= last * _READY_PERCENT and last - match <= _READY_ENTRIES
    if not near or not engine.heard_within(learner_id, config.election_min_ms / 1000):
        text = "etcdserver: can only promote a learner member which is in sync with leader"
        raise StatusError(Code.FAILED_PRECONDITION, text)


def _check_started(voters: Iterable[Member], *, growing: bool) -> None:
    """A member without a name has never run: it may not be needed for a quorum."""
    voters = list(voters)
    started = sum(1 for m in voters if m.name)
    if growing and started == 1 and len(voters) == 2:
        return  # a lone member may take in a second one, which cannot start before it is a member
    if started < len(voters) // 2 + 1:
        text = "etcdserver: re-configuration failed due to not enough started members"
        raise StatusError(Code.FAILED_PRECONDITION, text)


def _check_alive(
    change: MemberChange, before: Membership, voters: list[Member], *, me: int, engine: Engine, config: RaftConfig
) -> None:
    """A majority of the voters after the change must answer now. A new member that has not run yet does not."""
    within_s = config.election_min_ms / 1000
    alive = sum(1 for m in voters if m.id == me or engine.heard_within(m.id, within_s))
    # A newcomer may never come, so everybody else must be well: etcd's rule.
    healthy = alive == len(before.voters) if isinstance(change, AddMember) else 2 * alive > len(voters)
    if not healthy:
        raise StatusError(Code.UNAVAILABLE, "etcdserver: unhealthy cluster")
