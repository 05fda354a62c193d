"""LocalKV: this replica's store behind Raft, as the :class:`KVStore` everything above talks to.

Owns the way of a read: check it before it costs anything, confirm the read index, then read; and what each request asks
of the others. Changes go through ``proposals``, watches through ``local_watch``, lease timers through ``lessor``. Knows
no gRPC, holds no state of its own.

Invariants:

- A response leaves with cluster id, member id and term filled in (``headers``); its revision is the store's.
- What a ``caller`` may do is checked in the same turn of the loop as the read it is for, or in apply (``permissions``).
  Without a caller it is the control plane itself that asks, which may do everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from controlplane.base.clock import Clock, SystemClock
from controlplane.base.rand import Rand, SystemRand
from controlplane.etcd import metrics
from controlplane.etcd.caller import Caller
from controlplane.etcd.headers import Headers
from controlplane.etcd.lessor import Lessor, min_lease_ttl_s
from controlplane.etcd.local_watch import LocalWatches
from controlplane.etcd.proposals import Proposals
from controlplane.etcd.quota import QUOTA_BYTES_DEFAULT, Quota
from controlplane.etcd.soundness import check_not_declared_corrupt, check_sound
from controlplane.pb.etcd import rpc_pb2
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, Condemn, RestoreProgress
from controlplane.raft.types import RaftHandle
from controlplane.store.check import check_range, check_txn, is_read_only
from controlplane.store.permissions import check_lease_read, check_lease_write, check_read
from controlplane.store.permissions import check_txn as check_txn_permissions
from controlplane.store.scan import Scan
from controlplane.store.store import Store

__all__ = ["DEFAULT_TIMEOUT_MS", "PROGRESS_EVERY_S", "LocalKV"]

#: How long a request without a deadline of its own may take.
DEFAULT_TIMEOUT_MS: Final = 5_000
#: How often an idle in-process watch that asked for progress gets a bookmark.
PROGRESS_EVERY_S: Final = 10.0
#: Keys of a long range read in one turn of the loop: about a millisecond.
_KEYS_PER_STEP: Final = 500
_LEASE_ID_MAX: Final = (1 << 63) - 1


class LocalKV:
    """One replica's KVStore. Usable at once for everything but keep-alives, which need :meth:`start`.

    Args:
        raft: how to replicate.
        store: what ``raft`` applies to. Only read here.
        election_timeout_ms: the cluster's; the shortest lease follows from it.
        quota_bytes: the state may become so big; 0 is no limit.
    """

    def __init__(
        self,
        raft: RaftHandle,
        store: Store,
        *,
        clock: Clock | None = None,
        rand: Rand | None = None,
        election_timeout_ms: int = 1_000,
        default_timeout_ms: int = DEFAULT_TIMEOUT_MS,
        progress_every_s: float = PROGRESS_EVERY_S,
        quota_bytes: int = QUOTA_BYTES_DEFAULT,
    ) -> None:
        self._raft = raft
        self._store = store
        self._clock = clock or SystemClock()
        self._rand = rand or SystemRand()
        self._default_timeout_ms = default_timeout_ms
        self._min_ttl_s = min_lease_ttl_s(election_timeout_ms)
        self.quota = Quota(quota_bytes)
        self._headers = Headers(raft, store)
        self._watches = LocalWatches(store, self._headers, self._clock, progress_every_s)
        self._proposals = Proposals(
            raft, store, clock=self._clock, rand=self._rand, quota=self.quota, default_timeout_ms=default_timeout_ms
        )
        self.lessor = Lessor(raft, store.leases, self._clock, self._rand)

    def start(self) -> None:
        """Start lease timers: once, on the replica's loop."""
        self.lessor.start()

    async def stop(self) -> None:
        """Stop lease timers."""
        await self.lessor.stop()

    # -- reads

    @property
    def revision(self) -> int:
        """The revision applied on this replica now."""
        return self._store.revision

    @property
    def applied_index(self) -> int:
        """Index of the log entry applied last on this replica."""
        return self._store.applied_index

    @property
    def compact_revision(self) -> int:
        """Older revisions are gone."""
        return self._store.compact_revision

    @property
    def size_bytes(self) -> int:
        """What the quota counts: bytes of every retained version and of leases."""
        return self._store.size_bytes

    @property
    def term(self) -> int:
        """The newest this replica knows."""
        return self._raft.term

    def header(self, revision: int = 0) -> rpc_pb2.ResponseHeader:
        """A header for a response made now, at ``revision`` (0: the present one)."""
        return self._headers.new(revision)

    async def barrier(self, timeout_ms: int | None = None) -> None:
        """Return once everything committed before the call is applied here.

        Raises:
            StatusError: Unavailable, no quorum confirmed it in time; DataLoss, this replica's state is not the
                cluster's.
        """
        check_sound(self._store, self._raft)
        await self._raft.read_barrier(timeout_ms=timeout_ms or self._default_timeout_ms)

    async def range(
        self, request: rpc_pb2.RangeRequest, *, timeout_ms: int | None = None, caller: Caller | None = None
    ) -> rpc_pb2.RangeResponse:
        await self._may_read(request, timeout_ms, caller)
        scan = self._store.scan(request)
        if scan is None:
            response = self._store.range(request)
            self._headers.stamp(response.header)
            return response
        response = rpc_pb2.RangeResponse(header=self.header(scan.revision))
        async for fields in _stepwise(scan):
            response.MergeFromString(fields)
        return response

    async def range_pieces(
        self, request: rpc_pb2.RangeRequest, *, timeout_ms: int | None = None, caller: Caller | None = None
    ) -> rpc_pb2.RangeResponse | list[bytes]:
        """As :meth:`range`; a long answer serialized already, in pieces to be sent one after the other, which spares
        making and serializing all of it at once."""
        await self._may_read(request, timeout_ms, caller)
        scan = self._store.scan(request)
        if scan is None:
            response = self._store.range(request)
            self._headers.stamp(response.header)
            return response
        pieces = [rpc_pb2.RangeResponse(header=self.header(scan.revision)).SerializeToString()]
        pieces += [fields async for fields in _stepwise(scan)]
        return pieces

    async def _may_read(self, request: rpc_pb2.RangeRequest, timeout_ms: int | None, caller: Caller | None) -> None:
        """Return when the state may be read for this request: in this same turn of the loop."""
        check_range(request)
        check_sound(self._store, self._raft)
        if not request.serializable:
            await self.barrier(timeout_ms)
        check_not_declared_corrupt(self._store)
        if caller is not None and (user := await caller.user()) is not None:
            check_read(self._store.auth, user, request.key, request.range_end)

    async def lease_leases(
        self, *, timeout_ms: int | None = None, caller: Caller | None = None
    ) -> rpc_pb2.LeaseLeasesResponse:
        """The ids of all leases. As in etcd, for a caller who may read every key of every lease."""
        await self.barrier(timeout_ms)
        if caller is not None and (user := await caller.user()) is not None:
            for lease in self._store.leases:
                check_lease_read(self._store.auth, self._store.leases, user, lease.id)
        statuses = [rpc_pb2.LeaseStatus(ID=lease.id) for lease in self._store.leases]
        return rpc_pb2.LeaseLeasesResponse(header=self.header(), leases=statuses)

    @asynccontextmanager
    async def watch(
        self, request: rpc_pb2.WatchCreateRequest, *, caller: Caller | None = None
    ) -> AsyncIterator[AsyncIterator[rpc_pb2.WatchResponse]]:
        """See :meth:`KVStore.watch`. With ``progress_notify`` an idle watch yields a bookmark every
        ``progress_every_s``. Revisions are read from the store's history as the caller takes them: nothing queues."""
        if caller is not None and (user := await caller.user()) is not None:
            check_read(self._store.auth, user, request.key, request.range_end)
        async with self._watches.open(request) as responses:
            yield responses

    # -- writes

    async def put(
        self,
        request: rpc_pb2.PutRequest,
        *,
        request_id: bytes = b"",
        timeout_ms: int | None = None,
        caller: Caller | None = None,
        born_index: int = 0,
    ) -> rpc_pb2.PutResponse:
        reply = await self._proposals.write(Command(put=request), request_id, timeout_ms, caller, born_index)
        return self._headers.stamped(reply.put)

    async def delete_range(
        self,
        request: rpc_pb2.DeleteRangeRequest,
        *,
        request_id: bytes = b"",
        timeout_ms: int | None = None,
        caller: Caller | None = None,
        born_index: int = 0,
    ) -> rpc_pb2.DeleteRangeResponse:
        reply = await self._proposals.write(Command(delete_range=request), request_id, timeout_ms, caller, born_index)
        return self._headers.stamped(reply.delete_range)

    async def txn(
        self,
        request: rpc_pb2.TxnRequest,
        *,
        request_id: bytes = b"",
        timeout_ms: int | None = None,
        caller: Caller | None = None,
        born_index: int = 0,
    ) -> rpc_pb2.TxnResponse:
        if is_read_only(request):
            check_txn(request)
            check_sound(self._store, self._raft)
            if not _is_serializable(request):
                await self.barrier(timeout_ms)
            check_not_declared_corrupt(self._store)
            if caller is not None and (user := await caller.user()) is not None:
                check_txn_permissions(self._store.auth, self._store.leases, user, request)
            return self._headers.stamped(self._store.read_txn(request))
        reply = await self._proposals.write(Command(txn=request), request_id, timeout_ms, caller, born_index)
        return self._headers.stamped(reply.txn)

    async def compact(
        self, request: rpc_pb2.CompactionRequest, *, timeout_ms: int | None = None, caller: Caller | None = None
    ) -> rpc_pb2.CompactionResponse:
        """A ``physical`` compaction also waits until this replica has given the memory back, but for what a backup that
        is being made still reads."""
        reply = await self._proposals.write(Command(compact=request), b"", timeout_ms, caller)
        while request.physical and self._store.sweepable:
            self._store.sweep()
            await asyncio.sleep(0)
        return self._headers.stamped(reply.compact)

    # -- leases

    async def lease_grant(
        self,
        request: rpc_pb2.LeaseGrantRequest,
        *,
        request_id: bytes = b"",
        timeout_ms: int | None = None,
        caller: Caller | None = None,
    ) -> rpc_pb2.LeaseGrantResponse:
        """An id of 0 asks us to pick one. A TTL below the minimum is raised to it; the response has the real one."""
        grant = rpc_pb2.LeaseGrantRequest(ID=request.ID or self._new_lease_id(), TTL=max(request.TTL, self._min_ttl_s))
        reply = await self._proposals.write(Command(lease_grant=grant), request_id, timeout_ms, caller)
        metrics.LEASE_GRANTED.inc()
        return self._headers.stamped(reply.lease_grant)

    async def lease_revoke(
        self,
        request: rpc_pb2.LeaseRevokeRequest,
        *,
        request_id: bytes = b"",
        timeout_ms: int | None = None,
        caller: Caller | None = None,
    ) -> rpc_pb2.LeaseRevokeResponse:
        reply = await self._proposals.write(Command(lease_revoke=request), request_id, timeout_ms, caller)
        metrics.LEASE_REVOKED.inc()
        return self._headers.stamped(reply.lease_revoke)

    async def lease_keep_alive(
        self, request: rpc_pb2.LeaseKeepAliveRequest, *, timeout_ms: int | None = None, caller: Caller | None = None
    ) -> rpc_pb2.LeaseKeepAliveResponse:
        """TTL 0 in the answer: there is no such lease. The header's revision is from before the renewal."""
        if caller is not None and (user := await caller.user()) is not None:
            check_lease_write(self._store.auth, self._store.leases, user, request.ID)
        header = self.header()
        ttl_s = await self.lessor.keep_alive(request.ID, timeout_ms=timeout_ms or self._default_timeout_ms)
        return rpc_pb2.LeaseKeepAliveResponse(header=header, ID=request.ID, TTL=ttl_s)

    async def lease_time_to_live(
        self, request: rpc_pb2.LeaseTimeToLiveRequest, *, timeout_ms: int | None = None, caller: Caller | None = None
    ) -> rpc_pb2.LeaseTimeToLiveResponse:
        """TTL -1 in the answer: there is no such lease."""
        timeout_ms = timeout_ms or self._default_timeout_ms
        await self.barrier(timeout_ms)
        lease = self._store.leases.get(request.ID)
        ttl_s = -1 if lease is None else await self.lessor.time_to_live(request.ID, timeout_ms=timeout_ms)
        user = None if caller is None else await caller.user()
        if user is not None and request.keys:
            check_lease_read(self._store.auth, self._store.leases, user, request.ID)
        response = rpc_pb2.LeaseTimeToLiveResponse(header=self.header(), ID=request.ID, TTL=ttl_s)
        if lease is not None and ttl_s >= 0:
            response.grantedTTL = lease.ttl_s
            if request.keys:
                response.keys.extend(lease.keys)
        return response

    def _new_lease_id(self) -> int:
        while True:
            lease_id = int.from_bytes(self._rand.token(8), "big") & _LEASE_ID_MAX
            if lease_id and lease_id not in self._store.leases:
                return lease_id

    # -- users and roles

    async def change_auth(
        self, command: Command, *, request_id: bytes = b"", timeout_ms: int | None = None, caller: Caller | None = None
    ) -> rpc_pb2.ResponseHeader:
        """Replicate one of the ``auth_*`` commands; the header of its answer.

        Raises:
            StatusError: as a write.
        """
        reply = await self._proposals.write(command, request_id, timeout_ms, caller)
        header: rpc_pb2.ResponseHeader = getattr(reply, reply.WhichOneof("result") or "").header
        self._headers.stamp(header)
        return header

    # -- alarms

    async def alarm(
        self,
        action: rpc_pb2.AlarmRequest.AlarmAction.ValueType,
        member_id: int,
        kind: rpc_pb2.AlarmType.ValueType,
        *,
        timeout_ms: int | None = None,
    ) -> rpc_pb2.AlarmResponse:
        """Raise (ACTIVATE) or clear (DEACTIVATE) one alarm of a member, through the log; which one it was, if any.

        Raises:
            StatusError: as a write.
        """
        command = self._proposals.alarm_command(action, member_id, kind)
        reply = await self._proposals.propose(command, b"", timeout_ms)
        return self._headers.stamped(reply.alarm)

    async def condemn(self, member_id: int) -> None:
        """Replicate the verdict that a member's state is wrong: it serves nobody from that entry on, and stops.

        Raises:
            StatusError: as a write.
        """
        command = Command(condemn=Condemn(member_id=member_id), proposed_at_ms=self._clock.wall_ms())
        await self._proposals.propose(command, b"", None)

    # -- a restore into the running cluster

    async def restore(
        self, command: Command, *, request_id: bytes = b"", timeout_ms: int | None = None
    ) -> RestoreProgress:
        """Replicate one step of a restore (``restoring``). Neither quota nor alarms stand in its way: it may be what
        makes room.

        Raises:
            StatusError: as a write.
        """
        command.proposed_at_ms = self._clock.wall_ms()
        check_sound(self._store, self._raft)
        reply = await self._proposals.propose(command, request_id, timeout_ms)
        progress: RestoreProgress = getattr(reply, reply.WhichOneof("result") or "")
        self._headers.stamp(progress.header)
        return progress


async def _stepwise(scan: Scan) -> AsyncGenerator[bytes, None]:
    """Serialized fields of the response, with a turn of the loop between two steps."""
    try:
        while (fields := scan.step(_KEYS_PER_STEP)) is not None:
            yield fields
            await asyncio.sleep(0)
        yield scan.end()
    finally:
        scan.close()


def _is_serializable(request: rpc_pb2.TxnRequest) -> bool:
    """A read-only transaction is local only if every range in it says so, and no compare needs the newest state."""
    ops = (*request.success, *request.failure)
    return not request.compare and all(op.HasField("request_range") and op.request_range.serializable for op in ops)
