"""Leases as replicated state: what was granted, with which remaining time, and the keys attached.

Owns the table and its listeners. Must not know of clocks: that a lease ran out is decided by the leader's lessor on
its own clock and comes back as a logged command.

Listeners are called synchronously, after the change, in apply; they must not write to the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

__all__ = ["Change", "Lease", "LeaseChange", "LeaseListener", "Leases"]


class Lease:
    """One lease. Times are whole seconds; ``remaining_ttl_s`` is the last checkpoint, 0 when there is none (full)."""

    __slots__ = ("_keys", "id", "remaining_ttl_s", "ttl_s")

    def __init__(self, id: int, ttl_s: int, remaining_ttl_s: int = 0) -> None:
        self.id = id
        self.ttl_s = ttl_s
        self.remaining_ttl_s = remaining_ttl_s
        self._keys: dict[bytes, None] = {}

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The keys attached now, sorted."""
        return tuple(sorted(self._keys))

    @property
    def key_count(self) -> int:
        return len(self._keys)

    def attach(self, key: bytes) -> None:
        self._keys[key] = None

    def detach(self, key: bytes) -> None:
        self._keys.pop(key, None)

    def __repr__(self) -> str:
        return f"Lease(id={self.id:x}, ttl_s={self.ttl_s}, remaining_ttl_s={self.remaining_ttl_s})"


class Change(Enum):
    """What happened to a lease, or to all of them."""

    GRANTED = "granted"
    REVOKED = "revoked"
    CHECKPOINTED = "checkpointed"
    RESTORED = "restored"


@dataclass(frozen=True, slots=True)
class LeaseChange:
    """One notice to listeners. ``lease`` is None for RESTORED: the whole table is new, read it again."""

    kind: Change
    lease: Lease | None


LeaseListener = Callable[[LeaseChange], None]


class Leases:
    """The table, in order of grant."""

    def __init__(self) -> None:
        #: Index of the log entry that replaced all of them by a snapshot's, 0: none did. Whoever decides about a lease
        #: says which epoch it was of: a lease that came back with a snapshot has its old id and a new life.
        self.epoch = 0
        self._leases: dict[int, Lease] = {}
        self._listeners: list[LeaseListener] = []

    def get(self, id: int) -> Lease | None:
        return self._leases.get(id)

    def __contains__(self, id: object) -> bool:
        return id in self._leases

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._leases.values())

    def __len__(self) -> int:
        return len(self._leases)

    def listen(self, listener: LeaseListener) -> Callable[[], None]:
        """Call ``listener`` on every change from now on; the returned function ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def grant(self, id: int, ttl_s: int) -> Lease:
        lease = self._leases[id] = Lease(id, ttl_s)
        self._tell(Change.GRANTED, lease)
        return lease

    def revoke(self, id: int) -> None:
        """Forget a lease whose keys are deleted already."""
        self._tell(Change.REVOKED, self._leases.pop(id))

    def checkpoint(self, id: int, remaining_ttl_s: int) -> None:
        lease = self._leases[id]
        lease.remaining_ttl_s = remaining_ttl_s
        self._tell(Change.CHECKPOINTED, lease)

    def move(self, key: bytes, from_id: int, to_id: int) -> None:
        """Attach a key to another lease; 0 is none."""
        if from_id == to_id:
            return
        if from_id and (lease := self._leases.get(from_id)) is not None:
            lease.detach(key)
        if to_id:
            self._leases[to_id].attach(key)

    def replace(self, leases: dict[int, Lease], epoch: int) -> None:
        """Take the table of a restored snapshot; listeners stay."""
        self._leases = leases
        self.epoch = epoch
        self._tell(Change.RESTORED, None)

    def _tell(self, kind: Change, lease: Lease | None) -> None:
        for listener in tuple(self._listeners):
            listener(LeaseChange(kind, lease))
