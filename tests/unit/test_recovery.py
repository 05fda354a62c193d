"""Disaster recovery: what a snapshot file becomes, and what it refuses to become."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from controlplane.base.clock import ManualClock
from controlplane.base.errors import ConfigError, CorruptStateError, StatusError, StorageError
from controlplane.config import MemberConfig
from controlplane.local.cluster import LocalCluster
from controlplane.local.processes import ProcessError
from controlplane.local.restore import restore_replicas
from controlplane.local.spec import plan
from controlplane.pb.etcd import rpc_pb2
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader, SnapshotMember
from controlplane.raft.config import make_members
from controlplane.raft.disk import RealDisk
from controlplane.raft.snapshot_format import encode_snapshot_file, inspect_snapshot_file
from controlplane.raft.storage import open_storage
from controlplane.raft.wal import Identity
from controlplane.recovery import REVISION_BUMP, restore_member, verify
from controlplane.store.store import Store
from tests.unit.store.support import Driver

MEMBERS = tuple(
    MemberConfig(f"r{n}", f"127.0.0.1:{7000 + n}", f"127.0.0.1:{7100 + n}", f"127.0.0.1:{7200 + n}") for n in (1, 2, 3)
)


def identity(token: str, name: str = "r1") -> Identity:
    cluster_id, members = make_members(token, ((m.name, m.peer, m.client, m.metrics) for m in MEMBERS))
    return Identity(cluster_id, next(m.id for m in members if m.name == name))


@pytest.fixture
def lost() -> Driver:
    """The store of a cluster with the token ``old``: keys, a lease with time passed, history."""
    driver = Driver(Store(cluster_id=identity("old").cluster_id), term=4)
    driver.grant(7, 60)
    driver.put(b"leased", b"x", lease=7)
    driver.checkpoint(7, 10)
    for number in range(50):
        driver.put(b"key%02d" % (number % 10), b"value %d" % number)
    driver.delete(b"key03")
    return driver


@pytest.fixture
def file(lost: Driver, tmp_path: Path) -> Path:
    """Its snapshot file."""
    header = SnapshotHeader(
        cluster_id=lost.store.cluster_id,
        members=[SnapshotMember(id=1, name="r1")],
        index=lost.store.applied_index,
        term=4,
        revision=lost.store.revision,
        created_at_ms=1_600_000_000_000,
        state_format_version=1,
    )
    path = tmp_path / "old.qdsnap"
    path.write_bytes(b"".join(encode_snapshot_file(header, lost.store.snapshot())))
    return path


def started(data_dir: Path, token: str, name: str) -> tuple[Store, int, int]:
    """The store as the member's replica would start with it, and its log's last index and term."""
    who = identity(token, name)
    disk = RealDisk(data_dir)
    storage = open_storage(disk, who)
    store = Store(cluster_id=who.cluster_id)
    assert storage.snapshot is not None
    (ref,) = storage.snapshots.list()
    store.restore(storage.snapshots.chunks(ref))
    last = storage.journal.last_index, storage.journal.getCurrentTerm()
    storage.wal.close()
    disk.close()
    return store, *last


def test_verify_tells_what_is_in_a_file(lost: Driver, file: Path) -> None:
    info, found = verify(file)
    assert found.state_hash == lost.store.state_hash()
    assert (found.revision, found.keys, found.term) == (lost.store.revision, lost.store.key_count, 4)
    assert info.file_bytes == file.stat().st_size


def test_three_members_start_equal_and_past_everything_the_lost_cluster_told(
    lost: Driver, file: Path, tmp_path: Path
) -> None:
    restored = {
        m.name: restore_member(file, tmp_path / m.name, name=m.name, members=MEMBERS, cluster_token="new")
        for m in MEMBERS
    }
    assert len(set(restored.values())) == 1
    one = restored["r1"]
    assert (one.snapshot_revision, one.revision) == (lost.store.revision, lost.store.revision + REVISION_BUMP)
    assert one.keys == lost.store.key_count
    states = [started(tmp_path / name, "new", name) for name in restored]
    assert {store.state_hash() for store, _, _ in states} == {one.state_hash}
    assert {store.revision for store, _, _ in states} == {one.revision}
    assert {(index, term) for _, index, term in states} == {(one.index, one.term)}
    assert one.term == 5


def test_keys_keep_their_values_and_versions_and_old_watchers_must_list_again(
    lost: Driver, file: Path, tmp_path: Path
) -> None:
    restore_member(file, tmp_path / "r1", name="r1", members=MEMBERS, cluster_token="new")
    store, index, term = started(tmp_path / "r1", "new", "r1")
    restored = Driver(store, term=term + 1)
    restored.index = index
    assert restored.get(b"key04") == lost.get(b"key04")
    assert restored.get(b"key03") is None
    with pytest.raises(StatusError, match="required revision has been compacted"):
        store.range(rpc_pb2.RangeRequest(key=b"key04", revision=lost.store.revision))
    assert restored.put(b"after", b"1") == lost.store.revision + REVISION_BUMP + 1


def test_a_member_knows_its_new_fellows_and_when_it_was_made(file: Path, tmp_path: Path) -> None:
    clock = ManualClock(wall_ms=1_700_000_000_000)
    restore_member(file, tmp_path / "r2", name="r2", members=MEMBERS, cluster_token="new", clock=clock)
    (saved,) = (tmp_path / "r2").rglob("*.snap*")
    header = inspect_snapshot_file(saved).header
    assert {member.client_endpoint for member in header.members} == {member.client for member in MEMBERS}
    assert header.created_at_ms == 1_700_000_000_000
    assert header.cluster_id == identity("new").cluster_id


def test_the_lost_clusters_own_token_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Choose a new token"):
        restore_member(file, tmp_path / "r1", name="r1", members=MEMBERS, cluster_token="old")
    assert not (tmp_path / "r1").exists()


def test_a_name_outside_the_cluster_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'r9' is not in the initial cluster .*r2"):
        restore_member(file, tmp_path / "r9", name="r9", members=MEMBERS, cluster_token="new")
    assert not (tmp_path / "r9").exists()


@pytest.mark.parametrize("percent", [0, 1, 5, 50, 95, 99])
def test_a_damaged_file_is_refused_and_nothing_is_written(file: Path, tmp_path: Path, percent: int) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) * percent // 100] ^= 0x10
    file.write_bytes(content)
    with pytest.raises((CorruptStateError, ConfigError)):
        restore_member(file, tmp_path / "r1", name="r1", members=MEMBERS, cluster_token="new")
    with pytest.raises((CorruptStateError, ConfigError)):
        verify(file)
    assert not (tmp_path / "r1").exists()


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_file_cut_short_is_refused(file: Path, tmp_path: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CorruptStateError):
        restore_member(file, tmp_path / "r1", name="r1", members=MEMBERS, cluster_token="new")
    assert not (tmp_path / "r1").exists()


def test_a_directory_with_data_is_left_alone(file: Path, tmp_path: Path) -> None:
    restore_member(file, tmp_path / "r1", name="r1", members=MEMBERS, cluster_token="new")
    before = {path: path.read_bytes() for path in (tmp_path / "r1").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="already holds data"):
        restore_member(file, tmp_path / "r1", name="r1", members=MEMBERS, cluster_token="newer")
    assert {path: path.read_bytes() for path in (tmp_path / "r1").rglob("*") if path.is_file()} == before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.qdsnap"):
        verify(tmp_path / "none.qdsnap")


@pytest.fixture
def cluster(tmp_path: Path) -> LocalCluster:
    """A local cluster whose replicas are programs that do nothing."""
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    made = LocalCluster.create(tmp_path / "c", plan(replicas=3, nodes=0, port_base=7400))
    made.python = str(sleeper)
    return made


def test_a_local_cluster_is_restored_whole_under_a_new_token(cluster: LocalCluster, file: Path) -> None:
    before = cluster.spec
    old_data = cluster.replica_dir("r1") / "old"
    old_data.parent.mkdir()
    old_data.write_text("x")
    try:
        assert restore_replicas(cluster, file).revision > REVISION_BUMP
        assert cluster.running() == ["r1", "r2", "r3"]
        with pytest.raises(ProcessError, match="still running: r1, r2, r3"):
            restore_replicas(cluster, file)
    finally:
        cluster.down()
    assert not old_data.exists()
    assert (cluster.spec.token != before.token, cluster.spec.replicas) == (True, before.replicas)
    assert LocalCluster.open(cluster.root).spec == cluster.spec
    assert all(any(cluster.replica_dir(name).iterdir()) for name in ("r1", "r2", "r3"))


def test_a_damaged_file_leaves_a_local_cluster_as_it_is(cluster: LocalCluster, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])
    kept = cluster.replica_dir("r1") / "kept"
    kept.parent.mkdir()
    kept.write_text("x")
    token = cluster.spec.token
    with pytest.raises(CorruptStateError):
        restore_replicas(cluster, file)
    assert kept.exists()
    assert cluster.spec.token == token
    assert cluster.running() == []


def test_another_clusters_file_needs_force_and_a_full_disk_is_seen_before_anything_goes(
    cluster: LocalCluster, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = cluster.replica_dir("r1") / "kept"
    kept.parent.mkdir()
    kept.write_text("x")
    token = cluster.spec.token
    with pytest.raises(ConfigError, match="--force"):
        restore_replicas(cluster, file, force=False)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        with pytest.raises(StorageError, match="0 free"):
            restore_replicas(cluster, file)
    assert kept.exists()
    assert (cluster.spec.token, cluster.running()) == (token, [])
