"""A cluster's life in one process: a store, its log, and a repository that it is archived to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeVar

from controlplane.backup.names import SegmentName
from controlplane.backup.notes import Note
from controlplane.backup.objects import open_objects
from controlplane.backup.repository import Keys, Repository
from controlplane.backup.segment import Part
from controlplane.backup.worker import Worker
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.archive_pb2 import ArchivedEntry, SegmentHeader
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Batch, Command, Proposal
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader, SnapshotMember
from controlplane.raft.snapshot_format import encode_snapshot_file
from controlplane.raft.types import LogTail
from controlplane.store.store import Store

__all__ = ["CLUSTER", "T0_MS", "FakeLog", "InlineWorker", "Life", "damage"]

CLUSTER = 0xC1
J = TypeVar("J")
T0_MS = 1_700_000_000_000


@dataclass
class Life:
    """Writes, and what the store was after each: ``chains`` by revision (the last state of it), ``times`` by index."""

    root: Path
    keys: Keys = field(default_factory=Keys)
    term: int = 1

    def __post_init__(self) -> None:
        self.repository = Repository(open_objects(str(self.root)), CLUSTER, self.keys)
        self.store = Store(cluster_id=CLUSTER)
        self.store.apply(1, 0, [])
        self.entries: list[ArchivedEntry] = []
        self.segments: list[tuple[SegmentName, Part]] = []
        self.now_ms = T0_MS
        self.serial = 0
        #: revision -> the chain after the last proposal that left the store at it
        self.chains: dict[int, bytes] = {}
        #: the same log, one proposal an entry: an oracle for states inside an entry
        self._single = Store(cluster_id=CLUSTER)
        self.keys_at: dict[int, e.RangeResponse] = {}
        self._remember()

    @property
    def index(self) -> int:
        return self.store.applied_index

    def proposal(self, command: Command) -> Proposal:
        self.serial += 1
        return Proposal(
            request_id=b"id-%013d" % self.serial, born_index=self.index, payload=command.SerializeToString()
        )

    def write(self, *commands: Command) -> ArchivedEntry:
        """One entry with these commands."""
        proposals = [self.proposal(command) for command in commands]
        self.now_ms += 10
        self.store.apply(self.index + 1, self.term, proposals)
        for proposal in proposals:
            self._single.apply(self._single.applied_index + 1, self.term, [proposal])
            self._remember()
        entry = ArchivedEntry(
            index=self.index,
            term=self.term,
            applied_at_ms=self.now_ms,
            revision=self.store.revision,
            state_hash=self.store.hash_at(self.index) or b"",
            batch=Batch(proposals=proposals).SerializeToString(),
        )
        self.entries.append(entry)
        return entry

    def put(self, key: bytes, value: bytes = b"v") -> ArchivedEntry:
        return self.write(Command(put=e.PutRequest(key=key, value=value)))

    def no_op(self) -> ArchivedEntry:
        self.now_ms += 10
        self.store.apply(self.index + 1, self.term, [])
        entry = ArchivedEntry(index=self.index, term=self.term, applied_at_ms=self.now_ms)
        self.entries.append(entry)
        return entry

    def _remember(self) -> None:
        revision = self._single.revision
        self.chains[revision] = self._single.hash_at(self._single.applied_index) or b"\0" * 16
        self.keys_at[revision] = self._single.range(e.RangeRequest(key=b"\0", range_end=b"\0"))

    def snapshot_pieces(self) -> list[bytes]:
        header = SnapshotHeader(
            cluster_id=CLUSTER,
            members=[SnapshotMember(id=1, name="r1")],
            index=self.index,
            term=self.term,
            revision=self.store.revision,
            created_at_ms=self.now_ms,
        )
        return list(encode_snapshot_file(header, self.store.snapshot()))

    def snapshot_file(self, path: Path) -> Path:
        path.write_bytes(b"".join(self.snapshot_pieces()))
        return path

    def save(self) -> Path:
        """Publish a snapshot of the state now; the stored file."""
        source = self.snapshot_file(self.root.parent / "cut.qdsnap")
        name, _ = self.repository.save(source, saved_by="test")
        source.unlink()
        return Path(self.repository.locate(name))

    def archive(self, first: int, last: int, *, previous_term: int | None = None) -> Path:
        """Publish a segment of these entries; the stored file."""
        chosen = [entry for entry in self.entries if first <= entry.index <= last]
        before = next((entry.term for entry in self.entries if entry.index == first - 1), 1)
        header = SegmentHeader(
            cluster_id=CLUSTER,
            previous_term=before if previous_term is None else previous_term,
            revision=max(entry.revision for entry in chosen),
            closed_at_ms=chosen[-1].applied_at_ms + 5,
            archived_by="r1",
        )
        name, part = self.repository.save_segment(header, chosen)
        self.segments.append((name, part))
        return Path(self.repository.locate(name))

    def pack(self, count: int) -> Path:
        """Make one file of the last so many segments."""
        name = self.repository.save_pack(self.segments[-count:])
        del self.segments[-count:]
        return Path(self.repository.locate(name))

    def live(self, seed: int, entries: int = 60) -> None:
        """A random life: batches of random writes, no-ops, leases, compactions, changes of term."""
        random = Random(seed)
        for _ in range(entries):
            if random.random() < 0.1:
                self.term += 1
                self.no_op()
            else:
                self.write(*(self._random_command(random) for _ in range(random.choice((1, 1, 1, 2, 7)))))

    def _random_command(self, random: Random) -> Command:
        key = b"k%d" % random.randrange(20)
        match random.randrange(9):
            case 0:
                return Command(lease_grant=e.LeaseGrantRequest(ID=random.randrange(1, 6), TTL=60))
            case 1:
                return Command(lease_revoke=e.LeaseRevokeRequest(ID=random.randrange(1, 6)))
            case 2:
                return Command(delete_range=e.DeleteRangeRequest(key=key, range_end=b"k2"))
            case 3:
                put = e.RequestOp(request_put=e.PutRequest(key=b"x" + key))
                gone = e.RequestOp(request_delete_range=e.DeleteRangeRequest(key=b"k1", range_end=b"k12"))
                return Command(txn=e.TxnRequest(success=[put, gone]))
            case 4 if self.store.revision > self.store.compact_revision + 15:
                return Command(compact=e.CompactionRequest(revision=self.store.revision - 10))
            case _:
                lease = random.randrange(1, 6)
                return Command(put=e.PutRequest(key=key, value=b"%d" % random.randrange(99), lease=lease))


def damage(path: Path) -> None:
    """Flip a bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class InlineWorker(Worker):
    """Does its jobs at once, on the loop: tests in virtual time."""

    def __init__(self) -> None:
        pass

    async def run(self, job: Callable[[], J], *, patience_s: float = 0.0) -> J:
        return job()

    def post(self, job: Callable[[], None]) -> None:
        job()

    def close(self) -> None:
        pass


class FakeLog:
    """A replica's log, as a LogReader: the entries of a life, from ``begins`` on."""

    def __init__(self, life: Life, *, leads: bool = True) -> None:
        self.life = life
        self.leads = leads
        self.begins = 1
        self.undurable = 0

    @property
    def durable_index(self) -> int:
        return self.life.index - self.undurable

    def tail(self, after: int, *, entries_max: int, bytes_max: int) -> LogTail | None:
        terms = {1: 1} | {entry.index: entry.term for entry in self.life.entries}
        if after not in terms or after < self.begins:
            return None
        chosen = [entry for entry in self.life.entries if after < entry.index <= self.durable_index][:entries_max]
        return LogTail(terms[after], tuple((e.index, e.term, e.batch if e.HasField("batch") else None) for e in chosen))

    def note(self, index: int) -> Note | None:
        entry = next((entry for entry in self.life.entries if entry.index == index), None)
        return None if entry is None else Note(entry.applied_at_ms, entry.revision, entry.state_hash)

    async def snapshot_file(self) -> AsyncIterator[bytes]:
        for piece in self.life.snapshot_pieces():
            yield piece
