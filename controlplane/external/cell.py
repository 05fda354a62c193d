"""ExternalCell: one control-plane process among those that share an external etcd. What Raft's handle is otherwise.

Owns the order of a process's life in the store: take a seat, enter the roster, stand for election, and again when the
seat is lost. Answers who is here, who leads, and how the etcd members are; carries calls between processes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from typing import Final

from controlplane.base.aio import run_until_first
from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import Rand
from controlplane.client.fenced import LEADER_KEY
from controlplane.external.connection import RETRIED
from controlplane.external.election import Election
from controlplane.external.kv import RemoteKV
from controlplane.external.peers import Peers
from controlplane.external.roster import REPLICAS_PREFIX, Roster
from controlplane.external.seat import Seat
from controlplane.pb.etcd import rpc_pb2
from controlplane.pb.quarterdeck.internal.v1 import peers_pb2
from controlplane.pb.quarterdeck.v1 import api_pb2, operator_pb2
from controlplane.raft.types import LeadershipListener, Member, PeerHandler, RaftStatus
from controlplane.transport.channel import Credentials

__all__ = ["ExternalCell"]

_log = logging.getLogger("quarterdeck.store")

_SURVEY_EVERY_S: Final = 1.0
_SURVEY_TIMEOUT_MS: Final = 700
_RETRY_S: Final = 0.2


class ExternalCell:
    """See the module. Keep :meth:`run` running, then :meth:`close`.

    Args:
        me: this process as others are to find it; its token is made here.
        store_endpoints: the etcd members, whose state is looked at once a second.
        ttl_s: of the seat.
    """

    def __init__(
        self,
        kv: RemoteKV,
        me: peers_pb2.RosterEntry,
        *,
        store_endpoints: Sequence[str],
        ttl_s: int,
        clock: Clock,
        rand: Rand,
        credentials: Credentials | None = None,
    ) -> None:
        self._kv = kv
        self._clock = clock
        self._entry = peers_pb2.RosterEntry()
        self._entry.CopyFrom(me)
        self._entry.token = rand.token(16)
        self._store_endpoints = store_endpoints
        self._seat = Seat(kv, ttl_s=ttl_s, clock=clock)
        self._store_members: list[operator_pb2.StoreMember] = []
        self.roster = Roster(kv, clock)
        self.election = Election(kv, self.roster, name=me.name, clock=clock)
        self.peers = Peers(self.roster, name=me.name, token=self._entry.token, credentials=credentials)

    async def run(self) -> None:
        """Take part until cancelled.

        Raises:
            StatusError: the store refuses (permission, no space), which waiting does not mend.
        """
        await run_until_first(self.roster.run(), self._take_part(), self._survey())

    async def close(self) -> None:
        """Leave: after :meth:`run` was cancelled. Others may lead at once."""
        await self._seat.leave()
        await self.peers.close()

    # -- what Raft's handle answers --------------------------------------------------------------------------------

    def status(self) -> RaftStatus:
        """Of the process: log indexes are the store's revision, as far as this process has seen it."""
        leader, revision = self.roster.leader, self._kv.revision
        return RaftStatus(
            name=self._entry.name,
            member_id=_id_of(self._entry.name),
            cluster_id=self._kv.cluster_id,
            role="leader" if self.election.held is not None else "follower",
            leader=leader.name if leader is not None else None,
            term=self.roster.term,
            commit_index=revision,
            applied_index=revision,
            last_index=revision,
            snapshot_index=0,
            members=tuple(
                Member(_id_of(name), name, "", entry.client_endpoint, entry.metrics_endpoint)
                for name, entry in self.roster.members.items()
            ),
            ready=self._entry.name in self.roster.members and any(m.reachable for m in self._store_members),
            pending=self._kv.pending,
        )

    def on_leadership(self, listener: LeadershipListener) -> None:
        """See :meth:`Election.on_leadership`."""
        self.election.on_leadership(listener)

    def serve(self, channel: str, handler: PeerHandler) -> None:
        """See :meth:`Peers.serve`."""
        self.peers.serve(channel, handler)

    async def call(self, peer: str, channel: str, payload: bytes, *, timeout_ms: int) -> bytes:
        """See :meth:`Peers.call`."""
        return await self.peers.call(peer, channel, payload, timeout_ms=timeout_ms)

    async def read_barrier(self, *, timeout_ms: int) -> int:
        """A linearizable read of nothing; the revision it was served at. Raises StatusError (Unavailable)."""
        request = rpc_pb2.RangeRequest(key=LEADER_KEY, count_only=True)
        return (await self._kv.range(request, timeout_ms=timeout_ms)).header.revision

    # -- and besides -----------------------------------------------------------------------------------------------

    @property
    def store_members(self) -> Sequence[operator_pb2.StoreMember]:
        """The etcd members, as last looked at."""
        return tuple(self._store_members)

    def fence(self, term: int) -> api_pb2.Fence:
        """What every write of that reign compares.

        Raises:
            StatusError: FAILED_PRECONDITION, the reign is over.
        """
        held = self.election.held
        if held is None or held.term != term:
            raise StatusError(Code.FAILED_PRECONDITION, f"term {term} is over")
        return api_pb2.Fence(key=LEADER_KEY, mod_revision=held.mod_revision)

    # -- inside ----------------------------------------------------------------------------------------------------

    async def _take_part(self) -> None:
        while True:
            await self._seat.take()
            await run_until_first(self._keep(), self._appear())
            await self._seat.leave()
            await self._clock.sleep(_RETRY_S)

    async def _keep(self) -> None:
        why = await self._seat.keep()
        _log.warning("event=seat-lost name=%s reason=%s", self._entry.name, why)

    async def _appear(self) -> None:
        key = REPLICAS_PREFIX + self._entry.name.encode()
        value = self._entry.SerializeToString()
        while True:
            try:
                await self._kv.put(rpc_pb2.PutRequest(key=key, value=value, lease=self._seat.lease))
                break
            except StatusError as error:
                if error.code is Code.NOT_FOUND:
                    return  # the lease
                if error.code not in RETRIED:
                    raise
                _log.warning("event=not-in-roster reason=%s", error.message)
                await self._clock.sleep(_RETRY_S)  # the same value again: twice does no harm
        await self.election.stand(self._seat.lease)

    async def _survey(self) -> None:
        while True:
            self._store_members = list(await asyncio.gather(*(self._look(e) for e in self._store_endpoints)))
            await self._clock.sleep(_SURVEY_EVERY_S)

    async def _look(self, endpoint: str) -> operator_pb2.StoreMember:
        try:
            found = await self._kv.status(endpoint, timeout_ms=_SURVEY_TIMEOUT_MS)
        except StatusError:
            return operator_pb2.StoreMember(endpoint=endpoint)
        return operator_pb2.StoreMember(
            endpoint=endpoint,
            reachable=True,
            version=found.version,
            leader=found.leader == found.header.member_id,
            raft_term=found.raftTerm,
            size_bytes=found.dbSize,
        )


def _id_of(name: str) -> int:
    """A number for who needs one: processes have only names here."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
