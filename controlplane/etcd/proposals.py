"""Changes on their way into the log: checked, stamped, proposed, and their outcome told as etcd tells it.

Owns a change from the request to its reply: what is checked before it costs anything (shape, soundness, quota), the
time and the id it carries, in whose name it is made, and what a client is told of one that was not seen to be applied.
Must not know gRPC, reads or lease timers.

Invariants:

- Every change is one proposal; nothing here writes to the store.
- A write that may have happened fails with ``unknown_outcome=True``, and only such a write does.
- A write proposed anew carries the same id, so it happens once.
"""

from __future__ import annotations

import logging
from typing import Final

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.base.limits import PROPOSALS_PENDING_MAX
from controlplane.base.rand import Rand
from controlplane.etcd.caller import Caller
from controlplane.etcd.quota import Quota
from controlplane.etcd.soundness import check_sound
from controlplane.pb.etcd import rpc_pb2
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, Reply
from controlplane.raft.types import Applied, NeverSent, RaftHandle, Unknown, outdated
from controlplane.store.auth_errors import OLD_REVISION_TEXT, USER_EMPTY_TEXT
from controlplane.store.check import check_command, peer_revision_of
from controlplane.store.errors import FORGOTTEN_TEXT, no_space
from controlplane.store.store import Store

__all__ = ["Proposals"]

_log = logging.getLogger("quarterdeck.etcd")

#: The auth store is not as the proposer knew it.
_AUTH_STALE: Final = (OLD_REVISION_TEXT, USER_EMPTY_TEXT)
#: How often a write is proposed anew because the auth store changed while it was on its way.
_AUTH_ATTEMPTS_MAX: Final = 8


class Proposals:
    """What one replica proposes.

    Args:
        raft: how to replicate.
        store: what ``raft`` applies to. Only read here.
        quota: what there is room for.
        default_timeout_ms: for changes that come without a deadline.
    """

    def __init__(
        self, raft: RaftHandle, store: Store, *, clock: Clock, rand: Rand, quota: Quota, default_timeout_ms: int
    ) -> None:
        self._raft = raft
        self._store = store
        self._clock = clock
        self._rand = rand
        self._quota = quota
        self._default_timeout_ms = default_timeout_ms

    async def write(
        self,
        command: Command,
        request_id: bytes,
        timeout_ms: int | None,
        caller: Caller | None,
        born_index: int = 0,
    ) -> Reply:
        """Check a client's command, stamp it, replicate it and return its reply.

        Args:
            request_id: empty asks for a new one.
            born_index: see ``RaftHandle.propose``.

        Raises:
            StatusError: the store refused it, or nobody can say whether it happened (``unknown_outcome``).
        """
        command.proposed_at_ms = self._clock.wall_ms()
        check_command(command)
        check_sound(self._store, self._raft)
        if self._quota.lacks(command, self._store.size_bytes):
            await self._raise_no_space()
            raise no_space()
        if caller is None:
            return await self.propose(command, request_id, timeout_ms, born_index)
        return await self._propose_for(caller, command, request_id or self._rand.token(16), timeout_ms, born_index)

    async def _propose_for(
        self, caller: Caller, command: Command, request_id: bytes, timeout_ms: int | None, born_index: int
    ) -> Reply:
        """Propose in the name of a caller; anew, under the same id, if meanwhile the auth store has changed. Such a
        rejection has no effect and is not remembered, so this is one write still."""
        attempts_left = _AUTH_ATTEMPTS_MAX
        while True:
            command.auth_user = await caller.user() or ""
            command.auth_revision = self._store.auth.revision
            attempts_left -= 1
            try:
                return await self.propose(command, request_id, timeout_ms, born_index)
            except StatusError as error:
                if error.message not in _AUTH_STALE or not attempts_left:
                    raise

    async def propose(self, command: Command, request_id: bytes, timeout_ms: int | None, born_index: int = 0) -> Reply:
        """Replicate a command that needs no room and no permission, stamped by its maker, and return its reply.

        Raises:
            StatusError: as :meth:`write`.
        """
        needs = peer_revision_of(command)
        if needs and (old := self._raft.members_below(needs)):
            raise outdated(old)
        term = self._raft.term
        outcome = await self._raft.propose(
            command.SerializeToString(),
            request_id=request_id or self._rand.token(16),
            timeout_ms=timeout_ms or self._default_timeout_ms,
            born_index=born_index,
        )
        if not isinstance(outcome, Applied):
            raise self._failure(outcome, term)
        reply = Reply.FromString(outcome.reply)
        if reply.HasField("rejection"):
            text = reply.rejection.message
            # A store that may have forgotten this id cannot say whether it was applied once already.
            raise StatusError(Code(reply.rejection.code), text, unknown_outcome=text == FORGOTTEN_TEXT)
        if reply.WhichOneof("result") != command.WhichOneof("op"):
            # The store answers a known id as it did the first time: with that reply this request would look done.
            raise StatusError(Code.INVALID_ARGUMENT, "quarterdeck: request id was used for another request")
        return reply

    def alarm_command(
        self,
        action: rpc_pb2.AlarmRequest.AlarmAction.ValueType,
        member_id: int,
        kind: rpc_pb2.AlarmType.ValueType,
    ) -> Command:
        """To raise or clear one alarm of a member, as of now."""
        request = rpc_pb2.AlarmRequest(action=action, memberID=member_id, alarm=kind)
        return Command(alarm=request, proposed_at_ms=self._clock.wall_ms())

    async def _raise_no_space(self) -> None:
        """Make it known to all replicas that the state is full; done once."""
        member_id = self._raft.status().member_id
        if self._raft.members_below(peer_revision_of(Command(alarm=rpc_pb2.AlarmRequest()))):
            return  # in the middle of an upgrade: each replica refuses by its own account, as it does before the alarm
        if not self._store.alarms.has(member_id, rpc_pb2.NOSPACE):
            _log.error(
                "event=no-space size_bytes=%d quota_bytes=%d: writes are refused; delete or compact, then clear the "
                "alarm (etcdctl alarm disarm)",
                self._store.size_bytes, self._quota.limit_bytes,
            )  # fmt: skip
            await self.propose(self.alarm_command(rpc_pb2.AlarmRequest.ACTIVATE, member_id, rpc_pb2.NOSPACE), b"", None)

    def _failure(self, outcome: NeverSent | Unknown, term: int) -> StatusError:
        """What a client is told of a write that was not seen to be applied, in etcd's words."""
        status = self._raft.status()
        _log.debug("event=write_failed outcome=%s reason=%r", type(outcome).__name__, outcome.reason)
        if isinstance(outcome, Unknown):
            text = "etcdserver: request timed out"
            if status.term != term:
                text += ", possibly due to previous leader failure"
            return StatusError(Code.UNAVAILABLE, text, unknown_outcome=True)
        if status.pending >= PROPOSALS_PENDING_MAX:
            return StatusError(Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
        if status.leader is None:
            return StatusError(Code.UNAVAILABLE, "etcdserver: no leader")
        return StatusError(Code.UNAVAILABLE, "etcdserver: request timed out")
