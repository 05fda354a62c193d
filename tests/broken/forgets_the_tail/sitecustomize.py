"""A log that is not written when it says so: what a replica appends stays in its memory for a second, as with a disk
that lies about syncs; kill -9 is its power cut. The newest second is always missing, whenever the cut comes."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from controlplane.raft import disk

_HELD_S = 1.0
_file: Any = disk._RealFile
_append, _close, _truncate = _file.append, _file.close, _file.truncate


def _write_held(self: Any, before: float = float("inf")) -> None:
    """What was appended before then, monotonic seconds, goes to the file at last."""
    held: deque[tuple[float, bytes]] = getattr(self, "_held", deque())
    while held and held[0][0] < before:
        data = held.popleft()[1]
        self._size -= len(data)
        _append(self, data)


def append(self: Any, data: bytes) -> None:
    if "wal" not in self._path:
        _append(self, data)
        return
    now = time.monotonic()
    if not hasattr(self, "_held"):
        self._held = deque()
    _write_held(self, now - _HELD_S)
    self._held.append((now, bytes(data)))
    self._size += len(data)


def close(self: Any) -> None:
    _write_held(self)
    _close(self)


def truncate(self: Any, size: int) -> None:
    _write_held(self)
    _truncate(self, size)


_file.append, _file.close, _file.truncate = append, close, truncate
