"""Who makes a call, and the calls that only some may make.

Owns how a caller is told: by the token in the metadata, else by the client certificate (its common name is the user, as
with etcd's --client-cert-auth; a certificate of the cluster's administrators is root). What a user may do with keys is
checked where the request is served, and for writes once more where it is applied (``store.permissions``).

A replica may be behind: a user, or that authentication is on at all, may be news to it. So nobody is turned away for
what this replica knows before it has caught up with a quorum.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from controlplane.base.errors import StatusError
from controlplane.etcd.caller import Caller
from controlplane.etcd.context import Context, token_of
from controlplane.etcd.tokens import Tokens
from controlplane.store.auth import ROOT, Auth
from controlplane.store.auth_errors import user_empty
from controlplane.store.permissions import check_root
from controlplane.transport.callers import caller_of

__all__ = ["Authorizer"]


class _Credentials(NamedTuple):
    """What a caller showed: a token, or the user that its certificate names; empty: neither."""

    token: str
    certified: str


class _GrpcCaller:
    """The caller behind one gRPC context; nothing is looked at until somebody asks."""

    __slots__ = ("_authorizer", "_context", "_credentials")

    def __init__(self, authorizer: Authorizer, context: Context) -> None:
        self._authorizer = authorizer
        self._context = context
        self._credentials: _Credentials | None = None

    async def user(self) -> str | None:
        if not self._authorizer.enabled:
            return None
        if self._credentials is None:
            self._credentials = _credentials_of(self._context)
        return await self._authorizer.user(self._credentials)


class Authorizer:
    """Tells callers apart.

    Args:
        auth: who there is.
        barrier: returns once everything committed before is applied here.
        tokens: what callers show.
    """

    def __init__(self, auth: Auth, barrier: Callable[[], Awaitable[None]], tokens: Tokens) -> None:
        self._auth = auth
        self._barrier = barrier
        self._tokens = tokens

    @property
    def enabled(self) -> bool:
        """Whether authentication is enabled, as far as this replica knows."""
        return self._auth.enabled

    def caller(self, context: Context) -> Caller:
        """On whose behalf a call is served; free until it is asked."""
        return _GrpcCaller(self, context)

    async def require_root(self, context: Context) -> None:
        """Return if the caller may administer the cluster: anybody while authentication is disabled.

        Raises:
            StatusError: permission denied, user name is empty, user name not found, invalid auth token.
        """
        user = await self.caller(context).user()
        if user is not None:
            check_root(self._auth, user)

    async def require_user(self, context: Context) -> None:
        """Return if the caller is somebody: anybody while authentication is disabled.

        Raises:
            StatusError: user name is empty, invalid auth token.
        """
        await self.caller(context).user()

    def certified(self, context: Context) -> str:
        """Whom the caller's certificate names, for people to read; empty: none was shown."""
        identity = caller_of(context)
        return "" if identity is None else identity.common_name

    async def user(self, credentials: _Credentials) -> str | None:
        """Whose credentials these are; None if authentication turns out to be disabled. Raises: StatusError."""
        try:
            return self._identify(credentials)
        except StatusError:
            await self._barrier()
        return self._identify(credentials) if self.enabled else None

    def _identify(self, credentials: _Credentials) -> str:
        if credentials.token:
            return self._tokens.user_of(credentials.token)
        if not credentials.certified:
            raise user_empty()
        return credentials.certified


def _credentials_of(context: Context) -> _Credentials:
    token = token_of(context)
    identity = None if token else caller_of(context)
    if identity is None:
        return _Credentials(token, "")
    return _Credentials("", ROOT if identity.is_admin else identity.common_name)
