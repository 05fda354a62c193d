"""The handshake of a link between replicas: what each side says of itself, and whom it believes.

Owns the rules of admission and the lives in which peers were last admitted. Must not know connections or addresses: it
takes and gives messages, and whoever holds the connection acts on them.

- A member speaks to members of its own cluster, and to nobody else; whoever is refused is told why.
- One that it has not heard of is admitted as a guest: this replica may be behind the entry that made it a member, and
  if the newcomer leads, nobody else will bring that entry (Ongaro, dissertation, 4.2.1: requests are answered whatever
  configuration the asker is in). Guests are few, and one whose removal is known is none.
- With TLS a name counts only with the certificate of that name; a peer whose name is not known yet may be any member.
- A member with an empty disk is admitted in one life only: coming back with another, it has lost what it acknowledged.
"""

from __future__ import annotations

from collections.abc import Mapping

from controlplane.base.addresses import split_address
from controlplane.base.errors import ConfigError
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import Frame, Hello, HelloAck
from controlplane.transport.frames import PROTOCOL_REVISION, PROTOCOL_VERSION

__all__ = ["GUESTS_MAX", "Handshake"]

#: Members that this replica has not heard of, at a time: changes are made one by one, and it may be behind by several.
GUESTS_MAX = 8


class Handshake:
    """One replica's side of it.

    Args:
        cluster_id: only members of the same cluster are spoken to.
        member_id, name, address: this replica, and where its peers reach it.
        epoch: of this life.
        empty_disk: this member's data directory was made in this start.
        certified: links have TLS, so every name needs its certificate.
    """

    def __init__(
        self,
        *,
        cluster_id: int,
        member_id: int,
        name: str,
        address: str,
        epoch: bytes,
        empty_disk: bool,
        certified: bool,
    ) -> None:
        self._cluster_id = cluster_id
        self._member_id = member_id
        self._name = name
        self._address = address
        self._epoch = epoch
        self._empty_disk = empty_disk
        self._certified = certified
        self._names: dict[int, str] = {}
        self._guests: dict[int, str] = {}
        self._removed: dict[int, int] = {}
        #: The life in which each peer was last admitted: one with an empty disk has no second life.
        self._epochs: dict[int, bytes] = {}

    def set_peers(self, names: Mapping[int, str], removed: Mapping[int, int]) -> None:
        """Whom to admit, by id, with the name of each (empty: not known yet); ``removed``: members that were, and the
        log entry that ended it, who are told so."""
        self._names = dict(names)
        self._removed = {peer_id: index for peer_id, index in removed.items() if peer_id not in self._names}
        known = self._names.keys() | self._removed.keys()
        self._guests = {peer_id: name for peer_id, name in self._guests.items() if peer_id not in known}

    def see_out(self, peer_id: int) -> None:
        """It is no guest any more."""
        self._guests.pop(peer_id, None)

    def name(self, peer_id: int) -> str:
        """What to call a peer: its name, or its id in hex."""
        return self._name_of(peer_id) or f"{peer_id:x}"

    def is_guest(self, peer_id: int) -> bool:
        return peer_id in self._guests

    def is_holder(self, peer_id: int, certified: str) -> bool:
        """Whether who showed the certificate of the member ``certified`` may be the peer: a name not known yet
        may be that of any member, and without TLS of anybody."""
        return not self._certified or self._name_of(peer_id) in ("", certified)

    def hello(self, peer_id: int) -> Hello:
        """What to say to the peer on a connection just made to it."""
        return Hello(
            protocol_version=PROTOCOL_VERSION,
            cluster_id=self._cluster_id,
            member_id=self._member_id,
            member_name=self._name,
            to_member_id=peer_id,
            epoch=self._epoch,
            revision=PROTOCOL_REVISION,
            empty_disk=self._empty_disk,
            peer_address=self._address,
        )

    def answer(self, frame: Frame, certified: str) -> HelloAck:
        """What to say to the first frame of a connection. Its sender is admitted unless ``refused`` says why not.

        Args:
            certified: the member whose certificate was shown; empty without TLS.
        """
        hello = frame.hello
        refused, disk_lost = "", False
        if not frame.HasField("hello"):
            refused = "say hello first"
        elif hello.protocol_version != PROTOCOL_VERSION:
            refused = f"protocol version {hello.protocol_version}: {self._name} speaks {PROTOCOL_VERSION}"
        elif hello.cluster_id != self._cluster_id:
            refused = f"cluster {hello.cluster_id:x}: {self._name} is in cluster {self._cluster_id:x}"
        elif hello.member_id in self._removed:
            refused = f"member {hello.member_id:x} was removed from the cluster"
        elif hello.member_id not in self._names and not self._may_be_guest(hello):
            refused = f"member {hello.member_id:x} ({hello.member_name[:64]!r}) is not in this cluster"
        elif hello.to_member_id != self._member_id:
            refused = f"you want member {hello.to_member_id:x}, this is {self._name} ({self._member_id:x})"
        elif self._certified and not (
            certified == hello.member_name and self._name_of(hello.member_id) in (None, "", hello.member_name)
        ):
            refused = f"your certificate is that of {certified}, you say {hello.member_name[:64]!r}"
        elif disk_lost := hello.empty_disk and self._epochs.get(hello.member_id, hello.epoch) != hello.epoch:
            refused = f"member {hello.member_name[:64]!r} has lived before and comes with an empty disk"
        ack = HelloAck(member_id=self._member_id, epoch=self._epoch, refused=refused, revision=PROTOCOL_REVISION)
        if refused:
            ack.removed_at_index = self._removed.get(hello.member_id, 0) if hello.cluster_id == self._cluster_id else 0
            ack.disk_lost = disk_lost
        else:
            self._epochs[hello.member_id] = hello.epoch
            if hello.member_id not in self._names:
                self._guests[hello.member_id] = hello.member_name
        return ack

    def _name_of(self, peer_id: int) -> str | None:
        """Empty: it is admitted under any. None: it is not known."""
        return self._names.get(peer_id, self._guests.get(peer_id))

    def _may_be_guest(self, hello: Hello) -> bool:
        try:
            split_address(hello.peer_address)
        except ConfigError:
            return False  # version 0.1 says none
        there_is_room = hello.member_id in self._guests or len(self._guests) < GUESTS_MAX
        return hello.member_id != self._member_id and there_is_room
