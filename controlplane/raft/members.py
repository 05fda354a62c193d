"""Membership as one replica lives it: changes on their way to the leader, links that follow, its own name made known.

Owns the requests of the channel ``members`` and what happens around a change in the log; the rules are ``membership``'s
and ``changes``'. A change carries an id from its first attempt on, which the replicated membership remembers: asked
again after an answer was lost, it is answered and not done twice.

A leader does not remove itself: it hands over first, and its successor removes it.
"""

from __future__ import annotations

import logging
from typing import Protocol

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import Rand
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import (
    MembershipAdd,
    MembershipReply,
    MembershipRequest,
    MembershipUpdate,
)
from controlplane.raft.core import Core
from controlplane.raft.types import (
    AddMember,
    Member,
    MemberChange,
    PromoteMember,
    RemoveMember,
    UpdateMember,
    outdated,
)

__all__ = ["CHANNEL", "MemberChanges"]

_log = logging.getLogger("quarterdeck.members")

CHANNEL = "members"
#: Between two attempts to find somebody who leads, and two looks at a change that has to wait for another.
_RETRY_S = 0.03
#: One attempt at one leader.
_ATTEMPT_MS = 2_000
_HANDOVER_MS = 2_000
#: Of the peer protocol: who knows entries that change the members.
_CONFIG_REVISION = 1


class Surroundings(Protocol):
    """What a change needs of the replica around it."""

    @property
    def core(self) -> Core: ...
    @property
    def durable_index(self) -> int: ...
    def kick(self) -> None: ...
    async def call_id(self, member_id: int, channel: str, payload: bytes, *, timeout_ms: int) -> bytes: ...
    async def transfer_leadership(self, target_id: int | None, *, timeout_ms: int) -> None: ...
    async def next_turn(self, *, deadline: float) -> None: ...
    def members_below(self, revision: int) -> list[str]: ...


class MemberChanges:
    """The changes asked of this replica, by its callers and, when it leads, by its peers."""

    def __init__(self, replica: Surroundings, clock: Clock, rand: Rand) -> None:
        self._replica = replica
        self._clock = clock
        self._rand = rand

    async def change(self, change: MemberChange, *, timeout_ms: int) -> tuple[Member, ...]:
        """See RaftHandle.change_members."""
        deadline = self._clock.monotonic() + timeout_ms / 1000
        request = _to_wire(change, self._rand.token(16))
        asked = False
        while (left_ms := round(1000 * (deadline - self._clock.monotonic()))) > 0:
            request.timeout_ms = min(left_ms, _ATTEMPT_MS)
            reply, sent = await self._ask(request)
            asked = asked or sent
            if reply is not None:
                await self._applied(reply.index, deadline)
                engine = self._core.engine
                # Not as of the reply's index: a later change may be applied already, and what was before it forgotten.
                return engine.memberships.at(engine.applied_index).members
            await self._clock.sleep(_RETRY_S)
        raise _timed_out(asked)

    async def serve(self, peer: str, payload: bytes) -> bytes:
        """A peer that believes we lead asks for a change."""
        request = MembershipRequest.FromString(payload)
        return (await self._lead(request, peer)).SerializeToString()

    async def _ask(self, request: MembershipRequest) -> tuple[MembershipReply | None, bool]:
        """Ask whoever leads: its answer, if it has done it, and whether the request left."""
        leader = self._core.engine.leader
        if leader is None:
            return None, False
        if leader == self._core.me.id:
            reply = await self._lead(request, self._core.me.name)
        else:
            try:
                payload = request.SerializeToString()
                answer = await self._replica.call_id(leader, CHANNEL, payload, timeout_ms=request.timeout_ms)
            except StatusError as error:
                if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED) or "unhealthy" in error.message:
                    raise
                return None, True
            reply = MembershipReply.FromString(answer)
        return (None if reply.not_leader else reply), True

    async def _lead(self, request: MembershipRequest, asker: str) -> MembershipReply:
        """As leader, if we are: put the change in the log and wait until it is committed.

        Raises:
            StatusError: it may not be done.
        """
        core = self._core
        change, attempt_id = _from_wire(request), request.attempt_id
        deadline = self._clock.monotonic() + request.timeout_ms / 1000
        not_leader = MembershipReply(not_leader=True)
        if old := self._replica.members_below(_CONFIG_REVISION):
            # It would take the entry for damage, and hear nothing more of this leader.
            raise outdated(old)
        while core.engine.is_leader and self._clock.monotonic() < deadline:
            term = core.engine.term
            known = attempt_id in core.engine.memberships.active.attempts
            if isinstance(change, RemoveMember) and change.member_id == core.me.id and not known:
                if not core.engine.voters:
                    text = "etcdserver: re-configuration failed due to not enough started members"
                    raise StatusError(Code.FAILED_PRECONDITION, text)
                await self._hand_over()
                return not_leader
            index = core.change_members(change, attempt_id=attempt_id)
            if index is None:
                await self._replica.next_turn(deadline=min(deadline, self._clock.monotonic() + _RETRY_S))
                continue
            if not known:
                _log.info("member change index=%d asker=%s change=%r", index, asker, change)
            self._replica.kick()
            if await self._committed(index, term, deadline):
                return MembershipReply(index=index)
            return not_leader
        return not_leader

    async def _committed(self, index: int, term: int, deadline: float) -> bool:
        """Whether the entry that this leader appended in ``term`` is committed, applied and on its own disk, which may
        be the only one now; False: who knows."""
        engine = self._core.engine
        while self._replica.durable_index < index:
            if not engine.is_leader or engine.term != term or self._clock.monotonic() >= deadline:
                return False
            await self._replica.next_turn(deadline=deadline)
        return engine.is_leader and engine.term == term

    async def _hand_over(self) -> None:
        """Before this leader is removed, another must lead. If that fails, the asker tries again."""
        try:
            await self._replica.transfer_leadership(None, timeout_ms=_HANDOVER_MS)
        except StatusError as error:
            _log.warning("leadership not handed over error=%r", error.message)

    async def _applied(self, index: int, deadline: float) -> None:
        while self._core.engine.applied_index < index:
            if self._clock.monotonic() >= deadline:
                raise _timed_out(True)
            await self._replica.next_turn(deadline=deadline)

    @property
    def _core(self) -> Core:
        return self._replica.core


def _timed_out(asked: bool) -> StatusError:
    return StatusError(Code.UNAVAILABLE, "etcdserver: request timed out", unknown_outcome=asked)


def _to_wire(change: MemberChange, attempt_id: bytes) -> MembershipRequest:
    request = MembershipRequest(attempt_id=attempt_id)
    if isinstance(change, AddMember):
        request.add.CopyFrom(
            MembershipAdd(
                peer_address=change.peer_address,
                learner=change.learner,
                name=change.name,
                client_endpoint=change.client_endpoint,
                metrics_endpoint=change.metrics_endpoint,
            )
        )
    elif isinstance(change, RemoveMember):
        request.remove = change.member_id
    elif isinstance(change, PromoteMember):
        request.promote = change.member_id
    else:
        request.update.CopyFrom(
            MembershipUpdate(
                id=change.member_id,
                name=change.name,
                peer_address=change.peer_address,
                client_endpoint=change.client_endpoint,
                metrics_endpoint=change.metrics_endpoint,
            )
        )
    return request


def _from_wire(request: MembershipRequest) -> MemberChange:
    kind = request.WhichOneof("change")
    if kind == "add":
        add = request.add
        return AddMember(add.peer_address, add.learner, add.name, add.client_endpoint, add.metrics_endpoint)
    if kind == "remove":
        return RemoveMember(request.remove)
    if kind == "promote":
        return PromoteMember(request.promote)
    if kind == "update":
        update = request.update
        return UpdateMember(
            update.id,
            update.name if update.HasField("name") else None,
            update.peer_address if update.HasField("peer_address") else None,
            update.client_endpoint if update.HasField("client_endpoint") else None,
            update.metrics_endpoint if update.HasField("metrics_endpoint") else None,
        )
    raise StatusError(Code.UNIMPLEMENTED, "this replica does not know that change of the members; upgrade it first")
