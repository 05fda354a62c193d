"""RemoteKV: an etcd cluster as the :class:`KVStore` everything above talks to.

Owns which requests are sent again. Holds nothing of the store but the newest revision seen.

Invariants:

- A write is repeated only if it cannot happen twice: it is known not to have happened, or it carries a request id,
  which makes it a transaction that happens once (:mod:`once`), or repeating it changes nothing (compaction, revoking).
- A write whose fate is not known when the time is up fails with ``unknown_outcome=True``, and only such a write does.
- Reads are linearizable unless they say otherwise, whichever member answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import grpc

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import Rand
from controlplane.client.backoff import Backoff
from controlplane.external import metrics, once
from controlplane.external.connection import RETRIED, Connection, StubFactory
from controlplane.external.watch import follow
from controlplane.pb.etcd import rpc_pb2
from controlplane.pb.etcd.rpc_pb2_grpc import KVStub, LeaseStub, MaintenanceStub

__all__ = ["DEFAULT_TIMEOUT_MS", "RemoteKV"]

#: How long a request without a deadline of its own may take.
DEFAULT_TIMEOUT_MS: Final = 5_000
#: How long one attempt of a request that may be repeated may take: an etcd election is shorter.
_ATTEMPT_S: Final = 1.5
#: How long a request id is remembered, and how long one lease is used for markers: each lives between the two.
_MARKER_TTL_S: Final = 300
_MARKER_LEASE_S: Final = 60.0
_LEASE_ID_MAX: Final = (1 << 63) - 1
_LEASE_EXISTS: Final = "etcdserver: lease already exists"
_LEASE_MISSING: Final = "etcdserver: requested lease not found"


class RemoteKV:
    """See the module. Close the connection when done.

    Args:
        progress_every_s: how often an idle watch that asked for progress gets a bookmark, where etcd's are sound.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        clock: Clock,
        rand: Rand,
        default_timeout_ms: int = DEFAULT_TIMEOUT_MS,
        progress_every_s: float = 10.0,
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._rand = rand
        self._default_timeout_ms = default_timeout_ms
        self._progress_every_s = progress_every_s
        self._marker_lease: tuple[int, float] = (0, 0.0)  # id, and when it is used no more
        self._revision = 0
        #: As last answered; 0 before the first answer.
        self.cluster_id = 0
        #: Requests that wait for an answer.
        self.pending = 0

    @property
    def revision(self) -> int:
        """The newest revision any answer has named."""
        return self._revision

    # -- reads

    async def range(self, request: rpc_pb2.RangeRequest, *, timeout_ms: int | None = None) -> rpc_pb2.RangeResponse:
        response: rpc_pb2.RangeResponse = await self._call(KVStub, "Range", request, timeout_ms)
        return response

    async def lease_time_to_live(
        self, request: rpc_pb2.LeaseTimeToLiveRequest, *, timeout_ms: int | None = None
    ) -> rpc_pb2.LeaseTimeToLiveResponse:
        """TTL -1 in the answer: there is no such lease."""
        response: rpc_pb2.LeaseTimeToLiveResponse = await self._call(LeaseStub, "LeaseTimeToLive", request, timeout_ms)
        return response

    async def status(self, endpoint: str, *, timeout_ms: int = 1_000) -> rpc_pb2.StatusResponse:
        """How one member is. One attempt."""
        response: rpc_pb2.StatusResponse = await self._connection.call(
            MaintenanceStub, "Status", rpc_pb2.StatusRequest(),
            timeout_s=timeout_ms / 1000, write=False, endpoint=endpoint,
        )  # fmt: skip
        return response

    @asynccontextmanager
    async def watch(self, request: rpc_pb2.WatchCreateRequest) -> AsyncIterator[AsyncIterator[rpc_pb2.WatchResponse]]:
        """See :meth:`KVStore.watch`. Outlives members and connections: resumed after the last revision delivered,
        nothing left out or told twice."""
        responses = follow(
            self._connection, request, clock=self._clock, rand=self._rand, progress_every_s=self._progress_every_s,
            progress_is_sound=self.progress_is_sound,
        )  # fmt: skip
        async with aclosing(responses):
            yield self._seen(responses)

    async def _seen(self, responses: AsyncIterator[rpc_pb2.WatchResponse]) -> AsyncIterator[rpc_pb2.WatchResponse]:
        async for response in responses:
            self._note(response.header)
            yield response

    async def progress_is_sound(self, endpoint: str) -> bool:
        """Whether that member's answers to progress requests come in order with the events: before 3.4.25 and 3.5.8
        they could overtake them (etcd issue 15220), and a watch resumed from one would have left events out."""
        try:
            version = (await self.status(endpoint)).version
        except StatusError:
            return False
        return _version(version) >= (3, 5, 8) or (3, 4, 25) <= _version(version) < (3, 5)

    # -- writes

    async def put(
        self, request: rpc_pb2.PutRequest, *, request_id: bytes = b"", timeout_ms: int | None = None
    ) -> rpc_pb2.PutResponse:
        """Of a repetition the previous value is not told."""
        if not request_id:
            response: rpc_pb2.PutResponse = await self._call(KVStub, "Put", request, timeout_ms, write=True)
            return response
        done = await self.txn(
            rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_put=request)]),
            request_id=request_id, timeout_ms=timeout_ms,
        )  # fmt: skip
        answer = done.responses[0].response_put
        answer.header.CopyFrom(done.header)
        return answer

    async def delete_range(
        self, request: rpc_pb2.DeleteRangeRequest, *, request_id: bytes = b"", timeout_ms: int | None = None
    ) -> rpc_pb2.DeleteRangeResponse:
        """Of a repetition the number of deleted keys and their values are not told."""
        if not request_id:
            response: rpc_pb2.DeleteRangeResponse = await self._call(
                KVStub, "DeleteRange", request, timeout_ms, write=True
            )
            return response
        done = await self.txn(
            rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_delete_range=request)]),
            request_id=request_id, timeout_ms=timeout_ms,
        )  # fmt: skip
        answer = done.responses[0].response_delete_range
        answer.header.CopyFrom(done.header)
        return answer

    async def txn(
        self,
        request: rpc_pb2.TxnRequest,
        *,
        request_id: bytes = b"",
        timeout_ms: int | None = None,
        born_index: int = 0,
    ) -> rpc_pb2.TxnResponse:
        response: rpc_pb2.TxnResponse
        if _is_read(request):
            response = await self._call(KVStub, "Txn", request, timeout_ms)
        elif not request_id or not once.repeatable(request):
            response = await self._call(KVStub, "Txn", request, timeout_ms, write=True)
        else:
            response = await self._txn_once(request, request_id, timeout_ms)
        return response

    async def compact(
        self, request: rpc_pb2.CompactionRequest, *, timeout_ms: int | None = None
    ) -> rpc_pb2.CompactionResponse:
        """A repetition may find its own work done: OUT_OF_RANGE then too."""
        response: rpc_pb2.CompactionResponse = await self._call(
            KVStub, "Compact", request, timeout_ms, write=True, repeat=True
        )
        return response

    # -- leases

    async def lease_grant(
        self, request: rpc_pb2.LeaseGrantRequest, *, request_id: bytes = b"", timeout_ms: int | None = None
    ) -> rpc_pb2.LeaseGrantResponse:
        """An id of 0 asks us to pick one, which also makes the grant repeatable: nobody else picks the same."""
        picked = rpc_pb2.LeaseGrantRequest(ID=request.ID or self._new_lease_id(), TTL=request.TTL)
        try:
            response: rpc_pb2.LeaseGrantResponse = await self._call(
                LeaseStub, "LeaseGrant", picked, timeout_ms, write=True, repeat=not request.ID
            )
        except StatusError as error:
            if request.ID or error.message != _LEASE_EXISTS:
                raise
            found = await self.lease_time_to_live(rpc_pb2.LeaseTimeToLiveRequest(ID=picked.ID), timeout_ms=timeout_ms)
            return rpc_pb2.LeaseGrantResponse(header=found.header, ID=picked.ID, TTL=found.grantedTTL)
        return response

    async def lease_revoke(
        self, request: rpc_pb2.LeaseRevokeRequest, *, request_id: bytes = b"", timeout_ms: int | None = None
    ) -> rpc_pb2.LeaseRevokeResponse:
        """With a request id it is repeated until it is done, and finding it done is an answer."""
        try:
            response: rpc_pb2.LeaseRevokeResponse = await self._call(
                LeaseStub, "LeaseRevoke", request, timeout_ms, write=True, repeat=bool(request_id)
            )
        except StatusError as error:
            if not (error.unknown_outcome and error.code is Code.NOT_FOUND):
                raise
            return rpc_pb2.LeaseRevokeResponse(
                header=rpc_pb2.ResponseHeader(cluster_id=self.cluster_id, revision=self._revision)
            )
        return response

    async def lease_keep_alive(
        self, request: rpc_pb2.LeaseKeepAliveRequest, *, timeout_ms: int | None = None
    ) -> rpc_pb2.LeaseKeepAliveResponse:
        """TTL 0 in the answer: there is no such lease."""

        async def attempt(timeout_s: float) -> Any:
            endpoint, call, token = await self._connection.stream(LeaseStub, "LeaseKeepAlive", timeout_s=timeout_s)
            try:
                await call.write(request)
                response = await call.read()
            except grpc.aio.AioRpcError as error:
                raise self._connection.failure(endpoint, error, write=False, token=token) from error
            finally:
                call.cancel()
            if response is grpc.aio.EOF:
                raise StatusError(Code.UNAVAILABLE, f"etcd member {endpoint} ended the keep-alive stream")
            return response

        response: rpc_pb2.LeaseKeepAliveResponse = await self._repeated(attempt, timeout_ms, repeat=True)
        return response

    # -- inside

    async def _txn_once(
        self, request: rpc_pb2.TxnRequest, request_id: bytes, timeout_ms: int | None
    ) -> rpc_pb2.TxnResponse:
        while True:
            lease = await self._lease_of_markers(timeout_ms)
            wrapped = once.wrap(request, request_id, lease)
            try:
                response = await self._call(KVStub, "Txn", wrapped, timeout_ms, write=True, repeat=True)
            except StatusError as error:
                if error.message != _LEASE_MISSING or lease != self._marker_lease[0]:
                    raise
                self._marker_lease = (0, 0.0)  # it expired while the cluster was away: nothing was written
                continue
            return once.unwrap(request, response)

    async def _lease_of_markers(self, timeout_ms: int | None) -> int:
        lease, until_s = self._marker_lease
        if lease and self._clock.monotonic() < until_s:
            return lease
        granted = await self.lease_grant(rpc_pb2.LeaseGrantRequest(TTL=_MARKER_TTL_S), timeout_ms=timeout_ms)
        self._marker_lease = (granted.ID, self._clock.monotonic() + _MARKER_LEASE_S)
        return granted.ID

    async def _call(
        self,
        factory: StubFactory,
        method: str,
        request: Any,
        timeout_ms: int | None,
        *,
        write: bool = False,
        repeat: bool = False,
    ) -> Any:
        """A unary call until it is answered or the time is up. ``repeat``: a write that may be sent twice."""

        async def attempt(timeout_s: float) -> Any:
            return await self._connection.call(factory, method, request, timeout_s=timeout_s, write=write)

        return await self._repeated(attempt, timeout_ms, repeat=repeat or not write)

    async def _repeated(
        self, attempt: Callable[[float], Awaitable[Any]], timeout_ms: int | None, *, repeat: bool
    ) -> Any:
        """Attempts until one is answered, one must not be repeated, or the time is up.

        Raises:
            StatusError: what the last attempt met; ``unknown_outcome`` if any attempt may have had an effect.
        """
        deadline_s = self._clock.monotonic() + (timeout_ms or self._default_timeout_ms) / 1000
        backoff = Backoff(self._rand, base_s=0.01, cap_s=0.25)
        unknown = False
        self.pending += 1
        try:
            while True:
                left_s = deadline_s - self._clock.monotonic()
                try:
                    response = await attempt(min(left_s, _ATTEMPT_S) if repeat else left_s)
                except StatusError as error:
                    unknown = error.unknown_outcome = unknown or error.unknown_outcome
                    pause_s = backoff.next_s()
                    again = error.code in RETRIED and (repeat or not unknown)
                    if not again or self._clock.monotonic() + pause_s >= deadline_s:
                        raise
                    await self._clock.sleep(pause_s)
                else:
                    self._note(response.header)
                    return response
        finally:
            self.pending -= 1

    def _note(self, header: rpc_pb2.ResponseHeader) -> None:
        if header.revision > self._revision:
            self._revision = header.revision
            metrics.REVISION.set(header.revision)
        self.cluster_id = header.cluster_id or self.cluster_id

    def _new_lease_id(self) -> int:
        return int.from_bytes(self._rand.token(8), "big") & _LEASE_ID_MAX or 1


def _is_read(request: rpc_pb2.TxnRequest) -> bool:
    return all(
        op.HasField("request_range") or (op.HasField("request_txn") and _is_read(op.request_txn))
        for op in (*request.success, *request.failure)
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.partition("-")[0].split(".") if part.isdecimal())
