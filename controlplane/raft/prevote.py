"""The question before an election (Ongaro's dissertation, 9.6): would a majority vote for me in the next term?

Owns one replica's open question and what it has heard of its leader. Pure: the engine hands in time and messages. Must
not know the library, nor enter a term: a replica whose question finds no majority disturbs nobody.

A leader counts as alive while it was heard within the shortest election timeout (4.2.3) and its process is not known
to be dead. As long as it does, this replica supports nobody else, unless the leader itself asked for the election.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from controlplane.base.clock import Clock

__all__ = ["LeaderWatch", "PreVotes"]


class LeaderWatch:
    """What this replica knows of its leader's life, from its own clock and links.

    Args:
        alive_s: how long a leader that was heard counts as alive.
        grace_s: frames that arrive so soon after the news of a death were sent before it.
    """

    def __init__(self, clock: Clock, *, alive_s: float, grace_s: float) -> None:
        self._clock = clock
        self._alive_s = alive_s
        self._grace_s = grace_s
        self._heard_at = float("-inf")
        self._died_at: dict[int, float] = {}
        #: (term, leader) of the last leader heard: there is never a second one in that term.
        self.heard: tuple[int, int] = (0, 0)

    def on_heard(self, term: int, leader: int) -> None:
        """A message only a leader of ``term`` sends."""
        now = self._clock.monotonic()
        self.heard = term, leader
        self._heard_at = now
        died_at = self._died_at.get(leader)
        if died_at is not None and now - died_at > self._grace_s:
            del self._died_at[leader]  # its address refuses us, and it lives

    def on_died(self, peer_id: int) -> None:
        """Its address refuses connections: a hint."""
        self._died_at.setdefault(peer_id, self._clock.monotonic())

    def on_connected(self, peer_id: int) -> None:
        self._died_at.pop(peer_id, None)

    def is_dead(self, peer_id: int) -> bool:
        return peer_id in self._died_at

    def alive(self, term: int) -> bool:
        """Whether the leader of ``term`` may still lead."""
        heard_term, leader = self.heard
        return (
            heard_term == term
            and leader not in self._died_at
            and self._clock.monotonic() - self._heard_at < self._alive_s
        )


class PreVotes:
    """The question this replica has out, one at a time."""

    def __init__(self) -> None:
        self._seq = 0
        self._term: int | None = None
        self._granted: set[int] = set()
        #: Questions since a leader was last heard.
        self.rounds = 0

    @property
    def open(self) -> bool:
        return self._term is not None

    def ask(self, term: int) -> int:
        """Begin a new question in ``term``; its number."""
        self._seq += 1
        self._term = term
        self._granted.clear()
        self.rounds += 1
        return self._seq

    def on_granted(self, peer_id: int, seq: int) -> None:
        if self._term is not None and seq == self._seq:
            self._granted.add(peer_id)

    def won(self, term: int, voters: AbstractSet[int], *, willing: AbstractSet[int]) -> bool:
        """Whether a majority of ``voters`` (the others) and this replica would elect it; ``willing`` are not asked."""
        if self._term != term:
            return False
        supporters = (self._granted | willing) & voters
        return 2 * (1 + len(supporters)) > 1 + len(voters)

    def close(self) -> None:
        """Asked enough: an election begins, a leader was heard, or another replica should stand."""
        self._term = None
        self._granted.clear()

    def leader_heard(self) -> None:
        self.close()
        self.rounds = 0
