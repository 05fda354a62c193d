"""LocalKV: this replica's store behind Raft, as the :class:`KVStore` everything above talks to.

Owns the way of a request: check it before it costs anything, propose it, read the reply; or confirm the read index,
then read. Knows no gRPC. Holds no state of its own besides lease timers.

Invariants:

- Every change is one proposal; nothing here writes to the store.
- A response leaves with cluster id, member id and term filled in; its revision is the store's.
- A write that may have happened fails with ``unknown_outcome=True``, and only such a write does.
- What a ``caller`` may do is checked in the same turn of the loop as the read it is for, or in apply (``permissions``).
  Without a caller it is the control plane itself that asks, which may do everything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Final, TypeVar

from controlplane.base.clock import Clock, SystemClock
from controlplane.base.errors import Code, StatusError
from controlplane.base.limits import PROPOSALS_PENDING_MAX
from controlplane.base.rand import Rand, SystemRand
from controlplane.etcd import metrics
from controlplane.etcd.caller import Caller
from controlplane.etcd.lessor import Lessor, min_lease_ttl_s
from controlplane.etcd.quota import QUOTA_BYTES_DEFAULT, Quota
from controlplane.pb.etcd import rpc_pb2
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, Condemn, Reply, RestoreProgress
from controlplane.raft.types import Applied, NeverSent, RaftHandle, Unknown, outdated
from controlplane.store.auth_errors import OLD_REVISION_TEXT, USER_EMPTY_TEXT
from controlplane.store.check import check_command, check_range, check_txn, is_read_only, peer_revision_of
from controlplane.store.errors import FORGOTTEN_TEXT, CompactedError, corrupt, no_space
from controlplane.store.permissions import check_lease_read, check_lease_write, check_read
from controlplane.store.permissions import check_txn as check_txn_permissions
from controlplane.store.scan import Scan
from controlplane.store.store import Store
from controlplane.store.watch import Watcher

_log = logging.getLogger("quarterdeck.etcd")

__all__ = ["DEFAULT_TIMEOUT_MS", "PROGRESS_EVERY_S", "LocalKV"]

#: How long a request without a deadline of its own may take.
DEFAULT_TIMEOUT_MS: Final = 5_000
#: How often an idle in-process watch that asked for progress gets a bookmark.
PROGRESS_EVERY_S: Final = 10.0
#: A watch that has more to read yields this many events at a time (or one revision, if that has more).
_WATCH_EVENTS_PER_RESPONSE: Final = 500
#: Keys of a long range read in one turn of the loop: about a millisecond.
_KEYS_PER_STEP: Final = 500
_LEASE_ID_MAX: Final = (1 << 63) - 1
#: The auth store is not as the proposer knew it.
_AUTH_STALE: Final = (OLD_REVISION_TEXT, USER_EMPTY_TEXT)
#: How often a write is proposed anew because the auth store changed while it was on its way.
_AUTH_ATTEMPTS_MAX: Final = 8

_ResponseT = TypeVar(
    "_ResponseT",
    rpc_pb2.PutResponse,
    rpc_pb2.DeleteRangeResponse,
    rpc_pb2.TxnResponse,
    rpc_pb2.CompactionResponse,
    rpc_pb2.LeaseGrantResponse,
    rpc_pb2.LeaseRevokeResponse,
    rpc_pb2.AlarmResponse,
)


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
        #: Cluster and member id, which never change: looked up once, sent with every response.
        self._identity: tuple[int, int] | None = None
        self._clock = clock or SystemClock()
        self._rand = rand or SystemRand()
        self._default_timeout_ms = default_timeout_ms
        self._progress_every_s = progress_every_s
        self._min_ttl_s = min_lease_ttl_s(election_timeout_ms)
        self.quota = Quota(quota_bytes)
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
        header = rpc_pb2.ResponseHeader(revision=revision or self._store.revision)
        self._stamp(header)
        return header

    async def barrier(self, timeout_ms: int | None = None) -> None:
        """Return once everything committed before the call is applied here.

        Raises:
            StatusError: Unavailable, no quorum confirmed it in time; DataLoss, this replica's state is not the
                cluster's.
        """
        self._check_sound()
        await self._raft.read_barrier(timeout_ms=timeout_ms or self._default_timeout_ms)

    async def range(
        self, request: rpc_pb2.RangeRequest, *, timeout_ms: int | None = None, caller: Caller | None = None
    ) -> rpc_pb2.RangeResponse:
        await self._may_read(request, timeout_ms, caller)
        scan = self._store.scan(request)
        if scan is None:
            response = self._store.range(request)
            self._stamp(response.header)
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
            self._stamp(response.header)
            return response
        pieces = [rpc_pb2.RangeResponse(header=self.header(scan.revision)).SerializeToString()]
        pieces += [fields async for fields in _stepwise(scan)]
        return pieces

    async def _may_read(self, request: rpc_pb2.RangeRequest, timeout_ms: int | None, caller: Caller | None) -> None:
        """Return when the state may be read for this request: in this same turn of the loop."""
        check_range(request)
        self._check_sound()
        if not request.serializable:
            await self.barrier(timeout_ms)
        self._check_not_declared_corrupt()
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
        work = asyncio.Event()
        watcher = self._store.watches.create(
            request.key,
            request.range_end,
            request.start_revision,
            filters=request.filters,
            prev_kv=request.prev_kv,
            wake=work.set,
        )
        ticking = asyncio.create_task(self._tick(work)) if request.progress_notify else None
        try:
            async with aclosing(self._responses(watcher, work, request.progress_notify)) as responses:
                yield responses
        finally:
            watcher.cancel()
            if ticking is not None:
                ticking.cancel()

    async def _tick(self, work: asyncio.Event) -> None:
        while True:
            await self._clock.sleep(self._progress_every_s)
            work.set()

    async def _responses(
        self, watcher: Watcher, work: asyncio.Event, progress_notify: bool
    ) -> AsyncGenerator[rpc_pb2.WatchResponse, None]:
        woken = False
        while True:
            try:
                batch = watcher.poll(_WATCH_EVENTS_PER_RESPONSE)
            except CompactedError as error:
                compact_revision = error.compact_revision
                yield rpc_pb2.WatchResponse(header=self.header(), canceled=True, compact_revision=compact_revision)
                return
            if batch:
                events = [event for _, events in batch for event in events]
                yield rpc_pb2.WatchResponse(header=self.header(watcher.progress), events=events)
            elif woken and progress_notify and watcher.synced:  # woken without an event: the tick
                yield rpc_pb2.WatchResponse(header=self.header(watcher.progress))
            if watcher.synced:
                await work.wait()
                work.clear()
                woken = True
            else:
                await asyncio.sleep(0)

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
        reply = await self._write(Command(put=request), request_id, timeout_ms, caller, born_index)
        return self._stamped(reply.put)

    async def delete_range(
        self,
        request: rpc_pb2.DeleteRangeRequest,
        *,
        request_id: bytes = b"",
        timeout_ms: int | None = None,
        caller: Caller | None = None,
        born_index: int = 0,
    ) -> rpc_pb2.DeleteRangeResponse:
        reply = await self._write(Command(delete_range=request), request_id, timeout_ms, caller, born_index)
        return self._stamped(reply.delete_range)

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
            self._check_sound()
            if not _is_serializable(request):
                await self.barrier(timeout_ms)
            self._check_not_declared_corrupt()
            if caller is not None and (user := await caller.user()) is not None:
                check_txn_permissions(self._store.auth, self._store.leases, user, request)
            return self._stamped(self._store.read_txn(request))
        reply = await self._write(Command(txn=request), request_id, timeout_ms, caller, born_index)
        return self._stamped(reply.txn)

    async def compact(
        self, request: rpc_pb2.CompactionRequest, *, timeout_ms: int | None = None, caller: Caller | None = None
    ) -> rpc_pb2.CompactionResponse:
        """A ``physical`` compaction also waits until this replica has given the memory back, but for what a backup that
        is being made still reads."""
        reply = await self._write(Command(compact=request), b"", timeout_ms, caller)
        while request.physical and self._store.sweepable:
            self._store.sweep()
            await asyncio.sleep(0)
        return self._stamped(reply.compact)

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
        reply = await self._write(Command(lease_grant=grant), request_id, timeout_ms, caller)
        metrics.LEASE_GRANTED.inc()
        return self._stamped(reply.lease_grant)

    async def lease_revoke(
        self,
        request: rpc_pb2.LeaseRevokeRequest,
        *,
        request_id: bytes = b"",
        timeout_ms: int | None = None,
        caller: Caller | None = None,
    ) -> rpc_pb2.LeaseRevokeResponse:
        reply = await self._write(Command(lease_revoke=request), request_id, timeout_ms, caller)
        metrics.LEASE_REVOKED.inc()
        return self._stamped(reply.lease_revoke)

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
        reply = await self._write(command, request_id, timeout_ms, caller)
        header: rpc_pb2.ResponseHeader = getattr(reply, reply.WhichOneof("result") or "").header
        self._stamp(header)
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
        request = rpc_pb2.AlarmRequest(action=action, memberID=member_id, alarm=kind)
        command = Command(alarm=request, proposed_at_ms=self._clock.wall_ms())
        reply = await self._propose(command, b"", timeout_ms)
        return self._stamped(reply.alarm)

    async def condemn(self, member_id: int) -> None:
        """Replicate the verdict that a member's state is wrong: it serves nobody from that entry on, and stops.

        Raises:
            StatusError: as a write.
        """
        command = Command(condemn=Condemn(member_id=member_id), proposed_at_ms=self._clock.wall_ms())
        await self._propose(command, b"", None)

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
        self._check_sound()
        reply = await self._propose(command, request_id, timeout_ms)
        progress: RestoreProgress = getattr(reply, reply.WhichOneof("result") or "")
        self._stamp(progress.header)
        return progress

    # -- inside

    async def _write(
        self,
        command: Command,
        request_id: bytes,
        timeout_ms: int | None,
        caller: Caller | None,
        born_index: int = 0,
    ) -> Reply:
        """Replicate a command and return its reply.

        Raises:
            StatusError: the store refused it, or nobody can say whether it happened (``unknown_outcome``).
        """
        command.proposed_at_ms = self._clock.wall_ms()
        check_command(command)
        self._check_sound()
        if self.quota.lacks(command, self._store.size_bytes):
            await self._raise_no_space()
            raise no_space()
        if caller is None:
            return await self._propose(command, request_id, timeout_ms, born_index)
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
                return await self._propose(command, request_id, timeout_ms, born_index)
            except StatusError as error:
                if error.message not in _AUTH_STALE or not attempts_left:
                    raise

    async def _propose(self, command: Command, request_id: bytes, timeout_ms: int | None, born_index: int = 0) -> Reply:
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

    def _check_sound(self) -> None:
        """Raises:
        StatusError: DataLoss, this replica's state is not what the others' is: nobody is served from it.
        """
        if self._store.alarms and self._raft.status().member_id in self._store.alarms.condemned:
            raise corrupt()

    def _check_not_declared_corrupt(self) -> None:
        """Refuse a read as apply refuses writes.

        Raises:
            StatusError: DataLoss, a client has raised a CORRUPT alarm.
        """
        if self._store.alarms and self._store.alarms.corrupt:
            raise corrupt()

    async def _raise_no_space(self) -> None:
        """Make it known to all replicas that the state is full; done once."""
        member_id = self._raft.status().member_id
        if self._raft.members_below(peer_revision_of(Command(alarm=rpc_pb2.AlarmRequest()))):
            return  # in the middle of an upgrade: each replica refuses by its own account, as it does before the alarm
        if not self._store.alarms.has(member_id, rpc_pb2.NOSPACE):
            _log.error(
                "event=no-space size_bytes=%d quota_bytes=%d: writes are refused; delete or compact, then clear the "
                "alarm (etcdctl alarm disarm)",
                self._store.size_bytes, self.quota.limit_bytes,
            )  # fmt: skip
            await self.alarm(rpc_pb2.AlarmRequest.ACTIVATE, member_id, rpc_pb2.NOSPACE)

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

    def _stamped(self, response: _ResponseT) -> _ResponseT:
        self._stamp(response.header)
        return response

    def _stamp(self, header: rpc_pb2.ResponseHeader) -> None:
        if self._identity is None:
            status = self._raft.status()
            self._identity = (status.cluster_id, status.member_id)
        header.cluster_id, header.member_id = self._identity
        header.raft_term = self._raft.term


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
