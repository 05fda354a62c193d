"""A view of the keyspace at one moment, for who reads all of it while writes go on: backups and hashes.

Owns the pin that keeps compaction from freeing what is read. Drop the view, or close it, when done.
"""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.store.keyspan import Span
from controlplane.store.mvcc import Event, Keyspace, Version

__all__ = ["History"]

_EVERYTHING = Span(b"", None)


class History:
    """What was readable when the view was made: from ``compact_revision`` (0: never compacted) to ``revision``."""

    def __init__(self, keyspace: Keyspace) -> None:
        self.revision = keyspace.revision
        self.compact_revision = keyspace.compact_revision
        self._keyspace = keyspace
        self._pin = keyspace.pin()

    def at(self, revision: int) -> Iterator[Version]:
        """The version of every key that existed at a revision of the view, in key order, lazily."""
        return self._keyspace.scan_at(_EVERYTHING, revision)

    def events(self, revision: int) -> tuple[Event, ...]:
        """The changes made by a revision of the view."""
        return self._keyspace.events(revision)

    def close(self) -> None:
        """Let compaction go on. Safe to call twice."""
        self._keyspace.unpin(self._pin)
