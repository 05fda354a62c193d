"""Key intervals as etcd spells them: ``key`` and ``range_end``. Owns the spelling; knows no store."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Span", "prefix_end", "span"]


class Span(NamedTuple):
    """Keys from ``low`` (included) to ``high`` (excluded); ``high`` None: to the last key."""

    low: bytes
    high: bytes | None

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and self.low <= key and (self.high is None or key < self.high)


def span(key: bytes, range_end: bytes) -> Span:
    """etcd's rule: no range_end is the key alone; a range_end of one zero byte is every key from ``key`` on."""
    if not range_end:
        return Span(key, key + b"\0")
    if range_end == b"\0":
        return Span(key, None)
    return Span(key, range_end)


def prefix_end(prefix: bytes) -> bytes:
    """The ``range_end`` that makes ``prefix`` a prefix scan (b"\\0", meaning "to the end", where none is larger)."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"
