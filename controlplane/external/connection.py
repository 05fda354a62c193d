"""Connection: calls to the members of an etcd cluster, one attempt each, with fail-over between attempts.

Owns the channels, the member kept to, and the authentication token. Must not know what a request means nor repeat it:
only the caller knows what may be repeated. Every failure comes out as a StatusError; of a write, with
``unknown_outcome`` unless it is known not to have happened.

Tokens: etcd checks a password at the cost of a good part of a second of processor time, by design. So however many
calls want a token, one request is on its way for all of them; it outlives a caller that gives up, and the next may take
longer if one was not answered in time. A call that fails for its token forgets that token only, never a newer one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, NamedTuple

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

__all__ = ["RETRIED", "Connection", "Stream"]

_log = logging.getLogger("quarterdeck.store")

#: Codes of failures that another attempt, at another member, may not meet.
RETRIED: Final = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED})
#: What members say when the token is theirs no more (it expires after five idle minutes, etcd's default).
_STALE_TOKEN: Final = ("etcdserver: invalid auth token", "etcdserver: revision of auth store is old")
_TOKEN_KEY: Final = "token"  # noqa: S105 - the metadata key etcd reads
#: For an answer to a password: doubled each time one does not come, up to the longest.
_AUTHENTICATE_TIMEOUT_S: Final = 4.0
_AUTHENTICATE_TIMEOUT_S_MAX: Final = 32.0

StubFactory = Callable[[grpc.aio.Channel], Any]


class Stream(NamedTuple):
    """A bidirectional stream, the member it goes to, and the token it was opened with."""

    endpoint: str
    call: Any
    token: str


class Connection:
    """See the module. Close it.

    Raises:
        ConfigError: a certificate file cannot be read.
    """

    def __init__(self, config: StoreConfig, *, clock: Clock, rand: Rand) -> None:
        self._user, self._password = config.user, config.password
        self._clock = clock
        self._token = ""
        self._authenticating: asyncio.Task[str] | None = None
        self._authenticate_timeout_s = _AUTHENTICATE_TIMEOUT_S
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
                token = await self._token_within(target, timeout_s)
                try:
                    return await getattr(self._stub(target, factory), method)(
                        request, timeout=timeout_s, metadata=_metadata(token)
                    )
                except grpc.aio.AioRpcError as error:
                    # Refused for its token before anything was done: safe to send again, with a new one.
                    if attempt or not self.forget_stale(error.details() or "", token):
                        metrics.FAILED.labels(method, error.code().name).inc()
                        raise self.failure(target, error, write=write, token=token) from error
        finally:
            metrics.REQUEST_SECONDS.labels(method).observe(self._clock.monotonic() - begin_s)

    async def stream(self, factory: StubFactory, method: str, *, timeout_s: float | None = None) -> Stream:
        """A new bidirectional stream to the member in use. A member without a leader ends it, so that nobody listens to
        the wrong side of a partition.

        Raises:
            StatusError: no token could be had.
        """
        target = self.pool.current
        token = await self._token_within(target, timeout_s)
        metadata = (*_metadata(token), ("hasleader", "true"))
        call = getattr(self._stub(target, factory), method)(timeout=timeout_s, metadata=metadata)
        return Stream(target, call, token)

    def failure(self, endpoint: str, error: grpc.aio.AioRpcError, *, write: bool, token: str = "") -> StatusError:
        """The failure of a call made with ``token`` as a StatusError; a member that did not answer is left for the
        next."""
        code = Code(error.code().value[0])
        if code in RETRIED:
            self.pool.failed(endpoint)
        self.forget_stale(error.details() or "", token)
        text = error.details() or code.name
        if code is Code.DEADLINE_EXCEEDED and "Deadline Exceeded" in text:
            text = f"etcd member {endpoint} has not answered in time"
        return StatusError(code, text, unknown_outcome=write and not was_definite(error))

    async def close(self) -> None:
        """Close every channel."""
        if self._authenticating is not None:
            self._authenticating.cancel()
        self._stubs.clear()
        await self.pool.close()

    def _stub(self, endpoint: str, factory: StubFactory) -> Any:
        stub = self._stubs.get((endpoint, factory))
        if stub is None:
            stub = self._stubs[endpoint, factory] = factory(self.pool.channel(endpoint))
        return stub

    # -- authentication --------------------------------------------------------------------------------------------

    async def _token_within(self, endpoint: str, timeout_s: float | None) -> str:
        """The token, or empty where none is wanted.

        Raises:
            StatusError: it is refused, or was not given in time: nothing was asked yet, so the outcome is known.
        """
        if not self._user or self._token:
            return self._token
        if self._authenticating is None:
            self._authenticating = asyncio.create_task(self._authenticate(endpoint), name="store-authenticate")
            self._authenticating.add_done_callback(self._note_authenticated)
        authenticating = self._authenticating
        done, _ = await asyncio.wait({authenticating}, timeout=timeout_s)
        if not done:
            raise StatusError(Code.DEADLINE_EXCEEDED, f"etcd member {endpoint} has not checked the password in time")
        return authenticating.result()

    async def _authenticate(self, endpoint: str) -> str:
        request = rpc_pb2.AuthenticateRequest(name=self._user, password=self._password)
        try:
            answer = await self._stub(endpoint, AuthStub).Authenticate(request, timeout=self._authenticate_timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                longer_s = min(2 * self._authenticate_timeout_s, _AUTHENTICATE_TIMEOUT_S_MAX)
                self._authenticate_timeout_s = longer_s
            raise self.failure(endpoint, error, write=False) from error
        self._authenticate_timeout_s = _AUTHENTICATE_TIMEOUT_S
        _log.info("event=authenticated user=%s endpoint=%s", self._user, endpoint)
        token: str = answer.token
        return token

    def _note_authenticated(self, done: asyncio.Task[str]) -> None:
        self._authenticating = None
        # A failure is for those who wait, if somebody still does.
        if not done.cancelled() and done.exception() is None:
            self._token = done.result()

    def forget_stale(self, text: str, token: str) -> bool:
        """Whether a call failed because of its token, which is then asked for anew; a newer one is kept."""
        stale = bool(token) and text.startswith(_STALE_TOKEN)
        if stale and self._token == token:
            self._token = ""
        return stale


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return ((_TOKEN_KEY, token),) if token else ()
