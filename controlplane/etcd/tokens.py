"""Tokens: what a user shows instead of the password, for five minutes after its last use.

A token is the user's name, the revision of its credentials and when it was issued, signed with the key that all
replicas share (``store.auth``, made anew whenever authentication is enabled). So any replica accepts a token of any
other, also after a failover, and nothing is written to the log for one. It is void once the user is deleted or its
password is changed, as in etcd; a change of roles concerns what it may do, not who it is.

Use extends it on the replica where it is used, as etcd's simple tokens. What is remembered for that is bounded; a token
that was forgotten, or is new to this replica, counts from when it was issued. That is the one place where the wall
clocks of two replicas meet: skew makes a token's first five minutes longer or shorter, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Final, NamedTuple

from controlplane.base.clock import Clock
from controlplane.store.auth import Auth, User
from controlplane.store.auth_errors import invalid_token

__all__ = ["TOKEN_TTL_S", "Tokens"]

#: etcd's --auth-token-ttl default.
TOKEN_TTL_S: Final = 300
_REMEMBERED_MAX: Final = 10_000
#: A user's name may have AUTH_NAME_CHARS_MAX characters, each up to four bytes; and base64.
_TOKEN_CHARS_MAX: Final = 8_192


class _Claims(NamedTuple):
    user: str
    credential_revision: int
    issued_at_ms: int


class Tokens:
    """Issues and checks tokens on one replica."""

    def __init__(self, auth: Auth, clock: Clock) -> None:
        self._auth = auth
        self._clock = clock
        #: Token -> what it says, and when it was last used (monotonic), the longest unused first.
        self._used: dict[str, tuple[_Claims, float]] = {}
        self._key = b""

    def issue(self, user: User) -> str:
        """A token for a user whose password was right."""
        name = base64.urlsafe_b64encode(user.name.encode()).decode().rstrip("=")
        text = f"{name}.{user.credential_revision}.{self._clock.wall_ms()}"
        return f"{text}.{self._sign(text)}"

    def user_of(self, token: str) -> str:
        """Whose token this is.

        Raises:
            StatusError: Unauthenticated, it is not one of ours, too old, or void.
        """
        if self._key != self._auth.token_key:
            self._key = self._auth.token_key
            self._used.clear()
        now_s = self._clock.monotonic()
        claims, used_s = self._used.pop(token, (None, 0.0))
        if claims is None or now_s - used_s >= TOKEN_TTL_S:
            claims = self._verified(token)
        user = self._auth.user(claims.user)
        if user is None or user.credential_revision != claims.credential_revision:
            raise invalid_token()
        self._used[token] = (claims, now_s)
        if len(self._used) > _REMEMBERED_MAX:
            del self._used[next(iter(self._used))]
        return claims.user

    def _verified(self, token: str) -> _Claims:
        text, _, signature = token.rpartition(".")
        if len(token) > _TOKEN_CHARS_MAX or not token.isascii() or not self._auth.token_key:
            raise invalid_token()
        if not hmac.compare_digest(signature, self._sign(text)):
            raise invalid_token()
        name, credential_revision, issued_at_ms = text.split(".")
        user = base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()
        claims = _Claims(user, int(credential_revision), int(issued_at_ms))
        if self._clock.wall_ms() - claims.issued_at_ms >= TOKEN_TTL_S * 1000:
            raise invalid_token()
        return claims

    def _sign(self, text: str) -> str:
        return hmac.new(self._auth.token_key, text.encode(), hashlib.sha256).hexdigest()
