"""Expectations: what a controller did that its cache has not shown it yet.

Owns the pending creations and deletions per key. Why: a cache lags behind writes. A controller that counts three pods,
creates two and looks again before the cache has them would create two more. So before it writes it says what it
expects to see, and it does not decide again for that key until it has seen it, or until so much time has passed that
the write must have failed unseen (an outcome nobody learned).

Pure but for the clock handed in. Objects are known by name, chosen before they are created, so that an observation can
arrive before the reply to the write.
"""

from __future__ import annotations

from controlplane.base.clock import Clock

__all__ = ["EXPECTATION_TIMEOUT_S", "Expectations"]

#: After this long an unseen write is taken for one that never happened.
EXPECTATION_TIMEOUT_S = 30.0


class Expectations:
    """Names of objects per controlling key that are to appear or to go."""

    def __init__(self, clock: Clock, timeout_s: float = EXPECTATION_TIMEOUT_S) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._creations: dict[str, dict[str, float]] = {}
        self._deletions: dict[str, dict[str, float]] = {}

    def expect_creation(self, key: str, name: str) -> None:
        """``name`` is about to be created for ``key``."""
        self._creations.setdefault(key, {})[name] = self._clock.monotonic() + self._timeout_s

    def expect_deletion(self, key: str, name: str) -> None:
        """``name`` is about to be deleted for ``key``."""
        self._deletions.setdefault(key, {})[name] = self._clock.monotonic() + self._timeout_s

    def creation_settled(self, key: str, name: str) -> None:
        """The cache shows ``name``, or its creation failed for certain."""
        self._settle(self._creations, key, name)

    def deletion_settled(self, key: str, name: str) -> None:
        """The cache shows ``name`` gone or going, or its deletion failed for certain."""
        self._settle(self._deletions, key, name)

    def wait_s(self, key: str) -> float | None:
        """None when the cache has shown everything; else the longest that is worth waiting, in seconds."""
        now = self._clock.monotonic()
        latest: float | None = None
        for pending in (self._creations, self._deletions):
            names = pending.get(key)
            if not names:
                continue
            for name in [n for n, deadline in names.items() if deadline <= now]:
                self._settle(pending, key, name)
            for deadline in names.values():
                latest = deadline if latest is None else max(latest, deadline)
        return None if latest is None else latest - now

    def forget(self, key: str) -> None:
        """The key is gone."""
        self._creations.pop(key, None)
        self._deletions.pop(key, None)

    def clear(self) -> None:
        """A new term: whatever the old one expected is not ours to wait for."""
        self._creations.clear()
        self._deletions.clear()

    @staticmethod
    def _settle(pending: dict[str, dict[str, float]], key: str, name: str) -> None:
        names = pending.get(key)
        if names is None:
            return
        names.pop(name, None)
        if not names:
            del pending[key]
