"""The snapshots of one replica: saved whole or not at all, verified before use, the newest few kept.

Owns ``snapshots/`` of the data directory. Must not know what is in the chunks, nor when a snapshot is due.

A file has its final name only when it is complete and durable; what is being written or received has another one.
So a crash at any point leaves the older snapshots as they were, and the log still reaches back to them as long as
the caller compacts it to :meth:`SnapshotStore.prune`'s answer only.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from controlplane.base import failpoints
from controlplane.base.errors import ConfigError, CorruptStateError, StorageError
from controlplane.base.limits import MIB
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader
from controlplane.raft.disk import Disk, DiskFile
from controlplane.raft.snapshot_format import (
    DIGEST_BYTES,
    SnapshotEncoder,
    SnapshotInfo,
    read_snapshot_chunks,
    verify_snapshot,
)
from controlplane.raft.wal import HardState, Identity, Wal

__all__ = [
    "SNAPSHOT_DIR",
    "SNAPSHOT_SUFFIX",
    "SnapshotReceiver",
    "SnapshotRef",
    "SnapshotSource",
    "SnapshotStore",
    "SnapshotWriter",
    "seed_data_dir",
]

_log = logging.getLogger("quarterdeck.snapshots")

SNAPSHOT_DIR = "snapshots"
SNAPSHOTS_KEPT = 2
SNAPSHOT_SUFFIX = ".snap"
_TEMP = f"{SNAPSHOT_DIR}/saving.tmp"
_TEMP_SUFFIX = ".tmp"
_PART_SUFFIX = ".part"
_CORRUPT_SUFFIX = ".corrupt"
#: Written-behind bytes are synced in steps, so that the log's own syncs never queue behind a whole snapshot.
_SYNC_BYTES = 4 * MIB


@dataclass(frozen=True, slots=True, order=True)
class SnapshotRef:
    """A saved snapshot, by the last entry it contains."""

    index: int
    term: int

    @property
    def name(self) -> str:
        return f"{SNAPSHOT_DIR}/{self.index:016x}-{self.term:016x}{SNAPSHOT_SUFFIX}"


class SnapshotWriter:
    """One snapshot on its way to disk. Every method blocks for one chunk at most (:meth:`commit`: one sync)."""

    def __init__(self, disk: Disk, header: SnapshotHeader) -> None:
        self._disk = disk
        self._ref = SnapshotRef(header.index, header.term)
        self._encoder = SnapshotEncoder(header)
        self._file = _fresh(disk, _TEMP)
        self._unsynced_bytes = 0
        self._write(self._encoder.begin())
        failpoints.hit("snapshot.begin.after")

    def add(self, chunk: bytes) -> None:
        self._write(self._encoder.chunk(chunk))
        failpoints.hit("snapshot.write.after")

    def commit(self) -> SnapshotRef:
        """Make it durable under its name. Raises StorageError; then it does not exist."""
        self._write(self._encoder.finish())
        failpoints.hit("snapshot.sync.before")
        _publish(self._disk, self._file, _TEMP, self._ref, "snapshot")
        return self._ref

    def abort(self) -> None:
        self._file.close()
        self._disk.remove(_TEMP)

    def _write(self, data: bytes) -> None:
        try:
            self._unsynced_bytes = _write_behind(self._file, data, self._unsynced_bytes)
        except StorageError:
            self.abort()  # a full disk needs the space back at once
            raise


@dataclass(frozen=True, slots=True)
class SnapshotSource:
    """Which file is being received. ``file_id``: its checksum; two replicas' files of one entry hold the same state,
    but their bytes may differ, and pieces of two must not be joined."""

    ref: SnapshotRef
    total_bytes: int
    file_id: bytes

    @property
    def name(self) -> str:
        """Where the pieces gather. It says all there is to know for going on with it after a restart."""
        base = self.ref.name.removesuffix(SNAPSHOT_SUFFIX)
        return f"{base}-{self.total_bytes:x}-{self.file_id.hex()}{_PART_SUFFIX}"


class SnapshotReceiver:
    """A snapshot file arriving from the leader in pieces. Not durable, and not a snapshot, before :meth:`commit`.

    What has arrived stays over a restart of this replica, and is taken up where it ends. It is not trusted for that:
    after a loss of power it may have holes, which :meth:`commit` finds.
    """

    def __init__(self, disk: Disk, source: SnapshotSource) -> None:
        self._disk = disk
        self._total_bytes = source.total_bytes
        self._unsynced_bytes = 0
        self._name = source.name
        self.source = source
        self.ref = source.ref
        self._file = disk.open_append(self._name)
        if self._file.size > self._total_bytes:
            self._file.truncate(0)
        failpoints.hit("snapshot.receive.begin.after")

    @property
    def offset(self) -> int:
        """The next byte wanted."""
        return self._file.size

    @property
    def complete(self) -> bool:
        return self.offset == self._total_bytes

    def append(self, offset: int, data: bytes) -> None:
        """Take a piece; one that is not the next is ignored (it was sent twice, or across a reconnect)."""
        if offset != self.offset or offset + len(data) > self._total_bytes:
            return
        try:
            self._unsynced_bytes = _write_behind(self._file, data, self._unsynced_bytes)
        except StorageError:
            self.abort()  # what a failed sync leaves in the page cache is not to be gone on with
            raise
        failpoints.hit("snapshot.receive.write.after")

    def commit(self) -> SnapshotInfo:
        """Verify the whole file and make it durable under its name. Blocks.

        Raises:
            CorruptStateError: it arrived damaged. It is removed; this replica's own state is untouched, so the
                caller asks for it again.
            ConfigError: a newer version wrote it. Removed as well.
            StorageError: the disk refused.
        """
        try:
            info = _verify(self._disk, self._name, self.ref)
        except (CorruptStateError, ConfigError):
            self.abort()
            raise
        failpoints.hit("snapshot.receive.verify.after")
        _publish(self._disk, self._file, self._name, self.ref, "snapshot.receive")
        return info

    def abort(self) -> None:
        """Give up what has arrived."""
        self._file.close()
        self._disk.remove(self._name)


class SnapshotStore:
    """The snapshots of this replica.

    Args:
        keep: how many of the newest :meth:`prune` leaves.
    """

    def __init__(self, disk: Disk, *, keep: int = SNAPSHOTS_KEPT) -> None:
        if keep < 1:
            raise ConfigError(f"snapshots to keep is {keep}: want at least 1")
        self._disk = disk
        self._keep = keep
        disk.make_dir(SNAPSHOT_DIR)
        for name in disk.list(SNAPSHOT_DIR):
            if name.endswith(_TEMP_SUFFIX):
                disk.remove(f"{SNAPSHOT_DIR}/{name}")
        # A name seen here may not be durable yet if the process, not the machine, died before the directory's sync.
        disk.fsync_dir(SNAPSHOT_DIR)

    def list(self) -> list[SnapshotRef]:
        """Saved snapshots, newest first. Not verified."""
        refs = []
        for name in self._disk.list(SNAPSHOT_DIR):
            if not name.endswith(SNAPSHOT_SUFFIX):
                continue
            try:
                index, term = (int(part, 16) for part in name.removesuffix(SNAPSHOT_SUFFIX).split("-"))
            except ValueError as error:
                raise CorruptStateError(f"{self._disk.locate(f'{SNAPSHOT_DIR}/{name}')} is no snapshot name") from error
            refs.append(SnapshotRef(index, term))
        return sorted(refs, reverse=True)

    def verify(self, ref: SnapshotRef) -> SnapshotInfo:
        """Check the whole file. Blocks; call it off the loop.

        Raises:
            CorruptStateError: it is damaged, or another snapshot under this name.
            ConfigError: a newer version wrote it.
        """
        return _verify(self._disk, ref.name, ref)

    def chunks(self, ref: SnapshotRef) -> Iterator[bytes]:
        """The state machine's chunks of a snapshot that was verified in this process."""
        read = partial(self._disk.read, ref.name)
        return read_snapshot_chunks(read, self.size(ref), self._disk.locate(ref.name))

    def size(self, ref: SnapshotRef) -> int:
        """Bytes of the file."""
        return self._disk.size(ref.name)

    def read(self, ref: SnapshotRef, offset: int, length: int) -> bytes:
        """Bytes of the file, to send to a follower."""
        return self._disk.read(ref.name, offset, length)

    def file_id(self, ref: SnapshotRef) -> bytes:
        """The checksum at the end of the file, unverified: which file it is."""
        return self._disk.read(ref.name, max(0, self.size(ref) - DIGEST_BYTES), DIGEST_BYTES)

    def begin(self, header: SnapshotHeader) -> SnapshotWriter:
        """Start saving one; at most one at a time. An unfinished one is discarded."""
        return SnapshotWriter(self._disk, header)

    def receive(self, source: SnapshotSource) -> SnapshotReceiver:
        """Receive one, going on where an earlier attempt at the same file ended. At most one at a time: what has
        arrived of any other is discarded."""
        self._drop_parts(keep=source.name)
        return SnapshotReceiver(self._disk, source)

    def _drop_parts(self, *, keep: str | None = None) -> None:
        for name in self._disk.list(SNAPSHOT_DIR):
            path = f"{SNAPSHOT_DIR}/{name}"
            if name.endswith(_PART_SUFFIX) and path != keep:
                self._disk.remove(path)

    def prune(self, in_use: Collection[SnapshotRef] = ()) -> int:
        """Remove all but the newest ones, and those in use (being sent).

        Returns:
            the index of the oldest one left: what the log may be compacted to; 0 when there is none.
        """
        refs = self.list()
        kept = [ref for position, ref in enumerate(refs) if position < self._keep or ref in in_use]
        removed = [ref for ref in refs if ref not in kept]
        for ref in removed:
            self._disk.remove(ref.name)
            failpoints.hit("snapshot.prune.remove.after")
        if removed:
            self._disk.fsync_dir(SNAPSHOT_DIR)
        return kept[-1].index if kept else 0

    def set_aside(self, ref: SnapshotRef) -> None:
        """Keep a damaged file for inspection under a name that is no snapshot's."""
        self._disk.rename(ref.name, ref.name + _CORRUPT_SUFFIX)
        self._disk.fsync_dir(SNAPSHOT_DIR)


def seed_data_dir(
    disk: Disk, identity: Identity, header: SnapshotHeader, chunks: Iterable[bytes], *, term: int | None = None
) -> SnapshotRef:
    """Make an empty data directory one from which a member starts with this state: restore of a whole cluster.

    Every member of the new cluster is seeded with the same snapshot, so the log goes on at the same index for all.
    The log is written last: a directory with a snapshot and no log is an unfinished restore, and is refused.

    Args:
        term: where the member begins, if it has seen a later term than the state's.

    Raises:
        ConfigError: the directory is not empty, or the header is not one a log can continue from.
        StorageError: the disk refused.
    """
    if Wal.exists(disk) or disk.list(SNAPSHOT_DIR):
        raise ConfigError(f"{disk.locate('')} already holds data; restore into an empty directory")
    if header.index < 1 or header.term < 1 or header.cluster_id != identity.cluster_id:
        raise ConfigError(
            f"snapshot header with index {header.index}, term {header.term}, cluster {header.cluster_id:x} cannot "
            f"seed a member of cluster {identity.cluster_id:x}"
        )
    writer = SnapshotStore(disk).begin(header)
    for chunk in chunks:
        writer.add(chunk)
    ref = writer.commit()
    wal = Wal.create(
        disk,
        identity,
        first_index=header.index + 1,
        hard_state=HardState(term=header.term if term is None else term, commit_index=header.index),
    )
    wal.close()
    return ref


def _fresh(disk: Disk, name: str) -> DiskFile:
    if disk.exists(name):
        disk.remove(name)
    return disk.open_append(name)


def _write_behind(file: DiskFile, data: bytes, unsynced_bytes: int) -> int:
    """Append; sync when enough has gathered. Returns the bytes that wait for a sync."""
    file.append(data)
    unsynced_bytes += len(data)
    if unsynced_bytes < _SYNC_BYTES:
        return unsynced_bytes
    file.sync()
    return 0


def _publish(disk: Disk, file: DiskFile, name: str, ref: SnapshotRef, step: str) -> None:
    try:
        file.sync()
        failpoints.hit(f"{step}.sync.after")
        disk.rename(name, ref.name)
        failpoints.hit(f"{step}.rename.after")
        disk.fsync_dir(SNAPSHOT_DIR)
        failpoints.hit(f"{step}.dirsync.after")
    except StorageError:
        _log.exception("snapshot not saved index=%d term=%d", ref.index, ref.term)
        raise
    finally:
        file.close()


def _verify(disk: Disk, name: str, ref: SnapshotRef) -> SnapshotInfo:
    where = disk.locate(name)
    info = verify_snapshot(partial(disk.read, name), disk.size(name), where)
    if (info.header.index, info.header.term) != (ref.index, ref.term):
        raise CorruptStateError(
            f"snapshot {where} is of entry {info.header.index} term {info.header.term}, its name says otherwise"
        )
    return info
