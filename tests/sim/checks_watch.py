"""What every watch must obey: etcd's six properties, and what an event says of its key.

Owns the comparison of what a watcher was told with the model. Every response is checked when it arrives:

- ordered, unique: revisions only go up, over responses too, and no event comes twice;
- reliable: a response's events are exactly the model's, from where the watcher was to the revision it names;
- atomic: the events of a revision come in one response;
- resumable: a new watch from the next revision goes on there, or is told of a compaction that reached it;
- bookmarkable: after a response that names revision R no event up to R comes;
- an event carries what its key was before (unless that is compacted), and says truly whether it created the key.
"""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.pb.etcd.kv_pb2 import Event
from tests.sim.model import Change, Model
from tests.sim.violation import ViolationError

__all__ = ["WatchChecks"]

_Told = tuple[int, bytes, bytes | None, int, int, bytes | None]


class WatchChecks:
    """The watches of a run."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.watched = 0
        self.compactions = 0

    def saw(self, watcher: str, prefix: bytes, after: int, until: int, events: Sequence[Event]) -> None:
        """A watcher of a prefix that had everything up to ``after`` is told of ``events`` and of revision ``until``."""
        got = [_told(event) for event in events]
        revisions = [g[0] for g in got]
        if revisions != sorted(revisions):
            raise ViolationError(f"watch {watcher}: events out of order: {revisions}")
        if revisions and (revisions[0] <= after or revisions[-1] > until):
            raise ViolationError(
                f"watch {watcher}: events {revisions} outside of {after + 1} to {until}, which this response is about"
            )
        want = [
            _expected(change)
            for revision in range(after + 1, until + 1)
            for change in self._model.events.get(revision, ())
            if change.key.startswith(prefix)
        ]
        if self._model.compacted and len(got) == len(want):
            # As in etcd, the value before is not told for what a compaction has reached meanwhile.
            compacted = self._model.compacted
            got = [
                (*g[:5], w[5] if g[5] is None and g[0] <= compacted else g[5]) for g, w in zip(got, want, strict=True)
            ]
        if got != want:
            raise ViolationError(f"watch {watcher} from {after + 1} to {until}: saw {got}, the log says {want}")
        self.watched += len(got)

    def told_of_compaction(self, watcher: str, after: int, compact_revision: int) -> None:
        """A watcher that had everything up to ``after`` is told that what follows is gone."""
        if not after + 1 < compact_revision <= self._model.compacted:
            raise ViolationError(
                f"watch {watcher} from {after + 1} was told of a compaction at {compact_revision}, "
                f"and nobody asked for more than {self._model.compacted}"
            )
        self.compactions += 1

    def caught_up(self, watcher: str, after: int) -> None:
        """At the end: nothing that happened is still untold."""
        if after < self._model.revision:
            raise ViolationError(
                f"watch {watcher} was told up to revision {after}, the log is at {self._model.revision}"
            )


def _told(event: Event) -> _Told:
    kv = event.kv
    if event.type == Event.DELETE:
        return kv.mod_revision, kv.key, None, 0, 0, event.prev_kv.value if event.HasField("prev_kv") else None
    before = event.prev_kv.value if event.HasField("prev_kv") else None
    return kv.mod_revision, kv.key, kv.value, kv.create_revision, kv.version, before


def _expected(change: Change) -> _Told:
    return change.revision, change.key, change.value, change.created, change.version, change.before
