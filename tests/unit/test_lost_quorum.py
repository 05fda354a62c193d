"""After a lost quorum the survivor with the most goes on alone; it says what that costs, and keeps what it replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from controlplane import quarantine
from controlplane.base import failpoints
from controlplane.base.clock import ManualClock
from controlplane.base.errors import ConfigError, CorruptStateError, StorageError
from controlplane.cli.recover import recover as command
from controlplane.lost_quorum import RECORD_NAME, TERM_BUMP, Survivor, inspect, plan, recover
from controlplane.pb.etcd.rpc_pb2 import PutRequest, RangeRequest
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Batch, Command, Proposal
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader
from controlplane.raft.disk import RealDisk
from controlplane.raft.founding import Founding, read_founding, write_founding
from controlplane.raft.membership import Membership, membership_of, to_wire
from controlplane.raft.storage import Storage, create_storage, open_storage
from controlplane.raft.types import Member
from controlplane.raft.wal import HardState, Identity
from controlplane.store.store import Store
from controlplane.swapping import WORKSPACE

CLUSTER = 0xC1
MEMBERS = tuple(Member(n, f"r{n}", f"127.0.0.1:{n}", f"127.0.0.1:{n + 100}") for n in (1, 2, 3))


def put(index: int, *, value: str = "") -> bytes:
    write = Command(put=PutRequest(key=f"k{index}".encode(), value=(value or f"v{index}").encode()))
    batch = Batch(proposals=[Proposal(request_id=f"r{index}{value}".encode(), payload=write.SerializeToString())])
    return b"\x00" + batch.SerializeToString()


class Directory:
    """One member's data directory, in the making."""

    def __init__(self, root: Path, member: int, members: tuple[Member, ...] = MEMBERS) -> None:
        self.path = root / f"r{member}"
        self._disk = RealDisk(self.path, create=True)
        write_founding(self._disk, Founding(CLUSTER, member, Membership(members)))
        self._storage: Storage = create_storage(self._disk, Identity(CLUSTER, member))
        self._storage.journal.add(b"\x01", 1, 0)
        self._store = Store(cluster_id=CLUSTER)
        self._store.apply(1, 0, [])

    def entries(self, first: int, last: int, *, term: int = 1, value: str = "") -> Directory:
        for index in range(first, last + 1):
            data = put(index, value=value)
            self._storage.journal.add(data, index, term)
            self._store.apply(index, term, list(Batch.FromString(data[1:]).proposals))
        return self

    def snapshot(self, index: int, term: int = 1) -> Directory:
        header = SnapshotHeader(cluster_id=CLUSTER, members=to_wire(MEMBERS), index=index, term=term)
        header.membership = Membership(MEMBERS).encode()
        writer = self._storage.snapshots.begin(header)
        for chunk in self._store.snapshot():
            writer.add(chunk)
        writer.commit()
        return self

    def close(self, *, term: int = 1, commit: int = 0) -> Path:
        self._storage.wal.record_hard_state(HardState(term, None, commit))
        self._storage.wal.flush()
        self._storage.wal.close()
        self._disk.close()
        return self.path


def keys(path: Path, member: int) -> tuple[dict[str, str], Membership, int]:
    """What the directory starts with: the state, the members, the term."""
    disk = RealDisk(path)
    try:
        storage = open_storage(disk, Identity(CLUSTER, member))
        assert storage.snapshot is not None
        assert storage.snapshot_ref is not None
        store = Store(cluster_id=CLUSTER)
        store.restore(storage.snapshots.chunks(storage.snapshot_ref))
        assert storage.journal.last_index == store.applied_index == storage.journal.commit_index
        term = storage.journal.getCurrentTerm()
        storage.wal.close()
        founding = read_founding(disk)
        membership = membership_of(storage.snapshot.header)
        assert founding == Founding(CLUSTER, member, membership)
    finally:
        disk.close()
    found = store.range(RangeRequest(key=b"\0", range_end=b"\0"))
    return {kv.key.decode(): kv.value.decode() for kv in found.kvs}, membership, term


def test_the_survivor_goes_on_with_all_it_has_as_the_only_member(tmp_path: Path) -> None:
    path = Directory(tmp_path, 1).entries(2, 6).snapshot(6).entries(7, 9).close(term=4, commit=8)
    survivor = inspect(path)
    assert (survivor.name, survivor.index, survivor.term, survivor.commit_index) == ("r1", 9, 1, 8)
    decided = plan([survivor])
    assert [m.name for m in decided.lost] == ["r2", "r3"]
    said = "\n".join(decided.warnings())
    assert "LOST: whatever was acknowledged after entry 9 and reached only r2, r3" in said
    assert "KEPT: entries 9 to 9 of r1 were perhaps never acknowledged" in said
    backup = recover(decided, clock=ManualClock())
    state, membership, term = keys(path, 1)
    assert state == {f"k{n}": f"v{n}" for n in range(2, 10)}
    assert [m.name for m in membership.members] == ["r1"]
    assert {r.id for r in membership.removed} == {2, 3}, "one that comes back must be told that it is removed"
    assert term == 4 + TERM_BUMP, "behind every term that it, or a lost member, has voted in"
    assert json.loads((path / RECORD_NAME).read_text())["said"] == decided.warnings()
    assert sorted(p.name for p in backup.iterdir()) == ["founding", "snapshots", "wal"]


def test_the_highest_term_wins_then_the_longest_log(tmp_path: Path) -> None:
    longest = inspect(Directory(tmp_path / "x", 1).entries(2, 9).close())
    newest = inspect(Directory(tmp_path / "y", 2).entries(2, 4).entries(5, 6, term=3).close(term=3))
    shorter = inspect(Directory(tmp_path / "z", 3).entries(2, 4).entries(5, 5, term=3).close(term=3))
    assert plan([longest, shorter, newest]).chosen is newest
    assert plan([longest, shorter]).chosen is shorter


def survivors_of(count: int, total: int, tmp_path: Path) -> list[Survivor]:
    members = tuple(Member(n, f"r{n}", f"127.0.0.1:{n}", "") for n in range(1, total + 1))
    return [inspect(Directory(tmp_path, n, members).entries(2, 3).close()) for n in range(1, count + 1)]


@pytest.mark.parametrize(
    ("count", "total", "safe", "quorum"), [(1, 3, False, False), (2, 3, True, True), (2, 4, True, False)]
)
def test_it_says_when_nothing_can_be_lost_and_when_nothing_is_needed(
    tmp_path: Path, count: int, total: int, safe: bool, quorum: bool
) -> None:
    decided = plan(survivors_of(count, total, tmp_path))
    assert (decided.nothing_acknowledged_is_lost, decided.had_quorum) == (safe, quorum)


def test_those_not_chosen_never_start_with_their_old_data(tmp_path: Path) -> None:
    chosen, other = (inspect(Directory(tmp_path, n).entries(2, 4 - n).close()) for n in (1, 2))
    recover(plan([other, chosen]), clock=ManualClock())
    disk = RealDisk(other.data_dir)
    with pytest.raises(ConfigError, match="superseded: the cluster went on from r1 at entry 3"):
        open_storage(disk, Identity(CLUSTER, 2))
    disk.close()


def test_a_running_replica_is_left_alone(tmp_path: Path) -> None:
    path = Directory(tmp_path, 1).entries(2, 3).close()
    decided = plan([inspect(path)])
    running = RealDisk(path)
    with pytest.raises(ConfigError, match="in use by another process"):
        inspect(path)
    with pytest.raises(ConfigError, match="in use by another process"):
        recover(decided, clock=ManualClock())
    running.close()


def test_a_log_without_the_snapshot_before_it_is_no_survivor(tmp_path: Path) -> None:
    path = tmp_path / "r1"
    made = Directory(tmp_path, 1).entries(2, 6).snapshot(6)
    made._storage.journal.install(6, 1)
    made._storage.wal.restart_after(6, 1)
    made.close()
    (snapshot,) = (path / "snapshots").glob("*.snap")
    snapshot.write_bytes(snapshot.read_bytes()[:-1])
    with pytest.raises(CorruptStateError, match="begins at entry 7 and no usable snapshot holds what was before"):
        inspect(path)


def test_the_directories_of_two_clusters_are_refused(tmp_path: Path) -> None:
    one = inspect(Directory(tmp_path, 1).entries(2, 3).close())
    with pytest.raises(ConfigError, match="different members of one cluster"):
        plan([one, one])


#: Each step of a recovery, and how many times it is passed.
STEPS = [
    ("recover.prepare.after", 1),
    ("quarantine.dirsync.after", 1),
    *(("recover.old.after", n) for n in (1, 2, 3)),
    *(("recover.new.after", n) for n in (1, 2, 3, 4)),
    ("recover.supersede.after", 1),
]


def cut_short(root: Path, step: str, count: int) -> Path:
    """A recovery that stopped at a step; the chosen directory."""
    path = Directory(root, 1).entries(2, 6).snapshot(6).entries(7, 9).close(term=4, commit=8)
    other = Directory(root, 2).entries(2, 6).close(commit=6)
    decided = plan([inspect(path), inspect(other)])
    failpoints.arm(f"{step}=error:EIO@{count}")
    with pytest.raises(StorageError, match=step):
        recover(decided, clock=ManualClock())
    failpoints.disarm()
    return path


@pytest.fixture(autouse=True)
def unarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


@pytest.mark.parametrize(("step", "count"), STEPS)
def test_a_recovery_that_is_cut_short_leaves_the_old_state_or_what_does_not_start(
    tmp_path: Path, step: str, count: int
) -> None:
    path = cut_short(tmp_path, step, count)
    if step == "recover.prepare.after":
        quarantine.check(path)
        assert {"wal", "snapshots", "founding"} <= {p.name for p in path.iterdir()}
        assert not list(path.glob("before-recovery-*"))
    else:
        with pytest.raises(CorruptStateError, match="a recovery was cut short here; run qd recover again"):
            quarantine.check(path)


@pytest.mark.parametrize(("step", "count"), STEPS)
def test_a_recovery_that_was_cut_short_is_done_again(tmp_path: Path, step: str, count: int) -> None:
    path = cut_short(tmp_path, step, count)
    recover(plan([inspect(path), inspect(tmp_path / "r2")]), clock=ManualClock())
    quarantine.check(path)
    state, membership, term = keys(path, 1)
    assert state == {f"k{n}": f"v{n}" for n in range(2, 10)}
    assert [m.name for m in membership.members] == ["r1"]
    assert term == 4 + TERM_BUMP, "once, not twice"
    (backup,) = path.glob("before-recovery-*")
    assert sorted(p.name for p in backup.iterdir()) == ["founding", "snapshots", "wal"]


def test_all_that_was_prepared_has_its_names_on_disk_before_anything_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Directory(tmp_path, 1).entries(2, 6).close(commit=6)
    named: set[str] = set()
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        fsync(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").readlink() == path / WORKSPACE:
            named.update(p.name for p in (path / WORKSPACE).iterdir())

    monkeypatch.setattr("os.fsync", noting)
    failpoints.arm("quarantine.write.after=error:EIO")
    with pytest.raises(StorageError):
        recover(plan([inspect(path)]), clock=ManualClock())
    # The way back takes what is not there for moved to its place.
    assert {"wal", "snapshots", "founding", RECORD_NAME} <= named


def test_done_again_with_the_directories_in_another_order_it_goes_on_from_the_same_one(tmp_path: Path) -> None:
    path, other = (Directory(tmp_path, n).entries(2, 6).close(commit=6) for n in (1, 2))
    failpoints.arm("recover.supersede.after=error:EIO")
    with pytest.raises(StorageError):
        recover(plan([inspect(path), inspect(other)]), clock=ManualClock())
    failpoints.disarm()
    decided = plan([inspect(other), inspect(path)])
    assert decided.chosen.data_dir == path, "the other one is superseded: it would start no more"
    assert decided.had_quorum
    recover(decided, clock=ManualClock())
    assert keys(path, 1)[0] == {f"k{n}": f"v{n}" for n in range(2, 7)}


def test_who_was_not_chosen_is_no_survivor_of_a_later_loss(tmp_path: Path) -> None:
    path, other = (Directory(tmp_path, n).entries(2, 6).close(commit=6) for n in (1, 2))
    recover(plan([inspect(path), inspect(other)]), clock=ManualClock())
    with pytest.raises(ConfigError, match=r"r2 is superseded: the cluster went on from r1 at entry 6"):
        plan([inspect(other)])
    assert plan([inspect(other), inspect(path)]).chosen.data_dir == path


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_putting_back_that_is_cut_short_goes_on(tmp_path: Path, count: int) -> None:
    path = cut_short(tmp_path, "recover.new.after", 3)
    failpoints.arm(f"recover.undo.after=error:EIO@{count}")
    with pytest.raises(StorageError, match=r"recover\.undo"):
        inspect(path)
    failpoints.disarm()
    survivor = inspect(path)
    assert (survivor.index, survivor.current_term, survivor.commit_index) == (9, 4, 8)
    assert [m.name for m in survivor.membership.members] == ["r1", "r2", "r3"]


def test_a_second_recovery_keeps_the_first_ones_record_and_backup(tmp_path: Path) -> None:
    path = Directory(tmp_path, 1).entries(2, 6).snapshot(6).close(term=4, commit=6)
    first = recover(plan([inspect(path)]), clock=ManualClock())
    clock = ManualClock()
    clock.advance(5)
    failpoints.arm("recover.new.after=error:EIO@4")
    with pytest.raises(StorageError):
        recover(plan([inspect(path)]), clock=clock)
    failpoints.disarm()
    record = (first.parent / RECORD_NAME).read_text()
    assert inspect(path).current_term == 4 + TERM_BUMP
    assert (path / RECORD_NAME).read_text() != record, "that of the recovery which did not come to its end"
    assert first.exists()


def test_a_state_that_was_found_to_differ_is_no_survivor(tmp_path: Path) -> None:
    path = Directory(tmp_path, 1).entries(2, 6).close()
    quarantine.impose(path, "the state of member r1 differs")
    with pytest.raises(CorruptStateError, match="the state of member r1 differs"):
        inspect(path)


def test_the_command_changes_nothing_without_yes(tmp_path: Path) -> None:
    path = Directory(tmp_path, 1).entries(2, 6).close(commit=4)
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != "LOCK"}
    said = CliRunner().invoke(command, ["--data-dir", str(path)])
    assert said.exit_code == 1
    assert "r1: " in said.output
    assert "last entry 6 of term 1, committed for certain 4, snapshot none" in said.output
    assert "Nothing was changed" in said.output
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != "LOCK"} == before
    done = CliRunner().invoke(command, ["--data-dir", str(path), "--yes"])
    assert done.exit_code == 0, done.output
    assert keys(path, 1)[0] == {f"k{n}": f"v{n}" for n in range(2, 7)}
