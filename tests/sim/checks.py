"""What must hold at every moment of a run. Owns the global truth: who led, what was committed, what clients were told.

Checked while the run goes on, so that a violation stops it where it happens:

- at most one leader per term; terms, commit and match indexes never go back while a replica lives;
- every replica applies the same entry at the same index (committed prefixes agree), and answers it as the model does;
- state hashes agree at the same index;
- an acknowledged write is at the revision it was acknowledged at, once, however often it was sent;
- linearizability, by revisions: an operation never sees less than any operation that ended before it began, a write's
  revision is greater than all of those, and a read returns exactly the state at its revision;
- a transaction succeeds only if its compare held then, and fails only if it did not;
- a write that was refused for want of permission has no effect, and replicas agree on who may do what.

Watches and leases have checks of their own (``checks_watch``, ``checks_lease``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from controlplane.pb.etcd.kv_pb2 import KeyValue
from controlplane.pb.etcd.rpc_pb2 import PutRequest, RangeRequest
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, Proposal, Reply
from controlplane.raft.engine import Engine
from controlplane.store.auth import Auth
from controlplane.store.auth_errors import OLD_REVISION_TEXT, USER_EMPTY_TEXT
from controlplane.store.store import Restoring, Store
from tests.sim.checks_lease import LeaseChecks
from tests.sim.checks_watch import WatchChecks
from tests.sim.model import Change, Model, header_revision
from tests.sim.violation import ViolationError

__all__ = ["CheckedStore", "Checks", "Operation", "ViolationError"]

_STALE = (OLD_REVISION_TEXT, USER_EMPTY_TEXT)


@dataclass(slots=True)
class Operation:
    """One request of a client, over all its retries."""

    client: int
    id: bytes
    key: bytes
    value: bytes | None  # None: a read, or a delete
    called_at: float
    floor: int
    #: A compare-and-swap: the mod revision the key must have (0: it must not exist). None: unconditional.
    expected: int | None = None
    #: What the client believes that revision holds.
    believed: bytes | None = None
    deletes: bool = False
    #: A delete that found nothing: it has no revision of its own.
    idle: bool = False
    tries: int = 0
    revision: int = 0
    returned_at: float = 0.0
    #: Of a read: what was seen.
    seen: bytes | None = None
    #: Of a swap: whether it took effect.
    succeeded: bool = True

    @property
    def writes(self) -> bool:
        return self.value is not None or self.deletes


@dataclass(slots=True)
class _Progress:
    """How far a replica came in its present life."""

    boot: int = 0
    term: int = 0
    commit: int = 0
    led: int = 0
    match: dict[int, int] = field(default_factory=dict)


class Checks:
    """The truth as the whole world knows it, built from the first replica that gets anywhere."""

    def __init__(self) -> None:
        self.model = Model()
        self.watches = WatchChecks(self.model)
        self.leases = LeaseChecks()
        self._leaders: dict[int, str] = {}
        self._entries: dict[int, tuple[int, str]] = {}
        self._states: dict[int, tuple[int, str, int, bool]] = {}
        self._answers: dict[bytes, bytes] = {}
        #: Answers that are none: the replica that proposed it did not know who may do what, and proposes it again.
        self._stale: dict[tuple[int, bytes], bytes] = {}
        #: What users tried to write and were not allowed to.
        self._denied: set[bytes] = set()
        self._progress: dict[str, _Progress] = {}
        self._newest_index = 0
        self._newest_term = 0
        self._floor = 0
        self.compacted = 0
        self.swaps_refused = 0
        self.acked: dict[bytes, Operation] = {}
        #: Every operation, ended or not.
        self.asked: list[Operation] = []
        self.reads = 0
        self.ranges = 0
        self.installs = 0
        #: Told after each acknowledgement: the worst moment for something to break.
        self.on_ack: Callable[[], None] = lambda: None

    # -- replicas ----------------------------------------------------------------------------------------------

    def stepped(self, name: str, boot: int, engine: Engine) -> None:
        """A replica has taken a step."""
        if engine.is_leader:
            self.leads(name, engine.term)
        progress = self._progress.setdefault(name, _Progress())
        if progress.boot != boot:
            self._progress[name] = progress = _Progress(boot)
        if engine.term < progress.term:
            raise ViolationError(f"{name} went from term {progress.term} back to {engine.term}")
        if engine.commit_index < progress.commit:
            raise ViolationError(f"{name} took its commit index back from {progress.commit} to {engine.commit_index}")
        if engine.applied_index > max(engine.commit_index, 1):
            raise ViolationError(f"{name} applied {engine.applied_index}, committed {engine.commit_index}")
        progress.term, progress.commit = engine.term, engine.commit_index
        if engine.is_leader:
            self._matches(name, progress, engine)

    def _matches(self, name: str, progress: _Progress, engine: Engine) -> None:
        if progress.led != engine.term:
            progress.led, progress.match = engine.term, {}
        for peer, index in engine._library.sync._SyncObj__raftMatchIndex.items():
            peer_id = int(peer.member_id)
            if peer_id not in engine.voters:
                progress.match.pop(peer_id, None)  # whoever was removed is forgotten
                continue
            if index < progress.match.get(peer_id, 0):
                raise ViolationError(
                    f"leader {name} took the match index of {peer_id} back from {progress.match[peer_id]} to {index}"
                )
            progress.match[peer_id] = index

    def leads(self, name: str, term: int) -> None:
        known = self._leaders.setdefault(term, name)
        if known != name:
            raise ViolationError(f"two leaders in term {term}: {known} and {name}")

    @property
    def terms(self) -> int:
        """Terms that had a leader."""
        return len(self._leaders)

    def applied(
        self, name: str, index: int, term: int, proposals: Sequence[Proposal], replies: list[bytes], now: float
    ) -> None:
        """A replica has applied an entry."""
        digest = hashlib.sha256(b"".join(p.SerializeToString() for p in proposals)).hexdigest()
        known = self._entries.setdefault(index, (term, digest))
        if known != (term, digest):
            raise ViolationError(
                f"{name} applies another entry at index {index}: term {term}, committed before: {known[0]}"
            )
        first = index > self._newest_index
        if first:
            self._newest_index, self._newest_term = index, max(term, self._newest_term)
        for proposal, reply in zip(proposals, replies, strict=True):
            answered = self._answers.get(proposal.request_id) if proposal.request_id else None
            answered = self._stale.get((index, proposal.request_id), answered)
            if answered is None:
                if not first:
                    raise ViolationError(f"{name} applies a write at index {index} that nobody had applied there")
                self._learn(name, index, proposal, reply, now)
                if proposal.request_id and Reply.FromString(reply).rejection.message in _STALE:
                    self._stale[index, proposal.request_id] = reply
                elif proposal.request_id:
                    self._answers[proposal.request_id] = reply
            elif reply != answered:
                known_at = header_revision(Reply.FromString(answered))
                at = header_revision(Reply.FromString(reply))
                raise ViolationError(f"{name} answers a write twice: at revision {known_at}, and again at {at}")

    def _learn(self, name: str, index: int, proposal: Proposal, reply: bytes, now: float) -> None:
        try:
            command = Command.FromString(proposal.payload)
        except DecodeError:
            command = Command()
        kind = self.model.apply(command, self._newest_term, self._newest_term, index)
        answer = Reply.FromString(reply)
        if answer.WhichOneof("result") != kind:
            raise ViolationError(f"{name} answers {answer.WhichOneof('result')}, the model says {kind}")
        if kind not in ("rejection", "lease_checkpoint") and header_revision(answer) != self.model.revision:
            raise ViolationError(
                f"{name} applied a {kind} at revision {header_revision(answer)}, the model at {self.model.revision}"
            )
        op = command.WhichOneof("op")
        if kind == "put" and command.put.value in self._denied:
            raise ViolationError(f"{name} writes {command.put.value!r}, whose writer was told that it may not")
        if kind == "lease_revoke":
            lease = command.lease_revoke.ID if op == "lease_revoke" else command.lease_expire.id
            self.leases.gone(lease, now, asked_for=op == "lease_revoke")
        elif kind == "restore_commit":
            self.compacted = max(self.compacted, self.model.compacted)
            self.leases.replaced(self.model.restored_leases, now)
        elif kind == "compact":
            self.compacted = max(self.compacted, command.compact.revision)

    def stands_at(self, name: str, index: int, store: Store) -> None:
        auth = store.auth
        state = (store.revision, (store.hash_at(index) or b"").hex(), auth.revision, auth.enabled)
        known = self._states.setdefault(index, state)
        if known != state:
            raise ViolationError(f"{name} has another state at index {index}: {state}, elsewhere {known}")

    # -- users -------------------------------------------------------------------------------------------------

    @property
    def denied(self) -> int:
        """Writes that were refused for want of permission."""
        return len(self._denied)

    def users_write_acked(self, put: PutRequest, revision: int) -> None:
        change = self.model.at(put.key, revision)
        if change is None or change.value != put.value:
            raise ViolationError(f"a user's write {put.value!r} acknowledged at revision {revision} is not there")

    def users_write_denied(self, put: PutRequest) -> None:
        self._denied.add(put.value)
        if any(change.value == put.value for change in self.model.history.get(put.key, ())):
            raise ViolationError(f"{put.value!r} was written, and its writer was told that it may not")

    def users_agree(self, name: str, auth: Auth) -> None:
        """At the end, on every replica."""
        got = (
            auth.enabled,
            auth.revision,
            {user.name: set(user.roles) for user in auth.users},
            {role.name: {(p.key, p.range_end) for p in role.permissions} for role in auth.roles},
        )
        model = self.model.auth
        if got != (model.enabled, model.revision, model.users, model.roles):
            raise ViolationError(f"{name} has other users and roles than the model: {got}, {model}")

    # -- clients -----------------------------------------------------------------------------------------------

    def begins(self, operation: Operation) -> None:
        operation.floor = self._floor
        self.asked.append(operation)

    def write_acked(self, operation: Operation, revision: int, *, succeeded: bool, now: float) -> None:
        operation.returned_at, operation.revision, operation.succeeded = now, revision, succeeded
        if operation.expected is not None:
            self._check_swap(operation, revision, succeeded=succeeded)
            if not succeeded:
                return
        answered = self._answers.get(operation.id)
        if answered is None or header_revision(Reply.FromString(answered)) != revision:
            raise ViolationError(f"write {operation.value!r} acknowledged at revision {revision}, but it is not there")
        state = self.model.at(operation.key, revision)
        if (None if state is None else state.value) != operation.value:
            raise ViolationError(f"write {operation.value!r} acknowledged at revision {revision}, which is another's")
        if revision <= operation.floor - operation.idle:
            raise ViolationError(
                f"write {operation.value!r} acknowledged at revision {revision}, "
                f"older than {operation.floor}, which ended before it began"
            )
        self._floor = max(self._floor, revision)
        self.acked[operation.id] = operation
        self.on_ack()

    def _check_swap(self, operation: Operation, revision: int, *, succeeded: bool) -> None:
        found = self.model.mod_revision(operation.key, revision - 1 if succeeded else revision)
        if succeeded != (found == operation.expected):
            raise ViolationError(
                f"swap {operation.value!r} of {operation.key!r} at revision {revision}: succeeded={succeeded}, "
                f"it wanted version {operation.expected}, there was {found}"
            )
        if not succeeded:
            self.swaps_refused += 1
            if revision < operation.floor:
                raise ViolationError(f"swap {operation.value!r} refused on a state older than {operation.floor}")

    def read_answered(self, operation: Operation, kvs: Sequence[KeyValue], revision: int, now: float) -> None:
        self.reads += 1
        operation.returned_at, operation.revision = now, revision
        operation.seen = kvs[0].value if kvs else None
        if revision < operation.floor:
            raise ViolationError(
                f"read of {operation.key!r} at revision {revision} is stale: {operation.floor} was seen before it began"
            )
        got = (kvs[0].value, kvs[0].mod_revision, kvs[0].create_revision, kvs[0].version) if kvs else None
        want = _shown(self.model.at(operation.key, revision))
        if got != want:
            raise ViolationError(
                f"read of {operation.key!r} at revision {revision} gives {got!r}, the log says {want!r}"
            )
        self._floor = max(self._floor, revision)

    @property
    def floor(self) -> int:
        """The newest revision that anybody has been told of."""
        return self._floor

    def range_answered(self, revision: int) -> None:
        """Somebody was shown the state of a revision."""
        self.ranges += 1
        self._floor = max(self._floor, revision)

    def nothing_lost(self, name: str, store: Store) -> None:
        """At the end, on every replica: each acknowledged write is where it was acknowledged, and nothing else is."""
        for operation in self.acked.values():
            if operation.revision < store.compact_revision:
                continue  # no longer readable; that it took effect once is checked when it is applied
            answer = store.range(RangeRequest(key=operation.key, revision=operation.revision))
            value = answer.kvs[0].value if answer.kvs else None
            if value != operation.value:
                raise ViolationError(
                    f"{name} lost write {operation.value!r}, acknowledged at revision {operation.revision}"
                )
        got = {kv.key: kv.value for kv in store.range(RangeRequest(key=b"\0", range_end=b"\0")).kvs}
        want = {key: change.value for key in self.model.history if (change := self.model.at(key)) is not None}
        if got != want:
            raise ViolationError(f"{name} holds {got}, the model {want}")


def _shown(change: Change | None) -> tuple[bytes | None, int, int, int] | None:
    return None if change is None else (change.value, change.revision, change.created, change.version)


class CheckedStore:
    """The real store, watched: a StateMachine that reports what it applies."""

    def __init__(self, name: str, checks: Checks, now: Callable[[], float]) -> None:
        self.store = Store(cluster_id=1)
        self._name = name
        self._checks = checks
        self._now = now

    def apply(self, index: int, term: int, proposals: Sequence[Proposal]) -> list[bytes]:
        if index != self.store.applied_index + 1:
            raise ViolationError(f"{self._name} applies index {index} after {self.store.applied_index}")
        replies = self.store.apply(index, term, proposals)
        self._checks.applied(self._name, index, term, proposals, replies, self._now())
        self._checks.stands_at(self._name, index, self.store)
        return replies

    def snapshot(self) -> Iterable[bytes]:
        return self.store.snapshot()

    def restore(self, chunks: Iterable[bytes]) -> None:
        if self.store.applied_index > 0:
            self._checks.installs += 1
        self.store.restore(chunks)
        self._checks.stands_at(self._name, self.store.applied_index, self.store)

    def begin_restore(self) -> _CheckedRestore:
        return _CheckedRestore(self)

    def restored_from(self, restoring: Restoring) -> None:
        if self.store.applied_index > 0:
            self._checks.installs += 1
        restoring.commit()
        self._checks.stands_at(self._name, self.store.applied_index, self.store)

    @property
    def applied_index(self) -> int:
        return self.store.applied_index

    @property
    def revision(self) -> int:
        return self.store.revision


class _CheckedRestore:
    """A restore in steps whose last one is reported."""

    def __init__(self, store: CheckedStore) -> None:
        self._store = store
        self._restoring = store.store.begin_restore()

    def feed(self, chunk: bytes) -> None:
        self._restoring.feed(chunk)

    def commit(self) -> None:
        self._store.restored_from(self._restoring)
