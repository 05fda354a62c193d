"""Exactly once: the request ids applied last, and what each was answered.

Owns the bounded memory of replies. Invariants, the same on every replica because they depend on the log alone:

* first in, first out, bounded in entries and in bytes;
* ``floor`` is the log index of the newest entry that was forgotten. A proposal born before it may be one of the
  forgotten, so it is refused (outcome unknown) rather than risked twice.

The bounds are part of the replicated behaviour: changing them needs a new format version of the log.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from controlplane.base.limits import DEDUP_BYTES_MAX, DEDUP_ENTRIES_MAX

__all__ = ["Dedup"]

#: What an entry costs beside its reply.
_ENTRY_BYTES: Final = 64


class Dedup:
    """Request id -> (index it was applied at, reply)."""

    def __init__(self, entries_max: int = DEDUP_ENTRIES_MAX, bytes_max: int = DEDUP_BYTES_MAX) -> None:
        self.floor = 0
        self.size_bytes = 0
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        # Not a plain dict: one that loses its oldest entry again and again looks for the next oldest past all that it
        # has lost since it last grew, some ten thousand places here.
        self._entries: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def reply(self, request_id: bytes) -> bytes | None:
        """What this request was answered, if it is remembered."""
        entry = self._entries.get(request_id)
        return None if entry is None else entry[1]

    def may_be_forgotten(self, born_index: int) -> bool:
        return born_index < self.floor

    def remember(self, request_id: bytes, index: int, reply: bytes) -> None:
        """Store a reply, and forget the oldest ones beyond the bounds."""
        self._entries[request_id] = (index, reply)
        self.size_bytes += _ENTRY_BYTES + len(reply)
        while len(self._entries) > self._entries_max or (self.size_bytes > self._bytes_max and len(self._entries) > 1):
            _, (gone_index, gone_reply) = self._entries.popitem(last=False)
            self.size_bytes -= _ENTRY_BYTES + len(gone_reply)
            self.floor = gone_index

    def entries(self) -> list[tuple[bytes, tuple[int, bytes]]]:
        """(request id, (index, reply)), oldest first: a copy, so that a snapshot can be cut while writes go on."""
        return list(self._entries.items())
