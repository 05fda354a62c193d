"""When a container that ended runs again. Pure.

The first restart is at once: most crashes are accidents. Then 1 s, doubling to 5 min, until a run lasted 10 min.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BACKOFF_MAX_S", "BACKOFF_RESET_S", "RestartBackoff", "restarts"]

BACKOFF_BASE_S: Final = 1.0
BACKOFF_MAX_S: Final = 300.0
BACKOFF_RESET_S: Final = 600.0


def restarts(policy: str, exit_code: int) -> bool:
    """Whether the pod's restartPolicy wants another run."""
    return policy in ("Always", "") or (policy == "OnFailure" and exit_code != 0)


class RestartBackoff:
    """The pauses before the restarts of one container."""

    def __init__(self) -> None:
        self._quick_ends = 0

    def after_run(self, lasted_s: float) -> float:
        """Seconds to wait before the next run, after one that lasted so long."""
        if lasted_s >= BACKOFF_RESET_S:
            self._quick_ends = 0
        self._quick_ends += 1
        if self._quick_ends == 1:
            return 0.0
        return min(BACKOFF_MAX_S, BACKOFF_BASE_S * (1 << min(self._quick_ends - 2, 20)))
