"""Those whom one replica's engine speaks to: voters, learners, and removed members that are being told.

Owns how the membership in force becomes the library's sets of peers, and what is remembered of each: the numbers of its
messages, whether its log is out of reach, the farewell of a removed one. Must not know frames or elections.
"""

from __future__ import annotations

from typing import Final

from controlplane.base.clock import Clock
from controlplane.raft.engine_seams import Peer
from controlplane.raft.library import Library
from controlplane.raft.membership import Memberships
from controlplane.raft.types import Member

__all__ = ["Peers"]

#: How long a leader tries to tell a removed member that it is.
_FAREWELL_S: Final = 30.0


class Peers:
    """The other members, as the membership in force has them.

    Args:
        memberships: those of the log; :meth:`adopt` after each change of them.
    """

    def __init__(self, library: Library, memberships: Memberships, member_id: int, clock: Clock) -> None:
        self._library = library
        self._memberships = memberships
        self._my_id = member_id
        self._clock = clock
        self._by_id: dict[int, Peer] = {}
        #: The others that vote.
        self.voters: frozenset[int] = frozenset()
        self.may_stand = False
        #: Removed members that do not know it yet -> when to give up.
        self.farewells: dict[int, float] = {}
        self.connected: set[int] = set()
        #: Counts changes of who is in force, spoken to, or removed.
        self.version = 0
        #: Number of the newest message sent to each, and of the newest when it was last rewound.
        self.append_seq: dict[int, int] = {}
        self.rewound_at: dict[int, int] = {}
        #: Whom the log no longer reaches back to.
        self.behind: set[int] = set()

    def __contains__(self, peer_id: int) -> bool:
        return peer_id in self._by_id

    def __getitem__(self, peer_id: int) -> Peer:
        """A member, or somebody that may be one by a membership we have not heard of: it may lead or ask for a vote."""
        return self._by_id.get(peer_id) or Peer(peer_id)

    @property
    def correspondents(self) -> tuple[Member, ...]:
        """Whom there must be links to: members in force, those that may come back into force, removed ones that are
        being told."""
        found = {m.id: m for membership in self._memberships.all for m in membership.members}
        found.pop(self._my_id, None)
        return tuple(found[member_id] for member_id in sorted(found))

    def adopt(self) -> None:
        """Let the library count and feed the members in force."""
        library, active = self._library, self._memberships.active
        self.voters = active.voters - {self._my_id}
        self.may_stand = self._my_id in active.voters
        self.farewells = {p: until for p, until in self.farewells.items() if active.get(p) is None}
        fed = (active.learners - {self._my_id}) | self.farewells.keys()
        peers = {peer_id: self[peer_id] for peer_id in sorted(self.voters | fed)}
        for peer_id in self._by_id.keys() - peers.keys():
            library.forget(self._by_id[peer_id])
            self.behind.discard(peer_id)
        for peer_id in peers.keys() - self._by_id.keys():
            library.meet(peers[peer_id], library.last_index + 1)
            self.append_seq.setdefault(peer_id, 0)
            self.rewound_at[peer_id] = self.append_seq[peer_id]
        self._by_id = peers
        library.set_peers(
            voters=[peers[peer_id] for peer_id in sorted(self.voters)],
            fed=[peers[peer_id] for peer_id in sorted(fed)],
            connected=[peers[peer_id] for peer_id in sorted(self.connected & peers.keys())],
        )
        self.version += 1

    def bid_farewell(self, removed: set[int]) -> None:
        """As leader: go on telling these for a while that they are removed."""
        until = self._clock.monotonic() + _FAREWELL_S
        self.farewells |= dict.fromkeys(sorted(removed), until)

    def end_farewells(self) -> None:
        """Done with removed members that have heard of it or do not answer, and when it is no longer ours to do."""
        if not self.farewells:
            return
        now, leads = self._clock.monotonic(), self._library.is_leader
        over = {
            peer_id
            for peer_id, until in self.farewells.items()
            if not leads or now >= until or self._has_heard_of_removal(peer_id)
        }
        if over:
            self.farewells = {p: until for p, until in self.farewells.items() if p not in over}
            self.adopt()

    def _has_heard_of_removal(self, peer_id: int) -> bool:
        # The entry was committed before the farewell began, so whatever brought it also said that it is committed.
        removal = self._memberships.active.removal_of(peer_id)
        return removal is None or self._library.match_index(self[peer_id]) >= removal.index

    def next_seq(self, peer_id: int) -> int:
        self.append_seq[peer_id] += 1
        return self.append_seq[peer_id]

    def rewound(self, peer_id: int) -> None:
        """It is fed again from an index it named: what answers older messages says nothing any more."""
        self.behind.discard(peer_id)
        self.rewound_at[peer_id] = self.append_seq[peer_id]
        self._library.append_soon()
