"""What must hold at every moment of a run. Owns the global truth: who led, what was committed, what clients were told.

Checked while the run goes on, so that a violation stops it where it happens:

- at most one leader per term;
- every replica applies the same entry at the same index (committed prefixes agree);
- state hashes agree at the same index;
- an acknowledged write is at the revision it was acknowledged at, once;
- linearizability, by revisions: an operation never sees less than any operation that ended before it began, a write's
  revision is greater than all of those, and a read returns exactly the state at its revision;
- a compare-and-swap succeeds only on the version it named, and fails only where that was not the newest;
- a watcher sees every revision from where it began, once, in order, with the value before, or is told of a compaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from controlplane.pb.etcd.kv_pb2 import Event, KeyValue
from controlplane.pb.etcd.rpc_pb2 import RangeRequest
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, Proposal, Reply
from controlplane.store.store import Restoring, Store

__all__ = ["CheckedStore", "Checks", "Operation", "ViolationError"]


class ViolationError(AssertionError):
    """An invariant does not hold. The message says which, where and when."""


@dataclass(slots=True)
class Operation:
    """One request of a client, over all its retries."""

    client: int
    id: bytes
    key: bytes
    value: bytes | None  # None: a read
    called_at: float
    floor: int
    #: A compare-and-swap: the mod revision the key must have (0: it must not exist). None: an unconditional write.
    expected: int | None = None
    tries: int = 0
    revision: int = 0


@dataclass(frozen=True, slots=True)
class _Write:
    revision: int
    request_id: bytes
    value: bytes


class Checks:
    """The truth as the whole world knows it, built from the first replica that gets anywhere."""

    def __init__(self) -> None:
        self._leaders: dict[int, str] = {}
        self._entries: dict[int, tuple[int, str]] = {}
        self._states: dict[int, tuple[int, str]] = {}
        self._history: dict[bytes, list[_Write]] = {}
        self._by_request: dict[bytes, int] = {}
        self._events: dict[int, tuple[bytes, bytes, bytes]] = {}
        self._floor = 0
        self.compacted = 0
        self.watched = 0
        self.swaps_refused = 0
        self.acked: dict[bytes, Operation] = {}
        self.reads = 0
        self.installs = 0
        #: Told after each acknowledgement: the worst moment for something to break.
        self.on_ack: Callable[[], None] = lambda: None

    # -- replicas ----------------------------------------------------------------------------------------------

    def leads(self, name: str, term: int) -> None:
        known = self._leaders.setdefault(term, name)
        if known != name:
            raise ViolationError(f"two leaders in term {term}: {known} and {name}")

    @property
    def terms(self) -> int:
        """Terms that had a leader."""
        return len(self._leaders)

    def applied(self, name: str, index: int, term: int, proposals: Sequence[Proposal], store: Store) -> None:
        digest = hashlib.sha256(b"".join(p.SerializeToString() for p in proposals)).hexdigest()
        known = self._entries.setdefault(index, (term, digest))
        if known != (term, digest):
            raise ViolationError(
                f"{name} applies another entry at index {index}: term {term}, committed before: {known[0]}"
            )
        self.stands_at(name, index, store)

    def stands_at(self, name: str, index: int, store: Store) -> None:
        state = (store.revision, store.state_hash())
        known = self._states.setdefault(index, state)
        if known != state:
            raise ViolationError(f"{name} has another state at index {index}: {state}, elsewhere {known}")

    def wrote(self, request_id: bytes, key: bytes, value: bytes, revision: int) -> None:
        """A write took effect, on the first replica that applies its entry or on a later one."""
        known = self._by_request.setdefault(request_id, revision)
        if known != revision:
            raise ViolationError(f"write {value!r} took effect twice: at revisions {known} and {revision}")
        history = self._history.setdefault(key, [])
        if not history or history[-1].revision < revision:
            self._events[revision] = (key, value, history[-1].value if history else b"")
            history.append(_Write(revision, request_id, value))

    # -- clients -----------------------------------------------------------------------------------------------

    def begins(self, operation: Operation) -> None:
        operation.floor = self._floor

    def write_acked(self, operation: Operation, reply: bytes) -> None:
        answer = Reply.FromString(reply)
        result = answer.WhichOneof("result")
        if result != ("put" if operation.expected is None else "txn"):
            raise ViolationError(f"write {operation.value!r} was answered {result}: {answer.rejection.message}")
        if result == "txn":
            self._check_swap(operation, answer.txn.header.revision, succeeded=answer.txn.succeeded)
            if not answer.txn.succeeded:
                return
            operation.revision = revision = answer.txn.header.revision
        else:
            operation.revision = revision = answer.put.header.revision
        if self._by_request.get(operation.id) != revision:
            raise ViolationError(f"write {operation.value!r} acknowledged at revision {revision}, but it is not there")
        if revision <= operation.floor:
            raise ViolationError(
                f"write {operation.value!r} acknowledged at revision {revision}, "
                f"older than {operation.floor}, which ended before it began"
            )
        self._floor = max(self._floor, revision)
        self.acked[operation.id] = operation
        self.on_ack()

    def _check_swap(self, operation: Operation, revision: int, *, succeeded: bool) -> None:
        before = revision - 1 if succeeded else revision
        found = max((w.revision for w in self._history.get(operation.key, []) if w.revision <= before), default=0)
        if succeeded != (found == operation.expected):
            raise ViolationError(
                f"swap {operation.value!r} of {operation.key!r} at revision {revision}: succeeded={succeeded}, "
                f"it wanted version {operation.expected}, there was {found}"
            )
        if not succeeded:
            self.swaps_refused += 1
            if revision < operation.floor:
                raise ViolationError(f"swap {operation.value!r} refused on a state older than {operation.floor}")

    def saw(self, watcher: str, after: int, until: int, events: Sequence[Event]) -> None:
        """A watcher that had everything up to ``after`` has now polled everything up to ``until``."""
        got = [(e.kv.mod_revision, e.kv.key, e.kv.value, e.prev_kv.value) for e in events]
        want = [(revision, *self._events[revision]) for revision in range(after + 1, until + 1)]
        if self.compacted and len(got) == len(want):
            # As in etcd, the value before is not told for what a compaction has reached meanwhile.
            got = [(*g[:3], g[3] or w[3]) for g, w in zip(got, want, strict=True)]
        if got != want:
            raise ViolationError(f"watch {watcher} from {after + 1} to {until}: saw {got}, the log says {want}")
        self.watched += len(got)

    def told_of_compaction(self, watcher: str, after: int, compact_revision: int) -> None:
        if not after + 1 < compact_revision <= self.compacted:
            raise ViolationError(
                f"watch {watcher} from {after + 1} was told of a compaction at {compact_revision}, "
                f"and nobody asked for more than {self.compacted}"
            )

    def read_answered(self, operation: Operation, kvs: Sequence[KeyValue], revision: int) -> None:
        self.reads += 1
        if revision < operation.floor:
            raise ViolationError(
                f"read of {operation.key!r} at revision {revision} is stale: {operation.floor} was seen before it began"
            )
        got = kvs[0].value if kvs else b""
        want = self.value_at(operation.key, revision)
        if got != want:
            raise ViolationError(
                f"read of {operation.key!r} at revision {revision} gives {got!r}, the log says {want!r}"
            )
        self._floor = max(self._floor, revision)

    def value_at(self, key: bytes, revision: int) -> bytes:
        value = b""
        for write in self._history.get(key, []):
            if write.revision > revision:
                break
            value = write.value
        return value

    def nothing_lost(self, name: str, store: Store) -> None:
        """At the end, on every replica: each acknowledged write is where it was acknowledged."""
        for operation in self.acked.values():
            if operation.revision < store.compact_revision:
                continue  # no longer readable; that it took effect once is checked when it is applied
            answer = store.range(RangeRequest(key=operation.key, revision=operation.revision))
            if not answer.kvs or answer.kvs[0].value != operation.value:
                raise ViolationError(
                    f"{name} lost write {operation.value!r}, acknowledged at revision {operation.revision}"
                )


class CheckedStore:
    """The real store, watched: a StateMachine that reports what it applies."""

    def __init__(self, name: str, checks: Checks) -> None:
        self.store = Store(cluster_id=1)
        self._name = name
        self._checks = checks

    def apply(self, index: int, term: int, proposals: Sequence[Proposal]) -> list[bytes]:
        if index != self.store.applied_index + 1:
            raise ViolationError(f"{self._name} applies index {index} after {self.store.applied_index}")
        replies = self.store.apply(index, term, proposals)
        for proposal, reply in zip(proposals, replies, strict=True):
            answer = Reply.FromString(reply)
            if answer.WhichOneof("result") == "put":
                put = Command.FromString(proposal.payload).put
                self._checks.wrote(proposal.request_id, put.key, put.value, answer.put.header.revision)
            elif answer.WhichOneof("result") == "txn" and answer.txn.succeeded:
                put = Command.FromString(proposal.payload).txn.success[0].request_put
                self._checks.wrote(proposal.request_id, put.key, put.value, answer.txn.header.revision)
        self._checks.applied(self._name, index, term, proposals, self.store)
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
