"""A state out of backups is one that the cluster had, to the revision, or it is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from controlplane.backup.materialize import Materialized, materialize
from controlplane.backup.names import SegmentName
from controlplane.backup.repository import Repository
from controlplane.base.errors import CorruptStateError, NotCoveredError, StorageError
from controlplane.live_restore import plan_of
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.archive_pb2 import ArchivedEntry, SegmentHeader
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, RestoreBegin, RestoreChunk, RestoreCommit
from controlplane.raft.snapshot_format import read_snapshot_file
from controlplane.store.store import Store
from tests.unit.backup.support import CLUSTER, Life, damage


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path / "archive")


def restored(found: Materialized) -> Store:
    info, chunks = read_snapshot_file(found.path)
    store = Store()
    store.restore(chunks)
    assert (info.header.index, info.header.term) == (found.index, found.term)
    assert (info.header.cluster_id, info.header.revision) == (CLUSTER, found.revision)
    assert store.applied_index == found.index
    return store


@pytest.mark.parametrize("seed", range(4))
def test_every_revision_of_a_random_life_is_restored_as_it_was(seed: int, tmp_path: Path) -> None:
    life = Life(tmp_path / "archive")
    random = Random(seed)
    life.save()
    archived = 1
    while archived < 60:
        life.live(random.randrange(1 << 30), random.randrange(1, 12))
        if random.random() < 0.3:
            life.save()
        # Leaders overlap: each begins somewhere in what is there already.
        life.archive(random.randrange(max(2, archived - 5), archived + 2), life.index)
        archived = life.index
        if len(life.segments) > 2 and random.random() < 0.3:
            life.pack(1)
    for revision, chain in life.chains.items():
        found = materialize(str(life.root), to_revision=revision, scratch=tmp_path / "scratch")
        store = restored(found)
        assert found.revision == store.revision == revision, f"seed {seed}"
        assert store.hash_at(store.applied_index) == chain, f"seed {seed}, revision {revision}"
        assert store.range(e.RangeRequest(key=b"\0", range_end=b"\0")) == life.keys_at[revision]
    newest = restored(materialize(str(life.root), scratch=tmp_path / "scratch"))
    assert list(newest.snapshot()) == list(life.store.snapshot())


def test_a_moment_holds_what_was_applied_until_then(life: Life, tmp_path: Path) -> None:
    life.save()
    first, second = life.put(b"a"), life.put(b"b")
    life.archive(2, 3)
    found = materialize(str(life.root), to_time_ms=second.applied_at_ms - 1, scratch=tmp_path / "s")
    assert (found.revision, found.time_ms, found.notes) == (first.revision, first.applied_at_ms, ())
    found = materialize(str(life.root), to_time_ms=second.applied_at_ms, scratch=tmp_path / "s")
    assert found.revision == second.revision
    assert "nothing is archived behind" in found.notes[0]


def test_writes_that_share_an_entry_are_told_apart(life: Life, tmp_path: Path) -> None:
    life.save()
    life.write(*(Command(put=e.PutRequest(key=b"k", value=b"%d" % n)) for n in range(5)))
    life.archive(2, 2)
    for n in range(5):
        store = restored(materialize(str(life.root), to_revision=2 + n, scratch=tmp_path / "s"))
        assert store.range(e.RangeRequest(key=b"k")).kvs[0].value == b"%d" % n


def test_a_damaged_newest_snapshot_is_got_around_and_said(life: Life, tmp_path: Path) -> None:
    life.save()
    life.put(b"a")
    newest = life.save()
    damage(newest)
    life.put(b"b")
    life.archive(2, 3)
    found = materialize(str(life.root), scratch=tmp_path / "s")
    assert (found.revision, found.entries_replayed) == (3, 2)
    assert f"{newest} is damaged" in found.notes[0], "which of the archive's files is not said"
    assert "taking the snapshot before it" in found.notes[0]


def test_without_any_whole_snapshot_it_is_refused(life: Life, tmp_path: Path) -> None:
    damage(life.save())
    with pytest.raises(CorruptStateError, match="checksum does not match; no snapshot before it is left"):
        materialize(str(life.root), scratch=tmp_path / "s")


def test_a_gap_refuses_what_lies_behind_it(life: Life, tmp_path: Path) -> None:
    life.save()
    for key in (b"a", b"b", b"c", b"d"):
        life.put(key)
    life.archive(2, 2)
    life.archive(4, 5)
    with pytest.raises(
        NotCoveredError, match=r"revision 4 is not covered.* goes to revision 2.*gap \(entries 3 to 3\)"
    ):
        materialize(str(life.root), to_revision=4, scratch=tmp_path / "s")
    with pytest.raises(NotCoveredError, match="gap"):
        materialize(str(life.root), to_time_ms=life.now_ms, scratch=tmp_path / "s")
    found = materialize(str(life.root), scratch=tmp_path / "s")
    assert found.revision == 2
    assert "gap (entries 3 to 3)" in found.notes[-1]


def test_a_revision_outside_names_the_range_there_is(life: Life, tmp_path: Path) -> None:
    life.put(b"a")
    life.save()
    life.put(b"b")
    life.archive(3, 3)
    for revision in (1, 4):
        with pytest.raises(NotCoveredError, match=rf"revision {revision} is not covered.*Covered: revision 2 to 3 \("):
            materialize(str(life.root), to_revision=revision, scratch=tmp_path / "s")


def test_damage_in_a_pack_costs_one_segment_of_it(life: Life, tmp_path: Path) -> None:
    life.save()
    for key in (b"a", b"b", b"c"):
        life.put(key)
        life.archive(life.index, life.index)
    assert materialize(str(life.root), scratch=tmp_path / "s").revision == 4
    pack = life.pack(3)
    assert [path.name for path in pack.parent.iterdir()] == [pack.name]
    assert materialize(str(life.root), scratch=tmp_path / "s").revision == 4
    data = bytearray(pack.read_bytes())
    data[-5] ^= 1  # in the last segment
    pack.write_bytes(data)
    assert materialize(str(life.root), to_revision=3, scratch=tmp_path / "s").revision == 3
    with pytest.raises(NotCoveredError, match="entry 4 is damaged"):
        materialize(str(life.root), to_revision=4, scratch=tmp_path / "s")


def test_a_damaged_segment_is_replaced_by_another_that_has_its_entries(life: Life, tmp_path: Path) -> None:
    life.save()
    for key in (b"a", b"b", b"c"):
        life.put(key)
    damage(life.archive(2, 4))
    life.archive(2, 3)
    with pytest.raises(NotCoveredError, match=r"goes to revision 3.*entry 4 is damaged"):
        materialize(str(life.root), to_revision=4, scratch=tmp_path / "s")
    assert materialize(str(life.root), to_revision=3, scratch=tmp_path / "s").revision == 3


def test_segments_of_another_history_are_not_joined(life: Life, tmp_path: Path) -> None:
    life.save()
    life.put(b"a")
    life.archive(2, 2)
    life.term = 2
    life.put(b"b")
    life.archive(3, 3, previous_term=2)  # the entry before was one of term 2: not ours
    found = materialize(str(life.root), scratch=tmp_path / "s")
    assert found.revision == 2
    assert "another history: entry 2 has term 2 there and 1 here" in found.notes[0]


def test_an_entry_that_gives_another_state_is_not_gone_past(life: Life, tmp_path: Path) -> None:
    life.save()
    life.put(b"a")
    entry = life.put(b"b")
    entry.revision += 1_000_000_000
    life.archive(2, 3)
    found = materialize(str(life.root), scratch=tmp_path / "s")
    assert (found.revision, restored(found).key_count) == (2, 1)
    assert "entry 3 cannot be replayed" in found.notes[-1]


def test_a_restore_into_the_running_cluster_is_replayed_like_any_write(life: Life, tmp_path: Path) -> None:
    life.save()
    life.put(b"kept")
    plan = plan_of(life.snapshot_file(tmp_path / "wanted.qdsnap"))
    life.put(b"mistake")
    restore_id = b"i" * 16
    begin = RestoreBegin(id=restore_id, snapshot=plan.info.header, total_bytes=plan.total_bytes)
    life.write(Command(restore_begin=begin))
    for number, piece in enumerate(plan.pieces):
        life.write(Command(restore_chunk=RestoreChunk(id=restore_id, number=number, records=piece)))
    life.save()  # with the state on its way in it
    commit = Command(restore_commit=RestoreCommit(id=restore_id, digest=plan.digest, revision_bump=1_000))
    life.write(commit, Command(put=e.PutRequest(key=b"after")))
    life.archive(2, life.index)
    last = life.store.revision
    assert last > 1_000
    for revision, keys in (
        (2, [b"kept"]),
        (3, [b"kept", b"mistake"]),
        (last - 1, [b"kept"]),
        (last, [b"after", b"kept"]),
    ):
        store = restored(materialize(str(life.root), to_revision=revision, scratch=tmp_path / "s"))
        assert [kv.key for kv in store.range(e.RangeRequest(key=b"\0", range_end=b"\0")).kvs] == keys
        assert store.hash_at(store.applied_index) == life.chains[revision]
    with pytest.raises(NotCoveredError, match=r"revision 500 is not covered.*the next revision is beyond it"):
        materialize(str(life.root), to_revision=500, scratch=tmp_path / "s")


def test_segments_that_are_put_together_while_a_state_is_made_are_found_again(
    life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive of a cluster that runs: by the time its last segments are read, they are in a pack."""
    life.save()
    for key in (b"a", b"b", b"c", b"d"):
        life.put(key)
        life.archive(life.index, life.index)
    read_segment = Repository.read_segment
    reads = 0

    def reading(repository: Repository, name: SegmentName, index: int) -> tuple[SegmentHeader, list[ArchivedEntry]]:
        nonlocal reads
        reads += 1
        if reads == 2:
            life.pack(3)
        return read_segment(repository, name, index)

    monkeypatch.setattr(Repository, "read_segment", reading)
    found = materialize(str(life.root), scratch=tmp_path / "s")
    assert (found.revision, found.notes) == (life.store.revision, ())


def test_a_segment_that_is_listed_and_cannot_be_read_is_no_end_of_the_log(
    life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.save()
    life.put(b"a")
    life.archive(2, 2)

    def refusing(repository: Repository, name: SegmentName, index: int) -> tuple[SegmentHeader, list[ArchivedEntry]]:
        raise StorageError("the store is away")

    monkeypatch.setattr(Repository, "read_segment", refusing)
    with pytest.raises(StorageError, match="away"):
        materialize(str(life.root), scratch=tmp_path / "s")
