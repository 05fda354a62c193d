"""Connection: calls to the members of an etcd cluster, one attempt each, with fail-over between attempts.

Owns the channels, the member kept to, and the authentication token. Must not know what a request means nor repeat it:
only the caller knows what may be repeated. Every failure comes out as a StatusError; of a write, with
``unknown_outcome`` unless it is known not to have happened.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import grpc

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import Rand
from controlplane.client.endpoints import ETCD_CHANNEL_OPTIONS, EndpointPool
from controlplane.client.status import was_definite
from controlplane.external import metrics
from controlplane.external.config import StoreConfig
from controlplane.pb.etcd import rpc_pb2
from controlplane.pb.etcd.rpc_pb2_grpc import AuthStub

__all__ = ["RETRIED", "Connection"]

_log = logging.getLogger("quarterdeck.store")

#: Codes of failures that another attempt, at another member, may not meet.
RETRIED: Final = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED})
#: What members say when the token is theirs no more (it expires after five idle minutes, etcd's default).
_STALE_TOKEN: Final = ("etcdserver: invalid auth token", "etcdserver: revision of auth store is old")
_TOKEN_KEY: Final = "token"  # noqa: S105 - the metadata key etcd reads
_AUTHENTICATE_TIMEOUT_S: Final = 2.0

StubFactory = Callable[[grpc.aio.Channel], Any]


class Connection:
    """See the module. Close it.

    Raises:
        ConfigError: a certificate file cannot be read.
    """

    def __init__(self, config: StoreConfig, *, clock: Clock, rand: Rand) -> None:
        self._user, self._password = config.user, config.password
        self._clock = clock
        self._token = ""
        self._stubs: dict[tuple[str, StubFactory], Any] = {}
        self.pool = EndpointPool(
            config.endpoints, rand=rand, options=ETCD_CHANNEL_OPTIONS, credentials=config.credentials()
        )

    async def call(
        self, factory: StubFactory, method: str, request: Any, *, timeout_s: float, write: bool, endpoint: str = ""
    ) -> Any:
        """One attempt of a unary call at the member in use, or at the one named.

        Raises:
            StatusError: etcd's code and text.
        """
        target = endpoint or self.pool.current
        begin_s = self._clock.monotonic()
        metrics.REQUESTS.labels(method).inc()
        try:
            for attempt in range(2):
                metadata = await self._metadata(target)
                try:
                    return await getattr(self._stub(target, factory), method)(
                        request, timeout=timeout_s, metadata=metadata
                    )
                except grpc.aio.AioRpcError as error:
                    # Refused for its token before anything was done: safe to send again, with a new one.
                    if attempt or not self._forget_stale_token(error):
                        metrics.FAILED.labels(method, error.code().name).inc()
                        raise self.failure(target, error, write=write) from error
        finally:
            metrics.REQUEST_SECONDS.labels(method).observe(self._clock.monotonic() - begin_s)

    async def stream(self, factory: StubFactory, method: str, *, timeout_s: float | None = None) -> tuple[str, Any]:
        """A new bidirectional stream to the member in use, and that member. A member without a leader ends it, so that
        nobody listens to the wrong side of a partition.

        Raises:
            StatusError: no token could be had.
        """
        target = self.pool.current
        metadata = (*await self._metadata(target), ("hasleader", "true"))
        return target, getattr(self._stub(target, factory), method)(timeout=timeout_s, metadata=metadata)

    def failure(self, endpoint: str, error: grpc.aio.AioRpcError, *, write: bool) -> StatusError:
        """The failure as a StatusError; a member that did not answer is left for the next."""
        code = Code(error.code().value[0])
        if code in RETRIED:
            self.pool.failed(endpoint)
        self._forget_stale_token(error)
        text = error.details() or code.name
        if code is Code.DEADLINE_EXCEEDED and "Deadline Exceeded" in text:
            text = f"etcd member {endpoint} has not answered in time"
        return StatusError(code, text, unknown_outcome=write and not was_definite(error))

    async def close(self) -> None:
        """Close every channel."""
        self._stubs.clear()
        await self.pool.close()

    def _stub(self, endpoint: str, factory: StubFactory) -> Any:
        stub = self._stubs.get((endpoint, factory))
        if stub is None:
            stub = self._stubs[endpoint, factory] = factory(self.pool.channel(endpoint))
        return stub

    # -- authentication --------------------------------------------------------------------------------------------

    async def _metadata(self, endpoint: str) -> tuple[tuple[str, str], ...]:
        if not self._user:
            return ()
        if not self._token:
            request = rpc_pb2.AuthenticateRequest(name=self._user, password=self._password)
            try:
                answer = await self._stub(endpoint, AuthStub).Authenticate(request, timeout=_AUTHENTICATE_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                raise self.failure(endpoint, error, write=False) from error
            self._token = answer.token
            _log.info("event=authenticated user=%s endpoint=%s", self._user, endpoint)
        return ((_TOKEN_KEY, self._token),)

    def _forget_stale_token(self, error: grpc.aio.AioRpcError) -> bool:
        """Whether the call failed because of the token, which is then asked for anew."""
        stale = bool(self._token) and (error.details() or "").startswith(_STALE_TOKEN)
        if stale:
            self._token = ""
        return stale
