"""Handing leadership over (Ongaro's dissertation, section 3.10), as the leader that gives it away.

Owns one transfer's progress. Pure: the core drives it with its engine and its clock.

Writes go on while the target catches up. Only when it is within reach does the log stand still, so that the target can
have all of it: from then on writes wait, and travel to the new leader when it is there. If the target does not take
over within an election timeout, the log goes on.
"""

from __future__ import annotations

from collections.abc import Callable

from controlplane.base.errors import StatusError
from controlplane.raft.config import RaftConfig
from controlplane.raft.engine import Engine

__all__ = ["Transfer", "TransferDone"]

#: Hears that leadership has moved (None), or why not.
TransferDone = Callable[[StatusError | None], None]


class Transfer:
    """One request to hand over.

    Args:
        term: the leader's.
        target: a voter, or None: whoever has the whole log first.
        deadline: monotonic seconds; the leader keeps leading from then on. Sooner once the log stands still.
    """

    def __init__(self, config: RaftConfig, term: int, target: int | None, deadline: float, done: TransferDone) -> None:
        self.term = term
        self.wanted = target
        self.target = target
        self.done = done
        self.deadline = deadline
        self._resend_s = config.heartbeat_ms / 1000
        self._patience_s = config.election_min_ms / 1000
        self._reach = 2 * config.inflight_entries_max
        self._asked_at = float("-inf")
        #: The log stands still.
        self.closing = False

    def pump(self, engine: Engine, now: float) -> bool:
        """As leader, every turn. True when it has failed and the log may go on."""
        if engine.term != self.term or now >= self.deadline:
            return True
        due = now - self._asked_at >= self._resend_s
        if self.wanted is None and due:
            # Chosen anew until somebody is asked: whoever has the whole log first, however slow the others are.
            self.target = engine.transfer_target()
        if self.target is None:
            return False
        if self.target not in engine.voters:
            return True
        if not self.closing and engine.lag(self.target) <= self._reach:
            self.closing = True
            self.deadline = min(self.deadline, now + self._patience_s)
        if self.closing and due and engine.transfer_leadership(self.target):
            self._asked_at = now
        return False
