"""Which writes a state contains, across restores from snapshots.

A restore is part of the history, as the mark ``restored``: state after the recovery point is gone on purpose, and
revisions jump.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from chaos.records import History

__all__ = ["Lineage", "Restore"]


@dataclass(frozen=True, slots=True)
class Restore:
    """State at ``snapshot_revision`` went on at ``revision``; what lay between is gone."""

    snapshot_revision: int
    revision: int
    snapshot_began_ns: int


class Lineage:
    """Which writes a state contains, across restores."""

    def __init__(self, restores: Sequence[Restore] = ()) -> None:
        self.restores = sorted(restores, key=lambda restore: restore.revision)

    @classmethod
    def of(cls, history: History) -> Lineage:
        """From the marks of a history."""
        return cls(
            [
                Restore(
                    int(mark.detail["snapshot_revision"]),
                    int(mark.detail["revision"]),
                    int(mark.detail["snapshot_began_ns"]),
                )
                for mark in history.marks
                if mark.name == "restored"
            ]
        )

    def holds(self, state: int, write: int) -> bool:
        """Whether the state at revision ``state`` contains what was written at revision ``write``."""
        return write <= state and not any(
            restore.snapshot_revision < write < restore.revision <= state for restore in self.restores
        )

    def life(self, revision: int) -> int:
        """How many restores lie before that revision."""
        return bisect_right([restore.revision for restore in self.restores], revision)
