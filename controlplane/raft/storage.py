"""A replica's durable state as one thing: how it begins, and the one way it is recovered.

Owns the order of recovery: the newest valid snapshot, then the log behind it. Must not know the state machine or
the engine. Blocks; meant for the start of the process.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from controlplane.base.clock import Clock
from controlplane.base.errors import ConfigError, CorruptStateError
from controlplane.raft.disk import Disk, read_all
from controlplane.raft.journal import Base, RaftJournal
from controlplane.raft.snapshot_format import SnapshotInfo
from controlplane.raft.snapshots import SNAPSHOT_DIR, SnapshotRef, SnapshotStore
from controlplane.raft.wal import SEGMENT_BYTES, Identity, RecoveryReport, Wal

__all__ = ["Storage", "create_storage", "has_run_before", "newest_valid", "open_storage", "supersede", "superseded"]

_log = logging.getLogger("quarterdeck.storage")

#: Beside the log of a replica whose cluster went on without it (`qd recover`): why.
_SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True)
class Storage:
    """What a replica starts from. ``snapshot`` is verified: restore it first, the log goes on behind it."""

    disk: Disk
    wal: Wal
    journal: RaftJournal
    snapshots: SnapshotStore
    snapshot: SnapshotInfo | None
    report: RecoveryReport | None  # None for a new member

    @property
    def snapshot_ref(self) -> SnapshotRef | None:
        header = self.snapshot.header if self.snapshot else None
        return SnapshotRef(header.index, header.term) if header else None


def has_run_before(disk: Disk) -> bool:
    """Whether a member has lived here. Starting one of the same identity empty would forget its vote."""
    return Wal.exists(disk)


def supersede(disk: Disk, why: str) -> None:
    """Make a directory one that never starts again: its cluster has gone on without it. Raises StorageError."""
    file = disk.open_append(_SUPERSEDED)
    try:
        file.append(f"{why}\n".encode())
        file.sync()
    finally:
        file.close()
    disk.fsync_dir("")


def superseded(disk: Disk) -> str | None:
    """Why it never starts again; None: it may. Raises StorageError."""
    if not disk.exists(_SUPERSEDED):
        return None
    return read_all(disk, _SUPERSEDED).decode(errors="replace").strip()


def create_storage(
    disk: Disk, identity: Identity, *, clock: Clock | None = None, segment_bytes: int = SEGMENT_BYTES
) -> Storage:
    """The state of a new member: an empty log.

    Raises:
        ConfigError: the directory holds data.
        StorageError: the disk refused.
    """
    if disk.list(SNAPSHOT_DIR):
        raise ConfigError(
            f"{disk.locate(SNAPSHOT_DIR)} holds snapshots but there is no log: an unfinished restore, or a lost log. "
            "Empty the directory and restore again, or replace this member"
        )
    wal = Wal.create(disk, identity, clock=clock, segment_bytes=segment_bytes)
    return Storage(disk, wal, RaftJournal(wal), SnapshotStore(disk), None, None)


def open_storage(
    disk: Disk, identity: Identity, *, clock: Clock | None = None, segment_bytes: int = SEGMENT_BYTES
) -> Storage:
    """Recover a member that has run before. Running it twice gives the same.

    A damaged snapshot is set aside, and an older one taken if the log reaches back to it.

    Raises:
        CorruptStateError: what is left is not a complete state. Nothing may be served from here.
        ConfigError: no log, or one of another member, cluster or newer version.
        StorageError: the disk refused.
    """
    if (why := superseded(disk)) is not None:
        raise ConfigError(
            f"{disk.locate('')} is superseded: {why}. Empty it, and add this machine to the cluster as a new member"
        )
    wal, recovered = Wal.open(disk, identity, clock=clock, segment_bytes=segment_bytes)
    snapshots = SnapshotStore(disk)
    snapshot, damaged = newest_valid(snapshots, identity)
    base = Base(snapshot.header.index, snapshot.header.term) if snapshot else None
    try:
        journal = RaftJournal(wal, recovered, base)
    except CorruptStateError as error:
        wal.close()
        if damaged:
            raise CorruptStateError(f"{error} (damaged: {'; '.join(map(str, damaged.values()))})") from error
        raise
    for ref in damaged:
        snapshots.set_aside(ref)
    wal.flush()
    report = recovered.report
    _log.info(
        "log recovered segments=%d entries=%d last_index=%d term=%d snapshot_index=%d cut_bytes=%d",
        report.segments,
        report.entries,
        journal.last_index,
        journal.getCurrentTerm(),
        base.index if base else 0,
        report.cut_bytes,
    )
    return Storage(disk, wal, journal, snapshots, snapshot, report)


def newest_valid(
    snapshots: SnapshotStore, identity: Identity
) -> tuple[SnapshotInfo | None, dict[SnapshotRef, CorruptStateError]]:
    """The newest snapshot that is whole, and what is wrong with those after it. ConfigError: another cluster's."""
    damaged: dict[SnapshotRef, CorruptStateError] = {}
    for ref in snapshots.list():
        try:
            info = snapshots.verify(ref)
        except CorruptStateError as error:
            _log.error("snapshot refused index=%d term=%d error=%r", ref.index, ref.term, str(error))
            damaged[ref] = error
            continue
        if info.header.cluster_id != identity.cluster_id:
            raise ConfigError(
                f"snapshot {ref.name} is of cluster {info.header.cluster_id:x}, this replica belongs to "
                f"{identity.cluster_id:x}; check the data directory"
            )
        return info, damaged
    return None, damaged
