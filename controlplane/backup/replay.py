"""From a snapshot, forward through the archived log, to exactly the state that is wanted.

Owns the replay: the real store applies the real entries, one after another; wherever the archive knows what the
cluster's own store came to (revision, hash of the whole state), it must come to the same. Must not know where segments
lie.

A revision's state is the last one that the cluster had at that revision: all before the write that made the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from controlplane.backup.chain import Goal
from controlplane.base.errors import CorruptStateError
from controlplane.pb.quarterdeck.internal.v1.archive_pb2 import ArchivedEntry
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Batch, Proposal
from controlplane.store.store import Store

__all__ = ["DivergedError", "Replay"]


class DivergedError(CorruptStateError):
    """Replaying an entry gave another state than the cluster had. ``index``: of that entry."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


@dataclass(slots=True)
class Replay:
    """A store on its way. ``index``, ``term``: of the last entry applied; ``time_ms``: when that was."""

    store: Store
    goal: Goal
    index: int
    term: int
    time_ms: int
    entries: int = 0
    #: The state wanted is reached: nothing more may be applied.
    reached: bool = False
    #: Entries from this one on are not applied: an earlier attempt found that they do not give the cluster's state.
    limit_index: int | None = None

    def apply(self, entries: Iterable[ArchivedEntry]) -> None:
        """Apply entries that follow, until the goal is reached.

        Raises:
            DivergedError: the state is not the one that the cluster had; this replay is of no more use.
        """
        for entry in entries:
            if self.reached or entry.index == self.limit_index:
                return
            self._apply(entry)

    def _apply(self, entry: ArchivedEntry) -> None:
        goal, store = self.goal, self.store
        if goal.time_ms is not None and entry.applied_at_ms > goal.time_ms:
            self.reached = True
            return
        proposals = _proposals(entry)
        fitting = len(proposals)
        if goal.revision is not None and self._may_pass(entry, len(proposals), goal.revision):
            fitting = self._fitting(entry, proposals, goal.revision)
            if fitting < len(proposals):
                self.reached = True
                if fitting == 0:
                    return
        store.apply(entry.index, entry.term, proposals[:fitting])
        self.index, self.term = entry.index, entry.term
        self.time_ms = entry.applied_at_ms or self.time_ms
        self.entries += 1
        if fitting == len(proposals):
            self._compare(entry)

    def _may_pass(self, entry: ArchivedEntry, proposals: int, revision: int) -> bool:
        """Whether the entry may go beyond a revision. A proposal makes one revision at most."""
        return entry.revision > revision or (not entry.revision and self.store.revision + proposals > revision)

    def _fitting(self, entry: ArchivedEntry, proposals: Sequence[Proposal], revision: int) -> int:
        """How many of the entry's proposals can be applied without going beyond a revision: tried out on a copy."""
        copy = Store()
        copy.restore(self.store.snapshot())
        for count, proposal in enumerate(proposals):
            copy.apply(entry.index + count, entry.term, [proposal])
            if copy.revision > revision:
                return count
        return len(proposals)

    def _compare(self, entry: ArchivedEntry) -> None:
        store = self.store
        right = not entry.revision or store.revision == entry.revision
        if right and (not entry.state_hash or store.hash_at(entry.index) == entry.state_hash):
            return
        raise DivergedError(
            entry.index,
            f"replaying entry {entry.index} gave revision {store.revision} and another state than the cluster had at "
            f"revision {entry.revision}: it was no plain write (a restore, perhaps), or this is another version",
        )


def _proposals(entry: ArchivedEntry) -> Sequence[Proposal]:
    if not entry.HasField("batch"):
        return ()
    try:
        return list(Batch.FromString(entry.batch).proposals)
    except DecodeError as error:
        raise CorruptStateError(f"archived entry {entry.index} does not decode: {error}") from error
