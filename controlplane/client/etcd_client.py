"""EtcdClient: a small asyncio client of the etcd v3 API over several endpoints, honest about outcomes.

Speaks to our replicas and to etcd's members. Every write ends in one of three types: :class:`Acknowledged`,
:class:`Failed` (it had no effect) or :class:`Unknown`. Each carries a request id in the metadata ``qd-request-id``;
our replicas apply a retry under the same id once, so retrying is on by default. A retry also says how old the write is
(``qd-log-index``), so that a replica that may have forgotten its id refuses it. Against a real etcd, which ignores
both, construct it with ``foreign=True``: a repeated write could happen twice there, so none of unknown fate is
repeated.

Knows nothing of the resource API.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, Self, TypeVar, cast

import grpc

from controlplane.base.clock import Clock, SystemClock
from controlplane.base.errors import Code
from controlplane.base.rand import Rand, SystemRand
from controlplane.client.backoff import Backoff
from controlplane.client.endpoints import CLIENT_CHANNEL_OPTIONS, ETCD_CHANNEL_OPTIONS, EndpointPool
from controlplane.client.interface import ApiError, UnavailableError
from controlplane.client.retry import LOG_INDEX_KEY, log_index_in, retry_unavailable
from controlplane.client.status import to_api_error, was_definite
from controlplane.pb.etcd import kv_pb2, rpc_pb2
from controlplane.pb.etcd.rpc_pb2_grpc import KVStub, LeaseStub, MaintenanceStub, WatchStub
from controlplane.transport.channel import Credentials

__all__ = ["Acknowledged", "EtcdClient", "Failed", "Outcome", "Unknown", "WatchStream", "prefix_end"]

REQUEST_ID_KEY: Final = "qd-request-id"
_REQUEST_ID_BYTES: Final = 16

ResponseT = TypeVar("ResponseT")
_NOT_ANSWERED: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


@dataclass(frozen=True, slots=True)
class Acknowledged(Generic[ResponseT]):
    """The write happened, at ``revision``. ``endpoint`` is the replica that said so."""

    revision: int
    response: ResponseT
    endpoint: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The write did not happen, and will not."""

    code: Code
    message: str
    endpoint: str = ""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The write may have happened, or may yet."""

    reason: str
    endpoint: str = ""


Outcome = Acknowledged[ResponseT] | Failed | Unknown


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with ``prefix`` (etcd API: ``range_end``)."""
    for i in range(len(prefix) - 1, -1, -1):
        if prefix[i] < 0xFF:
            return prefix[:i] + bytes([prefix[i] + 1])
    return b"\0"


class WatchStream:
    """The responses of one watch, to iterate over. Raises ApiError when the stream ends."""

    def __init__(self, endpoint: str, call: Any, failed: Callable[[str, grpc.aio.AioRpcError], None]) -> None:
        self.endpoint = endpoint
        self._call = call
        self._failed = failed

    async def __aiter__(self) -> AsyncIterator[rpc_pb2.WatchResponse]:
        try:
            async for response in self._call:
                yield response
        except grpc.aio.AioRpcError as error:
            self._failed(self.endpoint, error)
            raise to_api_error(error, write=False) from error
        raise UnavailableError(Code.UNAVAILABLE, f"{self.endpoint} ended the watch")

    async def request_progress(self) -> None:
        """Ask how far the watch is: the answer is a response without events. Raises ApiError."""
        await self.send(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))

    async def send(self, request: rpc_pb2.WatchRequest) -> None:
        """One message. Raises ApiError."""
        try:
            await self._call.write(request)
        except grpc.aio.AioRpcError as error:
            self._failed(self.endpoint, error)
            raise to_api_error(error, write=False) from error
        except asyncio.InvalidStateError as error:  # the call is over, which its reader is told of
            raise UnavailableError(Code.UNAVAILABLE, f"{self.endpoint} ended the watch") from error

    def cancel(self) -> None:
        """End it."""
        self._call.cancel()


class EtcdClient:
    """See the module. Close it, or use it as a context manager.

    Args:
        endpoints: ``host:port`` of every replica; give one to ask exactly that one.
        timeout_ms: a call's whole time, retries included.
        attempt_timeout_ms: one attempt's.
        retry_writes: repeat a write whose fate is not known under its request id.
        foreign: the endpoints are etcd's own members: no such repeating, and pings as seldom as etcd wants them.
        first: the endpoint to begin with; None: any.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        timeout_ms: int = 10_000,
        attempt_timeout_ms: int = 1_000,
        retry_writes: bool = True,
        foreign: bool = False,
        credentials: Credentials | None = None,
        clock: Clock | None = None,
        rand: Rand | None = None,
        first: str | None = None,
    ) -> None:
        self._rand = rand or SystemRand()
        self._clock = clock or SystemClock()
        self._timeout_s = timeout_ms / 1000
        self._attempt_timeout_s = attempt_timeout_ms / 1000
        self._retry_writes = retry_writes and not foreign
        #: A log index that a replica told with an earlier write; 0: none yet.
        self._heard_index = 0
        options = ETCD_CHANNEL_OPTIONS if foreign else CLIENT_CHANNEL_OPTIONS
        self.pool = EndpointPool(endpoints, rand=self._rand, options=options, credentials=credentials, first=first)

    # -- writes ----------------------------------------------------------------------------------------------------

    async def put(self, key: bytes, value: bytes, *, lease: int = 0) -> Outcome[rpc_pb2.PutResponse]:
        """Set a key."""
        return await self._write("Put", rpc_pb2.PutRequest(key=key, value=value, lease=lease), rpc_pb2.PutResponse)

    async def delete(self, key: bytes, *, range_end: bytes = b"") -> Outcome[rpc_pb2.DeleteRangeResponse]:
        """Delete a key, or all of a range."""
        return await self._write(
            "DeleteRange", rpc_pb2.DeleteRangeRequest(key=key, range_end=range_end), rpc_pb2.DeleteRangeResponse
        )

    async def txn(self, request: rpc_pb2.TxnRequest) -> Outcome[rpc_pb2.TxnResponse]:
        """Compare, then one branch or the other, in one revision. Acknowledged also when the compare failed."""
        return await self._write("Txn", request, rpc_pb2.TxnResponse)

    async def compact(self, revision: int) -> Outcome[rpc_pb2.CompactionResponse]:
        """Forget what was before a revision; its state stays."""
        return await self._write("Compact", rpc_pb2.CompactionRequest(revision=revision), rpc_pb2.CompactionResponse)

    async def lease_grant(self, lease: int, ttl_s: int) -> Outcome[rpc_pb2.LeaseGrantResponse]:
        """A lease under an id of the caller's choice, which makes a repetition harmless anywhere."""
        request = rpc_pb2.LeaseGrantRequest(ID=lease, TTL=ttl_s)
        return await self._write("LeaseGrant", request, rpc_pb2.LeaseGrantResponse, LeaseStub)

    async def lease_revoke(self, lease: int) -> Outcome[rpc_pb2.LeaseRevokeResponse]:
        """End a lease, and delete its keys."""
        return await self._write(
            "LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=lease), rpc_pb2.LeaseRevokeResponse, LeaseStub
        )

    async def lease_keep_alive(self, lease: int) -> rpc_pb2.LeaseKeepAliveResponse:
        """Renew a lease, once; a TTL of 0 says that it is gone. One attempt, on the current replica. Raises ApiError:
        then it may have been renewed, or may yet be until the attempt's time is over."""
        endpoint = self.pool.current
        call = cast(Any, LeaseStub(self.pool.channel(endpoint))).LeaseKeepAlive(timeout=self._attempt_timeout_s)
        try:
            await call.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
            response = await call.read()
        except grpc.aio.AioRpcError as error:
            self._note_failure(endpoint, error)
            raise to_api_error(error, write=True) from error
        finally:
            call.cancel()
        if response is grpc.aio.EOF:
            raise UnavailableError(Code.UNAVAILABLE, f"{endpoint} ended the stream", unknown_outcome=True)
        return cast(rpc_pb2.LeaseKeepAliveResponse, response)

    # -- reads -----------------------------------------------------------------------------------------------------

    async def get(self, key: bytes, *, serializable: bool = False) -> kv_pb2.KeyValue | None:
        """The key, or None. Raises ApiError."""
        response = await self.range(rpc_pb2.RangeRequest(key=key, serializable=serializable))
        return response.kvs[0] if response.kvs else None

    async def get_prefix(self, prefix: bytes, *, revision: int = 0) -> rpc_pb2.RangeResponse:
        """Every key that begins with ``prefix``, in key order. Raises ApiError."""
        return await self.range(rpc_pb2.RangeRequest(key=prefix, range_end=prefix_end(prefix), revision=revision))

    async def range(self, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
        """Any range. Raises ApiError; a read is tried on every replica until the time is up."""

        async def attempt(remaining_s: float, number: int) -> rpc_pb2.RangeResponse:
            endpoint = self.pool.current
            call = cast(Any, KVStub(self.pool.channel(endpoint))).Range
            try:
                timeout_s = min(remaining_s, self._attempt_timeout_s)
                return cast(rpc_pb2.RangeResponse, await call(request, timeout=timeout_s))
            except grpc.aio.AioRpcError as error:
                self._note_failure(endpoint, error)
                raise to_api_error(error, write=False) from error

        return await retry_unavailable(
            attempt, what="Range", timeout_s=self._timeout_s, clock=self._clock, rand=self._rand
        )

    async def status(self, endpoint: str = "") -> rpc_pb2.StatusResponse:
        """Maintenance.Status of one replica (the current one, if none is named). One attempt. Raises ApiError."""
        stub = cast(Any, MaintenanceStub(self.pool.channel(endpoint or self.pool.current)))
        try:
            response = await stub.Status(rpc_pb2.StatusRequest(), timeout=self._attempt_timeout_s)
        except grpc.aio.AioRpcError as error:
            raise to_api_error(error, write=False) from error
        return cast(rpc_pb2.StatusResponse, response)

    @asynccontextmanager
    async def watch(
        self,
        key: bytes,
        *,
        range_end: bytes = b"",
        start_revision: int = 0,
        progress_notify: bool = False,
        prev_kv: bool = False,
    ) -> AsyncIterator[WatchStream]:
        """One watch on the current replica, from ``start_revision`` on (0: from now). The first response says
        ``created``. Ends with UnavailableError when the replica goes; resume from the last revision + 1."""
        endpoint = self.pool.current
        create = rpc_pb2.WatchCreateRequest(
            key=key,
            range_end=range_end,
            start_revision=start_revision,
            progress_notify=progress_notify,
            prev_kv=prev_kv,
        )
        stream = WatchStream(endpoint, cast(Any, WatchStub(self.pool.channel(endpoint))).Watch(), self._note_failure)
        try:
            await stream.send(rpc_pb2.WatchRequest(create_request=create))
            yield stream
        finally:
            stream.cancel()

    # -- inside ----------------------------------------------------------------------------------------------------

    async def _write(
        self, method: str, request: Any, of: type[ResponseT], stub: Callable[[grpc.aio.Channel], Any] = KVStub
    ) -> Outcome[ResponseT]:
        """The outcome of one logical write: attempts under one request id until one is definite or the time is up."""
        request_id = (REQUEST_ID_KEY, self._rand.token(_REQUEST_ID_BYTES).hex())
        metadata: tuple[tuple[str, str], ...] = (request_id,)
        heard_index, born_index = self._heard_index, 0
        deadline_s = self._clock.monotonic() + self._timeout_s
        backoff = Backoff(self._rand, base_s=0.01, cap_s=0.25)
        unknown = False
        while True:
            endpoint = self.pool.current
            remaining_s = deadline_s - self._clock.monotonic()
            method_of = getattr(stub(self.pool.channel(endpoint)), method)
            try:
                call = method_of(request, timeout=min(remaining_s, self._attempt_timeout_s), metadata=metadata)
                response = await call
                self._heard_index = log_index_in(await call.initial_metadata()) or self._heard_index
                return Acknowledged(response.header.revision, cast(ResponseT, response), endpoint)
            except grpc.aio.AioRpcError as error:
                self._note_failure(endpoint, error)
                # The earliest that was told of this write; of an earlier one, if none was.
                born_index = born_index or log_index_in(error.initial_metadata()) or heard_index
                if born_index:
                    metadata = (request_id, (LOG_INDEX_KEY, str(born_index)))
                failure = to_api_error(error, write=True)
                unknown = unknown or not was_definite(error)
                if error.code() not in _NOT_ANSWERED:
                    return self._ended(failure, unknown=unknown, endpoint=endpoint)
            pause_s = backoff.next_s()
            may_retry = self._retry_writes or not unknown
            if not may_retry or self._clock.monotonic() + pause_s >= deadline_s:
                return self._ended(failure, unknown=unknown, endpoint=endpoint)
            await self._clock.sleep(pause_s)

    @staticmethod
    def _ended(failure: ApiError, *, unknown: bool, endpoint: str) -> Failed | Unknown:
        if unknown:
            return Unknown(f"{failure.code.name}: {failure.message}", endpoint)
        return Failed(failure.code, failure.message, endpoint)

    def _note_failure(self, endpoint: str, error: grpc.aio.AioRpcError) -> None:
        if error.code() in _NOT_ANSWERED:
            self.pool.failed(endpoint)

    async def close(self) -> None:
        """Close all connections."""
        await self.pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
