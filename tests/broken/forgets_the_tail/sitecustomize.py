"""A log that is not written when it says so: what a replica appends stays in its memory for up to a second, as with a
disk that lies about syncs; kill -9 is its power cut."""

from __future__ import annotations

import time
from typing import Any

from controlplane.raft import disk

_HELD_S = 1.0
_file: Any = disk._RealFile
_append, _close, _truncate = _file.append, _file.close, _file.truncate


def _write_held(self: Any, data: bytes = b"") -> None:
    held = getattr(self, "_held", None)
    if held is not None and held[1]:
        kept, self._held = bytes(held[1]), None
        self._size -= len(kept)
        _append(self, kept)


def append(self: Any, data: bytes) -> None:
    if not self._path.endswith(".wal") and "wal" not in self._path:
        _append(self, data)
        return
    now = time.monotonic()
    held = getattr(self, "_held", None)
    if held is not None and now - held[0] > _HELD_S:
        _write_held(self)
        held = None
    if held is None:
        self._held = held = [now, bytearray()]
    held[1].extend(data)
    self._size += len(data)


def close(self: Any) -> None:
    _write_held(self)
    _close(self)


def truncate(self: Any, size: int) -> None:
    _write_held(self)
    _truncate(self, size)


_file.append, _file.close, _file.truncate = append, close, truncate
