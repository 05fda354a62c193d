"""On whose behalf a request is served. A protocol, so that what serves requests need not know how callers are told.

Requests of the control plane itself have no caller: no permission limits them.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Caller"]


class Caller(Protocol):
    """Who makes one call."""

    async def user(self) -> str | None:
        """The user's name, as of now; None while authentication is disabled, when everybody may do everything.

        Raises:
            StatusError: Unauthenticated, `etcdserver: invalid auth token`; InvalidArgument, `etcdserver: user name is
                empty`, authentication is on and the caller is nobody; Unavailable, that could not be found out.
        """
        ...
