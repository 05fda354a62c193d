"""Roster: which control-plane processes there are, and which of them leads, as the external etcd tells it.

Owns the reading of two kinds of keys, by one watch: the leader key, and one key per process that goes with its lease.
Writes nothing and decides nothing. What it says may be late; the store's own comparisons protect what must not be.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from controlplane.base.clock import Clock
from controlplane.base.errors import Code, StatusError
from controlplane.client.fenced import LEADER_KEY
from controlplane.external.connection import RETRIED
from controlplane.pb.etcd import kv_pb2, rpc_pb2
from controlplane.pb.quarterdeck.internal.v1 import peers_pb2
from controlplane.store.kv import KVStore

__all__ = ["REPLICAS_PREFIX", "Leader", "Roster", "leader_of_key", "leader_value"]

_log = logging.getLogger("quarterdeck.store")

#: ``/quarterdeck/replicas/NAME``: a RosterEntry.
REPLICAS_PREFIX: Final = b"/quarterdeck/replicas/"
#: One range from the leader key to the last process; what lies between is not ours and is passed over.
_END: Final = REPLICAS_PREFIX[:-1] + b"0"
_RETRY_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Leader:
    """Who holds the leader key. ``mod_revision`` is the fence of everything it writes."""

    name: str
    term: int
    mod_revision: int
    lease: int


def leader_value(name: str, term: int) -> bytes:
    """The leader key's value."""
    return f"{name} {term}".encode()


def leader_of_key(kv: kv_pb2.KeyValue) -> Leader:
    """The leader that a stored leader key names."""
    name, _, term = kv.value.decode(errors="replace").rpartition(" ")
    return Leader(name, int(term) if term.isdecimal() else 0, kv.mod_revision, kv.lease)


class Roster:
    """See the module. Keep :meth:`run` running."""

    def __init__(self, kv: KVStore, clock: Clock) -> None:
        self._kv = kv
        self._clock = clock
        self._members: dict[str, peers_pb2.RosterEntry] = {}
        self._changed = asyncio.Event()
        #: Who leads; None: nobody.
        self.leader: Leader | None = None
        #: The newest term that was seen to begin.
        self.term = 0
        #: The revision that this is the picture of; 0 before the first listing.
        self.revision = 0

    @property
    def members(self) -> dict[str, peers_pb2.RosterEntry]:
        """The processes whose leases live, by name."""
        return dict(sorted(self._members.items()))

    def member(self, name: str) -> peers_pb2.RosterEntry | None:
        """One process, if it is there."""
        return self._members.get(name)

    async def change(self) -> None:
        """Return at the next change of anything here."""
        await self._changed.wait()

    async def run(self) -> None:
        """List and watch, for ever.

        Raises:
            StatusError: the store refuses (permission), which waiting does not mend.
        """
        while True:
            try:
                await self._list_and_watch()
            except StatusError as error:
                if error.code not in RETRIED and error.code is not Code.OUT_OF_RANGE:
                    raise
                _log.warning("event=roster-failed reason=%s", error.message)
                await self._clock.sleep(_RETRY_S)

    async def _list_and_watch(self) -> None:
        listed = await self._kv.range(rpc_pb2.RangeRequest(key=LEADER_KEY, range_end=_END))
        self.leader = None
        self._members.clear()
        for kv in listed.kvs:
            self._put(kv)
        self._notify(listed.header.revision)
        async with self._kv.watch(
            rpc_pb2.WatchCreateRequest(key=LEADER_KEY, range_end=_END, start_revision=self.revision + 1)
        ) as responses:
            async for response in responses:
                if response.canceled:
                    return  # its place is compacted: list anew
                for event in response.events:
                    if event.type == kv_pb2.Event.DELETE:
                        self._delete(event.kv.key)
                    else:
                        self._put(event.kv)
                self._notify(response.header.revision)

    def _put(self, kv: kv_pb2.KeyValue) -> None:
        if kv.key == LEADER_KEY:
            self.leader = leader_of_key(kv)
            self.term = max(self.term, self.leader.term)
        elif kv.key.startswith(REPLICAS_PREFIX):
            self._members[_name(kv.key)] = peers_pb2.RosterEntry.FromString(kv.value)

    def _delete(self, key: bytes) -> None:
        if key == LEADER_KEY:
            self.leader = None
        else:
            self._members.pop(_name(key), None)

    def _notify(self, revision: int) -> None:
        self.revision = revision
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _name(key: bytes) -> str:
    return key.removeprefix(REPLICAS_PREFIX).decode(errors="replace")
