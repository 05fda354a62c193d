"""Disaster recovery: from a snapshot file to the data directories of a new cluster, while no replica runs on them.

Owns the recipe: verify the whole file first, raise the revision past anything the lost cluster may have told anybody,
mark the history before it compacted, seed each member's directory with the same state. Every member of the new cluster
is seeded from the same file with the same arguments, so they start with equal state at an equal log index.

A restored cluster is a *new* cluster: its token, and so its cluster id, differ from the lost one's, so that a survivor
of the old one cannot join in.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from controlplane.base.clock import Clock, SystemClock
from controlplane.base.errors import ConfigError
from controlplane.config import MemberConfig
from controlplane.pb.etcd.kv_pb2 import KeyValue
from controlplane.pb.etcd.rpc_pb2 import RangeRequest
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader, SnapshotMember
from controlplane.raft.config import make_members
from controlplane.raft.disk import RealDisk
from controlplane.raft.snapshot_format import SnapshotInfo, read_snapshot_file
from controlplane.raft.snapshots import seed_data_dir
from controlplane.raft.types import Member
from controlplane.raft.wal import Identity
from controlplane.store.snapshot import load, peek
from controlplane.store.store import Store, restored_state

__all__ = ["REVISION_BUMP", "Restored", "Seed", "contents", "prepare", "restore_member", "verify"]

#: More revisions than a cluster makes between a snapshot and its loss: at 10,000 writes a second, 27 hours.
REVISION_BUMP = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore made. ``snapshot_revision``, ``created_at_ms`` (wall clock; 0: not known): the recovery point;
    ``revision``: where the new cluster starts."""

    snapshot_revision: int
    revision: int
    keys: int
    state_hash: str
    index: int
    term: int
    created_at_ms: int = 0
    #: Of the state in the file; 0: not asked.
    state_format: int = 0


def verify(path: Path) -> tuple[SnapshotInfo, Restored]:
    """Check a snapshot file wholly: checksum, structure, and that a store can be built from it.

    Raises:
        CorruptStateError: what is damaged, and where.
        ConfigError: the file cannot be read or is no snapshot.
    """
    info, chunks = read_snapshot_file(path)
    first = next(chunks, b"")
    state_format = peek(first).format_version
    store = Store()
    store.restore(itertools.chain([first], chunks))
    header = info.header
    return info, Restored(
        header.revision, store.revision, store.key_count, store.state_hash(), header.index, header.term,
        state_format=state_format,
    )  # fmt: skip


def contents(path: Path) -> Sequence[KeyValue]:
    """Every key of a snapshot as it was, in key order. Raises as :func:`verify` does."""
    _, chunks = read_snapshot_file(path)
    store = Store()
    store.restore(chunks)
    return store.range(RangeRequest(key=b"\0", range_end=b"\0")).kvs


@dataclass(frozen=True, slots=True)
class Seed:
    """The state every member of the new cluster starts from; made once, put :meth:`into` each member's directory."""

    restored: Restored
    members: Sequence[Member]
    cluster_id: int
    header: SnapshotHeader
    state: Sequence[bytes]
    #: Whose state it was, and how big the file is: about what each directory will take.
    source_cluster_id: int
    file_bytes: int

    def into(self, data_dir: Path, name: str) -> None:
        """Seed one member's empty data directory.

        Raises:
            ConfigError: no such member, or the directory is not empty or not ours to write.
            StorageError: the disk refused.
        """
        me = next((m for m in self.members if m.name == name), None)
        if me is None:
            raise ConfigError(f"{name!r} is not in the initial cluster ({', '.join(m.name for m in self.members)})")
        disk = RealDisk(data_dir, create=True)
        try:
            seed_data_dir(disk, Identity(self.cluster_id, me.id), self.header, self.state)
        finally:
            disk.close()


def prepare(path: Path, *, members: tuple[MemberConfig, ...], cluster_token: str, clock: Clock | None = None) -> Seed:
    """Read and check the whole file, and make of it what the members of a new cluster start from. Writes nothing.

    Raises:
        ConfigError: the file cannot be read, or the token is the lost cluster's.
        CorruptStateError: the file is damaged.
    """
    info, chunks = read_snapshot_file(path)
    cluster_id, new_members = make_members(cluster_token, ((m.name, m.peer, m.client, m.metrics) for m in members))
    if cluster_id == info.header.cluster_id:
        raise ConfigError(
            "the cluster token is the lost cluster's: a survivor of it could join the restored one. Choose a new token"
        )
    header = SnapshotHeader(
        cluster_id=cluster_id,
        members=[
            SnapshotMember(
                id=m.id,
                name=m.name,
                peer_address=m.peer_address,
                client_endpoint=m.client_endpoint,
                metrics_endpoint=m.metrics_endpoint,
            )
            for m in new_members
        ],
        index=info.header.index,
        term=info.header.term + 1,
        revision=info.header.revision + REVISION_BUMP,
        created_at_ms=(clock or SystemClock()).wall_ms(),
        state_format_version=info.header.state_format_version,
    )
    loaded = load(chunks)
    keys, state_hash = loaded.keyspace.key_count, loaded.header.state_hash.hex()
    state = list(restored_state(loaded, revision_bump=REVISION_BUMP, applied_index=header.index, cluster_id=cluster_id))
    restored = Restored(
        info.header.revision, header.revision, keys, state_hash, header.index, header.term, info.header.created_at_ms
    )
    return Seed(restored, new_members, cluster_id, header, state, info.header.cluster_id, info.file_bytes)


def restore_member(
    path: Path,
    data_dir: Path,
    *,
    name: str,
    members: tuple[MemberConfig, ...],
    cluster_token: str,
    clock: Clock | None = None,
) -> Restored:
    """Seed one member's empty data directory from a snapshot file. Raises as :func:`prepare` and :meth:`Seed.into`;
    if the file is damaged, nothing is written."""
    seed = prepare(path, members=members, cluster_token=cluster_token, clock=clock)
    seed.into(data_dir, name)
    return seed.restored
