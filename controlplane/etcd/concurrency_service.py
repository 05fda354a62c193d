"""etcd's server-side locks and elections (v3lockpb.Lock, v3electionpb.Election).

Both are one recipe over the KV and lease API: a contender's key is ``<name>/<lease id in lower hex>``, and who holds
the smallest create revision under ``<name>/`` owns the lock or leads. A contender waits for the deletion of the key
just before its own, so a release wakes one waiter, not all. Clients that run the same recipe themselves (etcdctl,
the Go client) contend with these correctly, because the keys are the same.

Holds no state: everything is in the store, so any replica serves any call and a replica's death loses no lock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.etcd.authorizer import Authorizer
from controlplane.etcd.caller_kv import CallerKV
from controlplane.etcd.context import Context, request_id_of
from controlplane.etcd.local import LocalKV
from controlplane.pb.etcd import kv_pb2, rpc_pb2, v3election_pb2, v3election_pb2_grpc, v3lock_pb2, v3lock_pb2_grpc
from controlplane.store.keyspan import prefix_end
from controlplane.store.kv import KVStore

__all__ = ["ElectionService", "LockService"]

_log = logging.getLogger("quarterdeck.etcd")

#: TTL of the lease made for a caller that brings none (the Go client's session default), and how often it is
#: renewed while the caller waits.
_SESSION_TTL_S: Final = 60
_RENEW_EVERY_S: Final = 20.0


class _Contest:
    """The shared recipe. One per call."""

    def __init__(self, kv: KVStore, name: bytes) -> None:
        self._kv = kv
        self._prefix = name + b"/"

    def key_of(self, lease: int) -> bytes:
        return self._prefix + f"{lease:x}".encode()

    async def enter(self, lease: int, value: bytes, request_id: bytes) -> rpc_pb2.TxnResponse:
        """Put our key unless it is there; the answer's create revision is our place in the queue."""
        key = self.key_of(lease)
        txn = rpc_pb2.TxnRequest(
            compare=[_create_revision_is(key, 0)],
            success=[
                rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, lease=lease)),
            ],
            failure=[rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key))],
        )
        return await self._kv.txn(txn, request_id=request_id)

    async def wait_for_turn(self, revision: int) -> rpc_pb2.ResponseHeader:
        """Return when no key of a smaller create revision is left."""
        while True:
            before = await self._kv.range(
                rpc_pb2.RangeRequest(
                    key=self._prefix,
                    range_end=prefix_end(self._prefix),
                    max_create_revision=revision - 1,
                    sort_order=rpc_pb2.RangeRequest.DESCEND,
                    sort_target=rpc_pb2.RangeRequest.CREATE,
                    limit=1,
                )
            )
            if not before.kvs:
                return before.header
            await self._wait_for_delete(before.kvs[0].key, before.header.revision + 1)

    async def _wait_for_delete(self, key: bytes, from_revision: int) -> None:
        request = rpc_pb2.WatchCreateRequest(
            key=key, start_revision=from_revision, filters=[rpc_pb2.WatchCreateRequest.NOPUT]
        )
        async with self._kv.watch(request) as responses:
            async for response in responses:
                if response.events or response.canceled:  # canceled: compacted meanwhile; look again
                    return

    async def leader(self) -> tuple[rpc_pb2.ResponseHeader, kv_pb2.KeyValue | None]:
        """The first contender, and the revision at which it was."""
        first = await self._kv.range(
            rpc_pb2.RangeRequest(
                key=self._prefix,
                range_end=prefix_end(self._prefix),
                sort_order=rpc_pb2.RangeRequest.ASCEND,
                sort_target=rpc_pb2.RangeRequest.CREATE,
                limit=1,
            )
        )
        return first.header, first.kvs[0] if first.kvs else None

    async def changes(self, from_revision: int) -> AsyncIterator[rpc_pb2.WatchResponse]:
        request = rpc_pb2.WatchCreateRequest(
            key=self._prefix, range_end=prefix_end(self._prefix), start_revision=from_revision
        )
        async with self._kv.watch(request) as responses:
            async for response in responses:
                yield response


class _Contenders:
    """Entering and waiting with a lease kept alive, and leaving when the caller goes away."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._leaving: set[asyncio.Task[None]] = set()

    async def acquire(
        self, kv: KVStore, name: bytes, lease: int, value: bytes, request_id: bytes
    ) -> tuple[rpc_pb2.ResponseHeader, bytes, int, int]:
        """Wait until our key is first. Returns header, key, create revision, lease."""
        own_lease = lease == 0
        if own_lease:
            lease = (await kv.lease_grant(rpc_pb2.LeaseGrantRequest(TTL=_SESSION_TTL_S))).ID
        contest = _Contest(kv, name)
        key = contest.key_of(lease)
        renewing = asyncio.create_task(self._renew(kv, lease)) if own_lease else None
        try:
            entered = await contest.enter(lease, value, request_id)
            if entered.succeeded:
                revision = entered.header.revision
            else:
                known = entered.responses[0].response_range.kvs[0]
                revision = known.create_revision
                if known.value != value:
                    await kv.put(rpc_pb2.PutRequest(key=key, value=value, lease=lease))
            header = await contest.wait_for_turn(revision)
            mine = await kv.range(rpc_pb2.RangeRequest(key=key))
            if not mine.kvs or mine.kvs[0].create_revision != revision:
                raise StatusError(Code.NOT_FOUND, "etcdserver: requested lease not found")
        except BaseException:
            # The caller is gone or must not hold a place: leave the queue, also when this task is being cancelled.
            self._leave(kv, key, lease if own_lease else 0)
            raise
        finally:
            if renewing is not None:
                renewing.cancel()
        return header, key, revision, lease

    async def _renew(self, kv: KVStore, lease: int) -> None:
        while True:
            await self._clock.sleep(_RENEW_EVERY_S)
            try:
                await kv.lease_keep_alive(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
            except StatusError as error:
                _log.warning("event=session_renewal_failed lease=%x error=%s", lease, error.message)

    def _leave(self, kv: KVStore, key: bytes, own_lease: int) -> None:
        task = asyncio.create_task(self._delete(kv, key, own_lease))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _delete(self, kv: KVStore, key: bytes, own_lease: int) -> None:
        try:
            if own_lease:
                await kv.lease_revoke(rpc_pb2.LeaseRevokeRequest(ID=own_lease))
            else:
                await kv.delete_range(rpc_pb2.DeleteRangeRequest(key=key))
        except StatusError as error:  # the lease's expiry cleans up after us
            _log.warning("event=contender_not_removed key=%r error=%s", key, error.message)


class LockService(v3lock_pb2_grpc.LockServicer):
    """v3lockpb.Lock."""

    def __init__(self, kv: LocalKV, authorizer: Authorizer, clock: Clock) -> None:
        self._kv = kv
        self._authorizer = authorizer
        self._contenders = _Contenders(clock)

    def _as(self, context: Context) -> CallerKV:
        return CallerKV(self._kv, self._authorizer.caller(context))

    async def Lock(self, request: v3lock_pb2.LockRequest, context: Context) -> v3lock_pb2.LockResponse:  # noqa: N802
        header, key, _, _ = await self._contenders.acquire(
            self._as(context), request.name, request.lease, b"", request_id_of(context)
        )
        return v3lock_pb2.LockResponse(header=header, key=key)

    async def Unlock(  # noqa: N802
        self, request: v3lock_pb2.UnlockRequest, context: Context
    ) -> v3lock_pb2.UnlockResponse:
        response = await self._as(context).delete_range(
            rpc_pb2.DeleteRangeRequest(key=request.key), request_id=request_id_of(context)
        )
        return v3lock_pb2.UnlockResponse(header=response.header)


class ElectionService(v3election_pb2_grpc.ElectionServicer):
    """v3electionpb.Election."""

    def __init__(self, kv: LocalKV, authorizer: Authorizer, clock: Clock) -> None:
        self._kv = kv
        self._authorizer = authorizer
        self._contenders = _Contenders(clock)

    def _as(self, context: Context) -> CallerKV:
        return CallerKV(self._kv, self._authorizer.caller(context))

    async def Campaign(  # noqa: N802
        self, request: v3election_pb2.CampaignRequest, context: Context
    ) -> v3election_pb2.CampaignResponse:
        header, key, revision, lease = await self._contenders.acquire(
            self._as(context), request.name, request.lease, request.value, request_id_of(context)
        )
        leader = v3election_pb2.LeaderKey(name=request.name, key=key, rev=revision, lease=lease)
        return v3election_pb2.CampaignResponse(header=header, leader=leader)

    async def Proclaim(  # noqa: N802
        self, request: v3election_pb2.ProclaimRequest, context: Context
    ) -> v3election_pb2.ProclaimResponse:
        leader = _leader_key(request.leader)
        put = rpc_pb2.PutRequest(key=leader.key, value=request.value, lease=leader.lease)
        response = await self._as(context).txn(
            rpc_pb2.TxnRequest(
                compare=[_create_revision_is(leader.key, leader.rev)], success=[rpc_pb2.RequestOp(request_put=put)]
            ),
            request_id=request_id_of(context),
        )
        if not response.succeeded:
            raise StatusError(Code.FAILED_PRECONDITION, "election: not leader")
        return v3election_pb2.ProclaimResponse(header=response.header)

    async def Leader(  # noqa: N802
        self, request: v3election_pb2.LeaderRequest, context: Context
    ) -> v3election_pb2.LeaderResponse:
        header, leader = await _Contest(self._as(context), request.name).leader()
        if leader is None:
            raise StatusError(Code.NOT_FOUND, "election: no leader")
        return v3election_pb2.LeaderResponse(header=header, kv=leader)

    async def Observe(  # noqa: N802
        self, request: v3election_pb2.LeaderRequest, context: Context
    ) -> AsyncIterator[v3election_pb2.LeaderResponse]:
        """The leader now and after each change of who leads or of what it proclaims."""
        contest = _Contest(self._as(context), request.name)
        last: tuple[bytes, int] | None = None
        while True:  # once more whenever the watch ends because of a compaction
            header, leader = await contest.leader()
            if leader is not None and (leader.key, leader.mod_revision) != last:
                last = (leader.key, leader.mod_revision)
                yield v3election_pb2.LeaderResponse(header=header, kv=leader)
            async for response in contest.changes(header.revision + 1):
                if not response.events:
                    continue
                header, leader = await contest.leader()
                if leader is not None and (leader.key, leader.mod_revision) != last:
                    last = (leader.key, leader.mod_revision)
                    yield v3election_pb2.LeaderResponse(header=header, kv=leader)

    async def Resign(  # noqa: N802
        self, request: v3election_pb2.ResignRequest, context: Context
    ) -> v3election_pb2.ResignResponse:
        leader = _leader_key(request.leader)
        delete = rpc_pb2.DeleteRangeRequest(key=leader.key)
        response = await self._as(context).txn(
            rpc_pb2.TxnRequest(
                compare=[_create_revision_is(leader.key, leader.rev)],
                success=[rpc_pb2.RequestOp(request_delete_range=delete)],
            ),
            request_id=request_id_of(context),
        )
        return v3election_pb2.ResignResponse(header=response.header)


def _leader_key(leader: v3election_pb2.LeaderKey) -> v3election_pb2.LeaderKey:
    if not leader.key:
        raise StatusError(Code.INVALID_ARGUMENT, '"leader" field must be provided')
    return leader


def _create_revision_is(key: bytes, revision: int) -> rpc_pb2.Compare:
    return rpc_pb2.Compare(
        result=rpc_pb2.Compare.EQUAL, target=rpc_pb2.Compare.CREATE, key=key, create_revision=revision
    )
