"""Exponential back-off with jitter. Owns the arithmetic; the caller sleeps."""

from __future__ import annotations

from controlplane.base.rand import Rand

__all__ = ["Backoff"]


class Backoff:
    """Delays that double from ``base_s`` to ``cap_s``, each drawn from its upper half so that clients that failed
    together do not come back together."""

    def __init__(self, rand: Rand, *, base_s: float, cap_s: float) -> None:
        self._rand = rand
        self._base_s = base_s
        self._cap_s = cap_s
        self._failures = 0

    def next_s(self) -> float:
        """Seconds to wait after one more failure."""
        ceiling = min(self._cap_s, self._base_s * (1 << min(self._failures, 30)))
        self._failures += 1
        return ceiling * (0.5 + 0.5 * self._rand.random())

    def reset(self) -> None:
        """It works again: the next failure waits ``base_s``."""
        self._failures = 0
