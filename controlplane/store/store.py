"""The state machine: what a committed log entry does, and what reads and watchers see of it.

Owns the applied state as a whole: keyspace, leases, remembered request ids, hash. Satisfies
``controlplane.raft.types.StateMachine`` without importing it. Pure: no clock, no random, no I/O, no locks; every call
comes from one loop and runs to its end.

Invariants:

* apply is total and deterministic. A payload that does not decode, or that the state refuses, is answered with a
  Rejection and changes nothing; any other exception is a defect and is left to stop the replica.
* One revision per mutating proposal; none for one without effect.
* A request id is applied at most once (``dedup``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from controlplane.base.errors import CorruptStateError, StatusError
from controlplane.base.limits import LEASE_TTL_S_MAX
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import (
    Command,
    Proposal,
    Rejection,
    Reply,
    RestoreBegin,
    RestoreChunk,
    RestoreCommit,
    RestoreProgress,
)
from controlplane.pb.quarterdeck.internal.v1.state_pb2 import StateHeader
from controlplane.store import check, errors, snapshot
from controlplane.store.alarms import Alarms, grows, touches
from controlplane.store.auth import Auth
from controlplane.store.auth_errors import OLD_REVISION_TEXT, USER_EMPTY_TEXT
from controlplane.store.dedup import Dedup
from controlplane.store.hash import StateHash
from controlplane.store.history import History
from controlplane.store.leases import Leases
from controlplane.store.mvcc import Keyspace
from controlplane.store.permissions import permit
from controlplane.store.query import run_range
from controlplane.store.scan import Scan, worth_it
from controlplane.store.snapshot import Loaded
from controlplane.store.staging import Stage
from controlplane.store.txn import run_delete, run_put, run_txn
from controlplane.store.watch import Watchers

__all__ = ["Restoring", "Store", "restored_state"]

#: Compacted revisions freed with each log entry (each costs about a microsecond per event).
_SWEEP_REVISIONS_PER_ENTRY: Final = 256
#: Keys of replaced states freed with each log entry.
_DISMANTLE_KEYS_PER_ENTRY: Final = 512
#: Rejections that are not remembered: they speak of the auth store as it was.
_STALE: Final = (OLD_REVISION_TEXT, USER_EMPTY_TEXT)
_RESTORE_ID_BYTES: Final = 16
#: Of a snapshot that may be restored: what is added to it must still be a revision, or applying would fail everywhere.
_RESTORE_REVISION_MAX: Final = 1 << 62
#: What a lease costs, its timer in the lessor included.
_LEASE_BYTES: Final = 512


class Store:
    """See the module. ``alarms``, ``auth``, ``leases`` and ``watches`` are the live tables: read them, do not write
    them."""

    def __init__(self, *, cluster_id: int = 0) -> None:
        self.cluster_id = cluster_id
        self._applied_index = 0
        self._term = 0
        self._keyspace = Keyspace()
        self._dedup = Dedup()
        self._hash = StateHash()
        self.alarms = Alarms()
        self.auth = Auth()
        self.leases = Leases()
        self.watches = Watchers(self._keyspace)
        #: A snapshot's state on its way to replace this one.
        self._stage: Stage | None = None
        #: What was replaced or given up, and is freed a little at a time.
        self._replaced: list[Keyspace] = []

    # -- what is applied

    @property
    def applied_index(self) -> int:
        return self._applied_index

    @property
    def revision(self) -> int:
        return self._keyspace.revision

    @property
    def compact_revision(self) -> int:
        """Reads and watches before this are refused; 0: never compacted."""
        return self._keyspace.compact_revision

    @property
    def key_count(self) -> int:
        return self._keyspace.key_count

    @property
    def size_bytes(self) -> int:
        """What the quota counts: bytes in memory of every retained version, superseded ones included, and of leases.
        Kept as writes and compaction go. Remembered replies are bounded by themselves and are not in it."""
        return self._keyspace.size_bytes + _LEASE_BYTES * len(self.leases)

    @property
    def restoring(self) -> Stage | None:
        """The restore that is on its way through the log, if there is one. Read it only."""
        return self._stage

    @property
    def restored_index(self) -> int:
        """Index of the entry whose restore made the state anew; 0: none did."""
        return self.leases.epoch

    def state_hash(self, revision: int = 0) -> str:
        """Hex digest of everything applied up to the current revision, or to a recent one. Equal on all replicas at
        equal revision. Empty if that revision's is not known here (too old, from before a restore, not reached)."""
        digest = self._hash.at(revision) if revision else self._hash.published
        return "" if digest is None else digest.hex()

    def hash_at(self, index: int) -> bytes | None:
        """Hash of the whole state after a recent log entry, to be compared with another replica's after the same one.
        None if it is not known here (too old, from before a restore, not reached)."""
        return self._hash.at_index(index)

    # -- writes

    def check(self, command: Command) -> None:
        """What can be refused before proposing. Raises: StatusError with etcd's code and text."""
        check.check_command(command)

    def apply(self, index: int, term: int, proposals: Sequence[Proposal]) -> list[bytes]:
        """Apply one log entry; one serialized Reply per proposal, in order.

        Raises:
            CorruptStateError: the entry is not after the last one applied.
        """
        if index <= self._applied_index:
            raise CorruptStateError(f"apply: index {index} after {self._applied_index}")
        self._term = max(self._term, term)
        replies = [self._apply_once(index, proposal) for proposal in proposals]
        self._applied_index = index
        self._hash.mark(index)
        if self._keyspace.needs_sweep:
            self._keyspace.sweep(_SWEEP_REVISIONS_PER_ENTRY)
        if self._replaced and self._replaced[-1].dismantle(_DISMANTLE_KEYS_PER_ENTRY):
            self._replaced.pop()
        self.watches.flush()
        return replies

    def sweep(self, revisions_max: int = _SWEEP_REVISIONS_PER_ENTRY) -> bool:
        """Free memory of compacted revisions, so many at a time; True: nothing is left. Entries do it too; a physical
        compaction calls it until done, yielding in between. Changes nothing that can be read."""
        return self._keyspace.sweep(revisions_max)

    @property
    def sweepable(self) -> bool:
        """Whether :meth:`sweep` has something to free now. What a backup still reads is freed after it."""
        return self._keyspace.sweepable

    def rebuild(self) -> Iterator[None]:
        """Give back memory of tables that have outgrown what is in them; one table, or a slice of one, per step. What
        is readable does not change."""
        return self._keyspace.rebuild()

    def _apply_once(self, index: int, proposal: Proposal) -> bytes:
        request_id = proposal.request_id
        if request_id:
            if (known := self._dedup.reply(request_id)) is not None:
                return known
            if self._dedup.may_be_forgotten(proposal.born_index):
                return _rejection(errors.forgotten())
        stale = False  # its proposer did not know who may do what now: it asks again, under the same id
        before = self._keyspace
        try:
            reply = self._dispatch(Command.FromString(proposal.payload), index)
        except DecodeError:
            reply = _rejection(errors.malformed("does not decode"))
        except StatusError as error:
            reply = _rejection(error)
            stale = error.message in _STALE
        events = self._keyspace.commit()
        self._hash.fold(request_id, reply, [event.version.frame for event in events])
        if events:
            revision = self._keyspace.revision
            self._hash.publish(revision)
            self.watches.notice(revision, events)
        elif self._keyspace is not before:
            self._hash.publish(self._keyspace.revision)
        if request_id and not stale:
            self._dedup.remember(request_id, index, reply)
        return reply

    def _dispatch(self, command: Command, index: int) -> bytes:
        """Do it; the serialized Reply."""
        if self.auth.enabled and command.auth_revision:
            permit(self.auth, self.leases, command)
        if self.alarms:
            if self.alarms.corrupt and touches(command):
                raise errors.corrupt()
            if self.alarms.no_space and grows(command):
                raise errors.no_space()
        kind = command.WhichOneof("op")
        if kind == "put":
            return run_put(self._keyspace, self.leases, command.put)
        return self._run(kind, command, index).SerializeToString()

    def _run(self, kind: str | None, command: Command, index: int) -> Reply:
        match kind:
            case "txn":
                return Reply(txn=run_txn(self._keyspace, self.leases, command.txn))
            case "delete_range":
                return Reply(delete_range=run_delete(self._keyspace, self.leases, command.delete_range))
            case "compact":
                return self._compact(command.compact)
            case "lease_grant":
                return self._lease_grant(command.lease_grant)
            case "lease_revoke":
                return self._lease_revoke(command.lease_revoke.ID)
            case "lease_checkpoint":
                return self._lease_checkpoint(command)
            case "lease_expire":
                return self._lease_expire(command)
            case "alarm":
                return self._alarm(command.alarm)
            case "condemn":
                changed = self.alarms.condemn(command.condemn.member_id)
                return Reply(condemn=e.AlarmResponse(header=self._header(), alarms=changed))
            case "restore_begin":
                return Reply(restore_begin=self._restore_begin(command.restore_begin))
            case "restore_chunk":
                return Reply(restore_chunk=self._restore_chunk(command.restore_chunk))
            case "restore_commit":
                return Reply(restore_commit=self._restore_commit(command.restore_commit, index))
            case "restore_abort":
                return Reply(restore_abort=self._restore_abort(command.restore_abort.id))
            case str() if kind.startswith("auth_"):
                self.auth.change(command)
                reply = Reply()
                getattr(reply, kind).header.CopyFrom(self._header())
                return reply
        raise errors.malformed("no operation this version knows")

    def _header(self) -> e.ResponseHeader:
        keyspace = self._keyspace
        return e.ResponseHeader(revision=keyspace.revision + 1 if keyspace.changed else keyspace.revision)

    def _compact(self, request: e.CompactionRequest) -> Reply:
        if request.revision <= self._keyspace.compact_revision:
            raise errors.compacted()
        if request.revision > self._keyspace.revision:
            raise errors.future_revision()
        self._keyspace.compact(request.revision)
        return Reply(compact=e.CompactionResponse(header=self._header()))

    def _lease_grant(self, request: e.LeaseGrantRequest) -> Reply:
        if request.ID == 0:
            raise errors.malformed("the proposer picks the lease id")
        if request.TTL > LEASE_TTL_S_MAX:
            raise errors.lease_ttl_too_large()
        if request.ID in self.leases:
            raise errors.lease_exists()
        lease = self.leases.grant(request.ID, max(1, request.TTL))
        return Reply(lease_grant=e.LeaseGrantResponse(header=self._header(), ID=lease.id, TTL=lease.ttl_s))

    def _lease_revoke(self, id: int) -> Reply:
        lease = self.leases.get(id)
        if lease is None:
            raise errors.lease_not_found()
        for key in lease.keys:
            self._keyspace.delete(key)
        self.leases.revoke(id)
        return Reply(lease_revoke=e.LeaseRevokeResponse(header=self._header()))

    def _lease_expire(self, command: Command) -> Reply:
        request = command.lease_expire
        if request.term < self._term or command.lease_epoch != self.leases.epoch:
            raise errors.not_leader()
        return self._lease_revoke(request.id)

    def _lease_checkpoint(self, command: Command) -> Reply:
        term, request = command.leader_term, command.lease_checkpoint
        if term and (term < self._term or command.lease_epoch != self.leases.epoch):
            raise errors.not_leader()
        for point in request.checkpoints:
            if point.ID in self.leases:
                self.leases.checkpoint(point.ID, max(0, point.remaining_TTL))
        return Reply(lease_checkpoint=e.LeaseCheckpointResponse(header=self._header()))

    def _alarm(self, request: e.AlarmRequest) -> Reply:
        if request.action == e.AlarmRequest.GET or request.alarm not in (e.NOSPACE, e.CORRUPT):
            raise errors.malformed("an alarm is raised or cleared, and has a type")
        return Reply(alarm=e.AlarmResponse(header=self._header(), alarms=self.alarms.change(request)))

    # -- a restore into the running cluster

    def _restore_begin(self, request: RestoreBegin) -> RestoreProgress:
        stage = self._stage
        if len(request.id) != _RESTORE_ID_BYTES or not 1 <= request.snapshot.revision <= _RESTORE_REVISION_MAX:
            raise errors.malformed("a restore has an id of 16 bytes, and has a snapshot of a revision up to 2^62")
        if stage is not None and stage.begin.id != request.id:
            raise errors.restore_under_way(stage.begin.id, stage.begin.snapshot.revision)
        if stage is None:
            stage = self._stage = Stage(request)
        return self._progress(stage)

    def _restore_chunk(self, request: RestoreChunk) -> RestoreProgress:
        stage = self._staged(request.id)
        try:
            stage.take(request.number, request.records)
        except CorruptStateError as error:
            self._clear_stage()
            raise errors.restore_refused(str(error)) from error
        return self._progress(stage)

    def _restore_commit(self, request: RestoreCommit, index: int) -> RestoreProgress:
        """Everything is the snapshot's from here on, but what is about this cluster rather than in it: exactly-once
        memory, alarms, the chain of hashes. Leases begin anew, tokens given out before are void."""
        stage = self._staged(request.id)
        try:
            auth = stage.finish(request.digest)
        except CorruptStateError as error:
            self._clear_stage()
            raise errors.restore_refused(str(error)) from error
        if auth.enabled != self.auth.enabled and not stage.begin.force:
            self._clear_stage()
            raise errors.restore_refused(
                f"it would turn authentication {'on' if auth.enabled else 'off'}; --force does it all the same"
            )
        self._stage = None
        self._replaced.append(self._keyspace)
        keyspace = stage.keyspace
        keyspace.move_to(max(self._keyspace.revision, stage.begin.snapshot.revision) + max(2, request.revision_bump))
        self._keyspace = keyspace
        self.leases.replace(stage.leases, index)
        auth.revision = max(auth.revision, self.auth.revision) + 1
        auth.token_key = request.token_key if auth.enabled else b""
        self.auth.replace(auth)
        self.watches.restored(keyspace)
        return self._progress(stage)

    def _restore_abort(self, id: bytes) -> RestoreProgress:
        stage = self._staged(id)
        self._clear_stage()
        return self._progress(stage)

    def _staged(self, id: bytes) -> Stage:
        if self._stage is None or self._stage.begin.id != id:
            raise errors.no_such_restore(id)
        return self._stage

    def _clear_stage(self) -> None:
        if self._stage is not None:
            self._replaced.append(self._stage.keyspace)
            self._stage = None

    def _progress(self, stage: Stage) -> RestoreProgress:
        progress = stage.progress
        progress.header.CopyFrom(self._header())
        return progress

    # -- reads

    def range(self, request: e.RangeRequest) -> e.RangeResponse:
        """Read the applied state. Raises: StatusError (empty key, sort option, future or compacted revision)."""
        check.check_range(request)
        return run_range(self._keyspace, request)

    def scan(self, request: e.RangeRequest) -> Scan | None:
        """The same read in steps, if it is a long one that can be; close it when done. Raises: StatusError."""
        check.check_range(request)
        return Scan(self._keyspace, request) if worth_it(self._keyspace, request) else None

    def read_txn(self, request: e.TxnRequest) -> e.TxnResponse:
        """A transaction that ``check.is_read_only``. Raises: StatusError."""
        check.check_txn(request)
        if not check.is_read_only(request):
            raise errors.malformed("a transaction with writes must be proposed")
        return run_txn(self._keyspace, self.leases, request)

    def history(self) -> History:
        """A view of the whole keyspace as it is now; close it when done."""
        return History(self._keyspace)

    # -- snapshots

    def snapshot(self) -> Iterator[bytes]:
        """Cut now; chunks are made lazily while writes and compaction go on (see ``snapshot``)."""
        header = StateHeader(
            cluster_id=self.cluster_id,
            applied_index=self._applied_index,
            term=self._term,
            revision=self._keyspace.revision,
            compact_revision=self._keyspace.compact_revision,
            chain=self._hash.chain,
            state_hash=self._hash.published,
            dedup_floor=self._dedup.floor,
            alarms=self.alarms.declared,
            condemned=self.alarms.condemned,
            lease_epoch=self.leases.epoch,
        )
        return snapshot.cut(header, self._keyspace, self.auth, self.leases, self._dedup, self._stage)

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Replace everything by a snapshot, at once; see :meth:`begin_restore`.

        Raises:
            CorruptStateError: damaged, or another cluster's; nothing is changed.
        """
        restoring = self.begin_restore()
        for chunk in chunks:
            restoring.feed(chunk)
        restoring.commit()

    def begin_restore(self) -> Restoring:
        """Replace everything by a snapshot, in steps: this store goes on as it is until the last of them."""
        return Restoring(self)

    def take(self, loaded: Loaded) -> None:
        """Replace everything. Watchers go on from where they are, or are told of the compaction. Only for Restoring.

        Raises:
            CorruptStateError: it is another cluster's; nothing is changed.
        """
        theirs = loaded.header.cluster_id
        if self.cluster_id and theirs and theirs != self.cluster_id:
            raise CorruptStateError(f"snapshot: of cluster {theirs:x}, this is {self.cluster_id:x}")
        self.cluster_id = self.cluster_id or theirs
        self._applied_index = loaded.header.applied_index
        self._term = loaded.header.term
        self._clear_stage()
        self._replaced.append(self._keyspace)
        self._stage = loaded.stage
        self._keyspace, self._dedup, self._hash = loaded.keyspace, loaded.dedup, loaded.hash
        self._hash.mark(self._applied_index)
        self.leases.replace(loaded.leases, loaded.header.lease_epoch)
        self.alarms.replace(loaded.header.alarms, loaded.header.condemned)
        self.auth.replace(loaded.auth)
        self.watches.restored(loaded.keyspace)


class Restoring:
    """A snapshot on its way to be a store's state: :meth:`feed` all of it, then :meth:`commit`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loading = snapshot.Loading()

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk: time in proportion to its size. Raises CorruptStateError: it is damaged."""
        self._loading.feed(chunk)

    def commit(self) -> None:
        """Make it the store's state. Raises CorruptStateError: cut short, or another cluster's; nothing is changed."""
        self._store.take(self._loading.finish())


def _rejection(error: StatusError) -> bytes:
    return Reply(rejection=Rejection(code=int(error.code), message=error.message)).SerializeToString()


def restored_state(
    loaded: Loaded, *, revision_bump: int = 1_000_000, applied_index: int = 0, cluster_id: int = 0
) -> Iterator[bytes]:
    """A snapshot for a new cluster that starts from an old one's snapshot (disaster recovery).

    Keys keep their create and mod revisions; the store's revision goes up by ``revision_bump`` and everything before
    is marked compacted, so that whoever watched or cached the lost cluster is told to list again instead of going back
    in time. Leases start anew with their full TTL. Remembered request ids stay, so a retry of an old write is still
    applied once; their indexes restart with the new log at ``applied_index``.
    """
    header = StateHeader()
    header.CopyFrom(loaded.header)
    header.cluster_id = cluster_id or loaded.header.cluster_id
    header.applied_index = applied_index
    header.term = 0
    header.dedup_floor = header.lease_epoch = 0
    # They speak of members that are no more; what is still true is raised again.
    del header.alarms[:]
    del header.condemned[:]
    header.revision += revision_bump
    header.compact_revision = header.revision
    dedup = Dedup()
    for request_id, (_, reply) in loaded.dedup.entries():
        dedup.remember(request_id, applied_index, reply)
    leases = Leases()
    for lease in loaded.leases.values():
        leases.grant(lease.id, lease.ttl_s)
    return snapshot.cut(header, loaded.keyspace, loaded.auth, leases, dedup)
