"""A second store, small enough to be obviously right: what each committed command must do.

Owns the truth of a run: it is told every command once, in log order, whichever replica applies it first, and predicts
revisions, events and answers. It knows the commands that the simulated clients use, and shares no code with the store.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, Reply

__all__ = ["Change", "Model", "header_revision"]


@dataclass(frozen=True, slots=True)
class Change:
    """One key changed at a revision. ``value`` None: it was deleted. ``before`` None: it was not there."""

    revision: int
    key: bytes
    value: bytes | None
    created: int
    version: int
    before: bytes | None
    lease: int = 0

    @property
    def is_create(self) -> bool:
        """etcd's IsCreate: the key came to be with this event."""
        return self.value is not None and self.created == self.revision


@dataclass(slots=True)
class Model:
    """All that was ever written, by revision."""

    revision: int = 1
    compacted: int = 0
    events: dict[int, list[Change]] = field(default_factory=dict)
    history: dict[bytes, list[Change]] = field(default_factory=dict)
    leases: dict[int, set[bytes]] = field(default_factory=dict)

    def at(self, key: bytes, revision: int | None = None) -> Change | None:
        """The key's newest change until that revision; None if there is none, or it was a deletion."""
        for change in reversed(self.history.get(key, ())):
            if revision is None or change.revision <= revision:
                return None if change.value is None else change
        return None

    def mod_revision(self, key: bytes, revision: int | None = None) -> int:
        """What a compare of the mod revision sees: 0 when the key is not there."""
        change = self.at(key, revision)
        return 0 if change is None else change.revision

    def apply(self, command: Command, term: int, newest_term: int) -> str:
        """Do it. Returns the kind of reply it must have; with :attr:`revision` as the revision in its header."""
        changes: list[Change] = []
        kind: str = command.WhichOneof("op") or "rejection"
        match kind:
            case "put":
                lease = command.put.lease
                if not command.put.key or (lease and lease not in self.leases):
                    kind = "rejection"
                else:
                    self._put(changes, command.put)
            case "delete_range":
                self._delete(changes, command.delete_range.key)
            case "txn":
                self._txn(changes, command.txn)
            case "compact":
                kind = self._compact(command.compact.revision)
            case "lease_grant":
                kind = self._grant(command.lease_grant.ID)
            case "lease_revoke":
                kind = self._revoke(changes, command.lease_revoke.ID)
            case "lease_expire":
                known = command.lease_expire.term >= newest_term
                kind = self._revoke(changes, command.lease_expire.id) if known else "rejection"
        if changes:
            self.revision += 1
            self.events[self.revision] = changes
            for change in changes:
                self.history.setdefault(change.key, []).append(change)
        return kind

    def _put(self, changes: list[Change], put: e.PutRequest) -> None:
        before = self.at(put.key)
        revision = self.revision + 1
        created, version = (revision, 1) if before is None else (before.created, before.version + 1)
        old = None if before is None else before.value
        changes.append(Change(revision, put.key, put.value, created, version, old, put.lease))
        if before is not None and before.lease in self.leases:
            self.leases[before.lease].discard(put.key)
        if put.lease:
            self.leases[put.lease].add(put.key)

    def _delete(self, changes: list[Change], key: bytes) -> None:
        before = self.at(key)
        if before is not None:
            changes.append(Change(self.revision + 1, key, None, 0, 0, before.value))
            if before.lease in self.leases:
                self.leases[before.lease].discard(key)

    def _txn(self, changes: list[Change], txn: e.TxnRequest) -> None:
        holds = all(self.mod_revision(compare.key) == compare.mod_revision for compare in txn.compare)
        for op in txn.success if holds else txn.failure:
            if op.HasField("request_put"):
                self._put(changes, op.request_put)
            elif op.HasField("request_delete_range"):
                self._delete(changes, op.request_delete_range.key)

    def _compact(self, revision: int) -> str:
        if not self.compacted < revision <= self.revision:
            return "rejection"
        self.compacted = revision
        return "compact"

    def _grant(self, lease: int) -> str:
        if lease in self.leases:
            return "rejection"
        self.leases[lease] = set()
        return "lease_grant"

    def _revoke(self, changes: list[Change], lease: int) -> str:
        keys = self.leases.pop(lease, None)
        if keys is None:
            return "rejection"
        for key in sorted(keys):
            self._delete(changes, key)
        return "lease_revoke"


def header_revision(reply: Reply) -> int:
    """The revision in the reply's header; 0 for a rejection."""
    kind = reply.WhichOneof("result")
    return 0 if kind is None or kind == "rejection" else int(getattr(reply, kind).header.revision)
