"""How much of what HTTP/2 allows is too much: floods that cost the sender nothing and us something.

Owns the counters, not the verdict: who asks gets a yes or no and ends the connection. Pure; time is handed in.

Against: rapid reset (CVE-2023-44487), ping, settings, priority and empty-frame floods (CVE-2019-9512, -9513, -9515,
-9518).
"""

from __future__ import annotations

from typing import Final

__all__ = ["PING_STRIKES_MAX", "Bucket", "PingPolice"]

#: As in grpc: this many early pings are forgiven.
PING_STRIKES_MAX: Final = 2


class Bucket:
    """So many at once, so many a second."""

    __slots__ = ("_at_s", "_burst", "_level", "_per_s")

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._level = float(burst)
        self._at_s = 0.0

    def take(self, now_s: float) -> bool:
        """Whether one more is in order."""
        self._level = min(self._burst, self._level + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True


class PingPolice:
    """grpc's rule: pings closer together than ``min_s`` are strikes, forgiven whenever we sent something ourselves."""

    __slots__ = ("_last_s", "_min_s", "_strikes")

    def __init__(self, min_s: float) -> None:
        self._min_s = min_s
        self._last_s = float("-inf")
        self._strikes = 0

    def we_sent(self) -> None:
        """Headers or data left: clients measure bandwidth with pings, so the count starts again."""
        self._strikes = 0
        self._last_s = float("-inf")

    def take(self, now_s: float) -> bool:
        """Whether this ping is in order."""
        if now_s - self._last_s < self._min_s:
            self._strikes += 1
        else:
            self._last_s = now_s
        return self._strikes <= PING_STRIKES_MAX
