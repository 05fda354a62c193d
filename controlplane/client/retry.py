"""The one retry loop of API clients. Owns when to try again and what is known when it gives up.

Only :class:`UnavailableError` is tried again: every other answer is an answer. A write is safe to repeat because every
attempt carries the same request id, which the store applies once. Another replica cannot know when a write was first
tried, which it must to tell a forgotten id from a new one: so replicas tell how far their log is, and a retry says it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

from controlplane.base.clock import Clock
from controlplane.base.errors import Code
from controlplane.base.rand import Rand
from controlplane.client.backoff import Backoff
from controlplane.client.interface import ApiError, UnavailableError

__all__ = ["LOG_INDEX_KEY", "log_index_in", "retry_unavailable"]

#: Metadata key of a log index: what a replica says before it proposes a write, and what a retry of an etcd write says.
LOG_INDEX_KEY: Final = "qd-log-index"

T = TypeVar("T")

_BACKOFF_BASE_S = 0.01
_BACKOFF_CAP_S = 0.25


async def retry_unavailable(
    attempt: Callable[[float, int], Awaitable[T]], *, what: str, timeout_s: float, clock: Clock, rand: Rand
) -> T:
    """Call ``attempt(remaining_s, number)`` until it answers or ``timeout_s`` seconds have passed.

    Raises:
        UnavailableError: the time is up. ``unknown_outcome`` if any attempt may have had an effect.
        ApiError: whatever else an attempt raised, at once; with ``unknown_outcome`` too if an earlier attempt may
            have had an effect (a Conflict may then be with our own write).
    """
    deadline = clock.monotonic() + timeout_s
    backoff = Backoff(rand, base_s=_BACKOFF_BASE_S, cap_s=_BACKOFF_CAP_S)
    unknown = False
    number = 0
    while True:
        try:
            return await attempt(deadline - clock.monotonic(), number)
        except UnavailableError as error:
            number += 1
            unknown = unknown or error.unknown_outcome
            pause_s = backoff.next_s()
            if clock.monotonic() + pause_s >= deadline:
                raise UnavailableError(
                    Code.UNAVAILABLE,
                    f"{what}: no answer within {timeout_s:g} s in {number} attempts; the last said: {error.message}",
                    reason=error.reason or "ServiceUnavailable",
                    unknown_outcome=unknown,
                ) from error
            await clock.sleep(pause_s)
        except ApiError as error:
            error.unknown_outcome = error.unknown_outcome or unknown
            raise


def log_index_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> int:
    """What the replica said of its log before it proposed the write; 0: nothing."""
    told = dict(metadata or ()).get(LOG_INDEX_KEY, "")
    return int(told) if isinstance(told, str) and told.isdecimal() else 0
