"""When each recent log entry was applied here, and what the store was after it: for the archive.

Owns a bounded memory of it, filled by standing between Raft and the store. It changes nothing that passes through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from controlplane.base.clock import Clock
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Proposal
from controlplane.store.store import Restoring, Store

__all__ = ["NOTES_MAX", "Note", "NotedStore"]

#: More entries than a replica's log keeps in memory behind a snapshot (10,000 and 2,000).
NOTES_MAX: Final = 20_000


class Note(NamedTuple):
    """After one log entry. ``state_hash``: of the whole state; empty: not known any more."""

    applied_at_ms: int
    revision: int
    state_hash: bytes


class NotedStore:
    """The store, as Raft's state machine, that remembers what it came to. Satisfies ``raft.types.StateMachine``."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._notes: deque[tuple[int, int, int]] = deque(maxlen=NOTES_MAX)

    def note(self, index: int) -> Note | None:
        """What is known of an entry; None: nothing (it was applied long ago, or came in a snapshot)."""
        notes = self._notes
        if not notes or not notes[0][0] <= index <= notes[-1][0]:
            return None
        found, applied_at_ms, revision = notes[index - notes[0][0]]
        assert found == index
        return Note(applied_at_ms, revision, self._store.hash_at(index) or b"")

    # -- the state machine

    def apply(self, index: int, term: int, proposals: Sequence[Proposal]) -> list[bytes]:
        replies = self._store.apply(index, term, proposals)
        notes = self._notes
        if notes and notes[-1][0] != index - 1:
            notes.clear()
        notes.append((index, self._clock.wall_ms(), self._store.revision))
        return replies

    def snapshot(self) -> Iterable[bytes]:
        return self._store.snapshot()

    def restore(self, chunks: Iterable[bytes]) -> None:
        self._store.restore(chunks)

    def begin_restore(self) -> Restoring:
        return self._store.begin_restore()

    @property
    def applied_index(self) -> int:
        return self._store.applied_index

    @property
    def revision(self) -> int:
        return self._store.revision
