"""A second store, small enough to be obviously right: what each committed command must do.

Owns the truth of a run: it is told every command once, in log order, whichever replica applies it first, and predicts
revisions, events and answers. It knows the commands that the simulated clients use, and shares no code with the store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.etcd.kv_pb2 import KeyValue
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, Reply, RestoreBegin, RestoreCommit
from controlplane.pb.quarterdeck.internal.v1.state_pb2 import LeaseRecord
from tests.sim.auth_model import AuthModel

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
    #: (its last revision, its history) of every state that a restore replaced.
    past: list[tuple[int, dict[bytes, list[Change]]]] = field(default_factory=list)
    #: Index of the last restore's entry, and the leases that came with it: id -> TTL.
    epoch: int = 0
    restored_leases: dict[int, int] = field(default_factory=dict)
    stage: RestoreBegin | None = None
    pieces: list[bytes] = field(default_factory=list)
    auth: AuthModel = field(default_factory=AuthModel)

    def at(self, key: bytes, revision: int | None = None) -> Change | None:
        """The key's newest change until that revision; None if there is none, or it was a deletion."""
        for change in reversed(self._as_of(revision).get(key, ())):
            if revision is None or change.revision <= revision:
                return None if change.value is None else change
        return None

    def _as_of(self, revision: int | None) -> dict[bytes, list[Change]]:
        """The history that has this revision: a restore begins another one."""
        return next((past for last, past in self.past if revision is not None and revision <= last), self.history)

    def range(self, key: bytes, range_end: bytes, revision: int) -> list[Change]:
        """What was there then, in the order of the keys."""
        keys = sorted(k for k in self._as_of(revision) if key <= k < range_end)
        return [change for k in keys if (change := self.at(k, revision)) is not None]

    def mod_revision(self, key: bytes, revision: int | None = None) -> int:
        """What a compare of the mod revision sees: 0 when the key is not there."""
        change = self.at(key, revision)
        return 0 if change is None else change.revision

    def apply(self, command: Command, term: int, newest_term: int, index: int = 0) -> str:
        """Do it. Returns the kind of reply it must have; with :attr:`revision` as the revision in its header."""
        changes: list[Change] = []
        kind: str = command.WhichOneof("op") or "rejection"
        if not self.auth.permits(command):
            return "rejection"
        match kind:
            case str() if kind.startswith("auth_"):
                kind = kind if self.auth.change(command) else "rejection"
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
                known = command.lease_expire.term >= newest_term and command.lease_epoch == self.epoch
                kind = self._revoke(changes, command.lease_expire.id) if known else "rejection"
            case "restore_begin":
                kind = self._begin(command.restore_begin)
            case "restore_chunk":
                kind = self._piece(
                    command.restore_chunk.id, command.restore_chunk.number, command.restore_chunk.records
                )
            case "restore_commit":
                kind = self._swap(command.restore_commit, index)
            case "restore_abort":
                kind = kind if self._stages(command.restore_abort.id) else "rejection"
                self.stage = self.stage if kind == "rejection" else None
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

    # -- restores

    def _stages(self, id: bytes) -> bool:
        return self.stage is not None and self.stage.id == id

    def _begin(self, begin: RestoreBegin) -> str:
        if self.stage is None:
            self.stage, self.pieces = begin, []
        return "restore_begin" if self._stages(begin.id) else "rejection"

    def _piece(self, id: bytes, number: int, records: bytes) -> str:
        if not self._stages(id) or number > len(self.pieces):
            return "rejection"
        if number == len(self.pieces):
            self.pieces.append(records)
        return "restore_chunk"

    def _swap(self, commit: RestoreCommit, index: int) -> str:
        if not self._stages(commit.id):
            return "rejection"
        assert self.stage is not None
        begin, self.stage = self.stage, None
        digest = bytes(32)
        for piece in self.pieces:
            digest = sha256(digest + piece).digest()
        if digest != commit.digest:
            return "rejection"
        self.past.append((self.revision, self.history))
        self.revision = self.compacted = max(self.revision, begin.snapshot.revision) + commit.revision_bump
        self.history, self.leases, self.restored_leases, self.epoch = {}, {}, {}, index
        for kind, payload in _records(b"".join(self.pieces)):
            if kind == "L":
                lease = LeaseRecord.FromString(payload)
                self.leases[lease.id], self.restored_leases[lease.id] = set(), lease.ttl_s
            elif kind == "K":
                kv = KeyValue.FromString(payload[4:])
                change = Change(
                    kv.mod_revision, kv.key, kv.value, kv.create_revision, kv.version, None, kv.lease
                )  # fmt: skip
                self.history[kv.key] = [change]
                if kv.lease:
                    self.leases[kv.lease].add(kv.key)
        return "restore_commit"


def _records(data: bytes) -> list[tuple[str, bytes]]:
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at + 1 : at + 5], "big")
        found.append((chr(data[at]), data[at + 5 : at + 5 + size]))
        at += 5 + size
    return found


def header_revision(reply: Reply) -> int:
    """The revision in the reply's header; 0 for a rejection."""
    kind = reply.WhichOneof("result")
    return 0 if kind is None or kind == "rejection" else int(getattr(reply, kind).header.revision)
