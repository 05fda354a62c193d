"""How a check says that an invariant does not hold."""

from __future__ import annotations

__all__ = ["ViolationError"]


class ViolationError(AssertionError):
    """An invariant does not hold. The message says which, where and when."""
