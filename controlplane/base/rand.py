"""Randomness, handed in. The only module that asks the machine for random bytes."""

from __future__ import annotations

import os
import random
from typing import Protocol

__all__ = ["Rand", "SeededRand", "SystemRand"]


class Rand(Protocol):
    """Source of randomness."""

    def random(self) -> float:
        """A float in [0, 1)."""
        ...

    def randint(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        ...

    def token(self, n_bytes: int) -> bytes:
        """That many random bytes, for identifiers (not for secrets unless the source is the system's)."""
        ...


class SystemRand:
    """The machine's randomness."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def random(self) -> float:
        return self._random.random()

    def randint(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def token(self, n_bytes: int) -> bytes:
        return os.urandom(n_bytes)


class SeededRand:
    """The same numbers for the same seed: for tests and the simulator."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)  # noqa: S311 - reproducible on purpose

    def random(self) -> float:
        return self._random.random()

    def randint(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def token(self, n_bytes: int) -> bytes:
        return self._random.randbytes(n_bytes)
