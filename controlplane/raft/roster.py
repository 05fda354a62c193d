"""The members as one running replica follows them: links to keep, names to call them by, settings that do not count.

Owns what the engine's memberships mean for the replica's links and its log lines. Must not know how they change.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from controlplane.base.errors import RemovedError
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import HelloAck
from controlplane.raft.engine import Engine
from controlplane.raft.types import Member
from controlplane.transport.peer import PeerAddress, PeerLinks

__all__ = ["Roster", "address_of"]

_log = logging.getLogger("quarterdeck.raft")


class Roster:
    """See the module.

    Args:
        me: this replica, by the name it calls itself.
    """

    def __init__(self, engine: Engine, me: Member) -> None:
        self._engine = engine
        self._me = me
        self._seen_version = -1
        #: This replica is sent the log and not counted.
        self.is_learner = False

    def name_of(self, member_id: int) -> str:
        """Its name; its id, while it has none."""
        members = self._engine.memberships.all
        found = next((m for membership in reversed(members) for m in membership.members if m.id == member_id), None)
        return found.name if found is not None and found.name else f"{member_id:x}"

    def follow(self, links: PeerLinks) -> None:
        """Keep links to those that the engine speaks to, and tell those that left."""
        engine = self._engine
        if self._seen_version == engine.members_version:
            return
        self._seen_version = engine.members_version
        active = engine.memberships.active
        self.is_learner = self._me.id in active.learners
        spoken_to = [address_of(m) for m in engine.correspondents]
        removed = {r.id: r.index for r in engine.memberships.all[0].removed}
        links.set_peers(spoken_to, removed, keep=engine.farewells)
        _log.info("members name=%s members=%s", self._me.name, ",".join(m.name or f"{m.id:x}" for m in active.members))

    def compare_settings(self, settings: Sequence[Member]) -> None:
        """What the settings say otherwise than the replicated membership does not count: say so."""
        active = {m.name: m for m in self._engine.memberships.active.members}
        for member in settings:
            known = active.get(member.name)
            if known is None:
                _log.warning("setting ignored: %s is not a member", member.name)
            elif member.peer_address != known.peer_address:
                text = (
                    "setting ignored: %s has the peer address %s in the cluster, not %s; change it with member update"
                )
                _log.warning(text, known.name, known.peer_address, member.peer_address)
        for name in sorted(active.keys() - {m.name for m in settings} - {""}):
            _log.warning("settings lack a member: %s at %s", name, active[name].peer_address)

    def refused(self, peer: PeerAddress, ack: HelloAck, data_dir: Path) -> RemovedError:
        """A peer says that we do not belong any more."""
        if ack.removed_at_index:
            return self.removed(ack.removed_at_index, data_dir)
        return RemovedError(
            f"member {self._me.name} ({self._me.id:x}) has lived before, as {peer.name} remembers, and its data "
            "directory is new. Without its log it must not come back as the one it was: remove the member and add "
            "a new one"
        )

    def removed(self, index: int, data_dir: Path) -> RemovedError:
        """The entry at ``index`` took this member out."""
        return RemovedError(
            f"member {self._me.name} ({self._me.id:x}) was removed from the cluster at index {index}; its data are no "
            f"longer of use. To bring this machine back, empty {data_dir} and add a new member"
        )


def address_of(member: Member) -> PeerAddress:
    return PeerAddress(member.id, member.name, member.peer_address)
