"""Snapshots exist whole or not at all, damage is never served, and recovery is newest valid snapshot, then the log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.base.errors import ConfigError, CorruptStateError, StorageError
from controlplane.base.rand import SeededRand
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader, SnapshotMember
from controlplane.raft import snapshot_format
from controlplane.raft.disk import RealDisk
from controlplane.raft.snapshot_format import (
    encode_snapshot_file,
    inspect_snapshot_file,
    read_snapshot_file,
)
from controlplane.raft.snapshots import SNAPSHOT_DIR, SnapshotRef, SnapshotSource, SnapshotStore, seed_data_dir
from controlplane.raft.storage import Storage, create_storage, has_run_before, open_storage
from controlplane.raft.wal import Identity, Wal
from tests.sim.disk import PowerLoss, SimDisk
from tests.unit.raft.storage_kit import ME, entry

CHUNKS = [b"first " * 100, b"", b"second" * 50]


def header(index: int = 10, term: int = 2) -> SnapshotHeader:
    return SnapshotHeader(
        cluster_id=ME.cluster_id,
        members=[SnapshotMember(id=ME.member_id, name="a", peer_address="127.0.0.1:2380")],
        index=index,
        term=term,
        revision=index * 3,
        created_at_ms=1_700_000_000_000,
        state_format_version=1,
    )


def save(store: SnapshotStore, index: int = 10, term: int = 2, chunks: list[bytes] = CHUNKS) -> SnapshotRef:
    writer = store.begin(header(index, term))
    for chunk in chunks:
        writer.add(chunk)
    return writer.commit()


def disk_filler(size: int) -> bytes:
    """Bytes that do not compress."""
    return SeededRand(1).token(size)


def file_bytes() -> bytes:
    return b"".join(encode_snapshot_file(header(), CHUNKS))


# -- the file ---------------------------------------------------------------------------------------------------------


def test_what_was_saved_is_read_back_chunk_by_chunk() -> None:
    store = SnapshotStore(SimDisk())
    ref = save(store)
    info = store.verify(ref)
    assert info.header == header()
    assert (info.chunks, info.state_bytes) == (3, sum(map(len, CHUNKS)))
    assert info.file_bytes == store.size(ref)
    assert list(store.chunks(ref)) == CHUNKS


def test_the_saved_file_is_the_encoded_stream() -> None:
    store = SnapshotStore(SimDisk())
    ref = save(store)
    assert store.read(ref, 0, 1 << 20) == file_bytes()


def test_a_snapshot_file_anywhere_is_inspected_and_read(tmp_path: Path) -> None:
    path = tmp_path / "backup.snap"
    path.write_bytes(file_bytes())
    info = inspect_snapshot_file(path)
    assert (info.header.index, info.header.revision, info.format_version) == (10, 30, 1)
    again, chunks = read_snapshot_file(path)
    assert again == info
    assert list(chunks) == CHUNKS


def test_every_flipped_bit_and_every_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "backup.snap"
    whole = file_bytes()
    for offset in range(len(whole)):
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << (offset % 8)
        path.write_bytes(damaged)
        with pytest.raises(CorruptStateError, match=r"backup\.snap"):
            inspect_snapshot_file(path)
        path.write_bytes(whole[:offset])
        with pytest.raises(CorruptStateError, match=r"backup\.snap"):
            read_snapshot_file(path)


def test_bytes_behind_the_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "backup.snap"
    path.write_bytes(file_bytes() + b"\0")
    with pytest.raises(CorruptStateError, match="checksum"):
        inspect_snapshot_file(path)


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.snap cannot be read: No such file"):
        inspect_snapshot_file(tmp_path / "nothing.snap")


@pytest.mark.parametrize(("version", "says"), [(2, "format 2, .* reads up to 1"), (0, "format 0, .* reads from 1 on")])
def test_a_newer_format_and_one_too_old_are_told_from_damage(
    version: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "backup.snap"
    monkeypatch.setattr(snapshot_format, "FORMAT_VERSION", version)
    path.write_bytes(file_bytes())
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=says):
        inspect_snapshot_file(path)


def test_a_chunk_over_the_limit_is_refused_when_written_and_when_read(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SnapshotStore(SimDisk())
    ref = save(store, chunks=[b"x" * 1000])
    monkeypatch.setattr(snapshot_format, "CHUNK_BYTES_MAX", 999)
    with pytest.raises(CorruptStateError, match="claims a chunk of 1000 bytes"):
        store.verify(ref)
    with pytest.raises(ValueError, match="1000 bytes, at most 999"):
        store.begin(header()).add(b"x" * 1000)


# -- the store --------------------------------------------------------------------------------------------------------


def test_the_newest_ones_are_kept_and_what_is_in_use() -> None:
    store = SnapshotStore(SimDisk(), keep=2)
    refs = [save(store, index) for index in (10, 20, 30, 40)]
    assert store.list() == refs[::-1]
    assert store.prune(in_use={refs[0]}) == 10
    assert store.list() == [refs[3], refs[2], refs[0]]
    assert store.prune() == 30
    assert store.list() == [refs[3], refs[2]]


def test_an_empty_store_lets_nothing_be_compacted() -> None:
    assert SnapshotStore(SimDisk()).prune() == 0


def test_an_unfinished_snapshot_is_none() -> None:
    disk = SimDisk()
    store = SnapshotStore(disk)
    store.begin(header()).add(b"x")
    assert store.list() == []
    SnapshotStore(disk)
    assert disk.list(SNAPSHOT_DIR) == []


def test_an_aborted_snapshot_leaves_nothing_and_the_next_one_works() -> None:
    disk = SimDisk()
    store = SnapshotStore(disk)
    writer = store.begin(header())
    writer.add(b"x")
    writer.abort()
    assert disk.list(SNAPSHOT_DIR) == []
    store.verify(save(store))


def test_a_failed_save_leaves_the_older_snapshot() -> None:
    disk = SimDisk()
    store = SnapshotStore(disk)
    old = save(store, 10)
    disk.sync_failures = 1
    with pytest.raises(StorageError):
        save(store, 20)
    assert store.list() == [old]
    store.verify(old)


def test_a_snapshot_that_fills_the_disk_gives_the_space_back() -> None:
    disk = SimDisk()
    store = SnapshotStore(disk)
    old = save(store, 10)
    disk.capacity_bytes = disk.size(old.name) + 500
    writer = store.begin(header(20))
    with pytest.raises(StorageError, match="No space left"):
        writer.add(disk_filler(2000))
    receiver = store.receive(SnapshotSource(SnapshotRef(20, 2), 1000, b"id"))
    with pytest.raises(StorageError, match="No space left"):
        receiver.append(0, disk_filler(1000))
    assert disk.list(SNAPSHOT_DIR) == [old.name.removeprefix(f"{SNAPSHOT_DIR}/")]
    assert disk.free_bytes() == 500


def test_a_snapshot_under_another_ones_name_is_refused() -> None:
    disk = SimDisk()
    store = SnapshotStore(disk)
    ref = save(store, 10)
    disk.rename(ref.name, SnapshotRef(99, 2).name)
    with pytest.raises(CorruptStateError, match="is of entry 10 term 2, its name says otherwise"):
        store.verify(SnapshotRef(99, 2))


def save_and_prune(store: SnapshotStore) -> None:
    save(store, 20)
    store.prune()


@pytest.mark.parametrize("stop", [SimDisk.power_loss, SimDisk.process_died], ids=["power loss", "kill -9"])
def test_stopping_at_every_step_of_saving_and_pruning_leaves_a_usable_snapshot(stop: Callable[[SimDisk], None]) -> None:
    disk = SimDisk()
    store = SnapshotStore(disk, keep=1)
    save(store, 10)
    first = len(disk.operations)
    save_and_prune(store)
    for stop_at in range(first, len(disk.operations)):
        for seed in range(6):
            disk_ = SimDisk(seed)
            store = SnapshotStore(disk_, keep=1)
            save(store, 10)
            disk_.stop_at = stop_at
            with pytest.raises(PowerLoss):
                save_and_prune(store)
            stop(disk_)
            store = SnapshotStore(disk_, keep=1)
            found = store.list()
            assert found
            for ref in found:
                store.verify(ref)
            disk_.power_loss()
            assert SnapshotStore(disk_).list() == found


# -- receiving --------------------------------------------------------------------------------------------------------


def source_of(data: bytes) -> SnapshotSource:
    return SnapshotSource(SnapshotRef(10, 2), len(data), data[-32:])


def test_a_snapshot_received_in_pieces_is_the_leaders() -> None:
    data = file_bytes()
    store = SnapshotStore(SimDisk())
    receiver = store.receive(source_of(data))
    while not receiver.complete:
        offset = receiver.offset
        receiver.append(offset, data[offset : offset + 50])
        receiver.append(offset, b"sent twice")
        receiver.append(offset + 1000, b"from elsewhere")
    assert store.list() == []
    assert receiver.commit().header == header()
    assert list(store.chunks(store.list()[0])) == CHUNKS


def test_a_snapshot_received_damaged_or_short_is_refused_and_gone() -> None:
    data = file_bytes()
    disk = SimDisk()
    store = SnapshotStore(disk)
    for wrong in (data[:-1], data[:100] + b"\xff" + data[101:]):
        receiver = store.receive(source_of(data))
        receiver.append(0, wrong)
        with pytest.raises(CorruptStateError):
            receiver.commit()
        assert disk.list(SNAPSHOT_DIR) == []


def test_what_has_arrived_outlives_a_restart_and_only_the_rest_is_asked_for() -> None:
    data = file_bytes()
    disk = SimDisk()
    receiver = SnapshotStore(disk).receive(source_of(data))
    receiver.append(0, data[:100])
    disk.process_died()
    store = SnapshotStore(disk)
    assert store.list() == []
    receiver = store.receive(source_of(data))
    assert receiver.offset == 100
    receiver.append(100, data[100:])
    receiver.commit()
    assert list(store.chunks(store.list()[0])) == CHUNKS
    assert all(name.endswith(".snap") for name in disk.list(SNAPSHOT_DIR))


def test_pieces_of_another_file_are_dropped_when_a_transfer_begins() -> None:
    data = file_bytes()
    disk = SimDisk()
    SnapshotStore(disk).receive(source_of(data)).append(0, data[:100])
    other = SnapshotSource(SnapshotRef(10, 2), len(data), b"another file")
    assert SnapshotStore(disk).receive(other).offset == 0
    assert disk.list(SNAPSHOT_DIR) == [other.name.removeprefix(f"{SNAPSHOT_DIR}/")]


@pytest.mark.parametrize("seed", range(20))
def test_holes_that_a_loss_of_power_leaves_in_what_has_arrived_are_found(seed: int) -> None:
    data = file_bytes()
    disk = SimDisk(seed)
    SnapshotStore(disk).receive(source_of(data)).append(0, data[:-20])
    disk.power_loss()
    store = SnapshotStore(disk)
    receiver = store.receive(source_of(data))
    try:
        receiver.append(receiver.offset, data[receiver.offset :])
        receiver.commit()
    except CorruptStateError:
        receiver = store.receive(source_of(data))
        assert receiver.offset == 0
        receiver.append(0, data)
        receiver.commit()
    assert list(store.chunks(store.list()[0])) == CHUNKS


def test_more_bytes_than_announced_are_not_taken() -> None:
    receiver = SnapshotStore(SimDisk()).receive(SnapshotSource(SnapshotRef(10, 2), 5, b"id"))
    receiver.append(0, b"123456")
    assert receiver.offset == 0


# -- recovery ---------------------------------------------------------------------------------------------------------


def append(storage: Storage, count: int, *, term: int = 2) -> None:
    """That many turns of one entry each."""
    for _ in range(count):
        storage.journal.add(*entry(storage.journal.last_index + 1, term))
        flush = storage.journal.take_dirty()
        assert flush is not None
        storage.wal.write_and_sync(flush)


def a_life(disk: SimDisk, acknowledged: list[int] | None = None) -> Storage:
    """35 entries, one a turn, and snapshots at 10, 20 and 30, compacted as the driver does."""
    storage = create_storage(disk, ME, segment_bytes=200)
    storage.journal.setCurrentTerm(2, "a")
    for index in range(1, 36):
        append(storage, 1)
        if acknowledged is not None:
            acknowledged.append(index)
        if index in (10, 20, 30):
            save(storage.snapshots, index)
            storage.wal.compact_to(storage.snapshots.prune())
    return storage


def recover(disk: SimDisk) -> Storage:
    disk.power_loss()
    return open_storage(disk, ME, segment_bytes=200)


def indices(storage: Storage) -> list[int]:
    return [e[1] for e in storage.journal[0 : len(storage.journal)]]


def test_a_new_member_starts_empty_and_once() -> None:
    disk = SimDisk()
    assert not has_run_before(disk)
    storage = create_storage(disk, ME)
    assert (len(storage.journal), storage.snapshot, storage.snapshot_ref) == (0, None, None)
    assert has_run_before(disk)
    with pytest.raises(ConfigError, match="already holds a log"):
        create_storage(disk, ME)


def test_recovery_is_the_newest_snapshot_and_the_log_behind_it() -> None:
    disk = SimDisk()
    a_life(disk)
    storage = recover(disk)
    assert storage.snapshot_ref == SnapshotRef(30, 2)
    assert storage.journal.last_index == 35
    assert storage.journal.first_index <= 20
    assert (storage.journal.commit_index, storage.journal.getVotedForNodeId()) == (30, "a")


def test_a_damaged_newest_snapshot_falls_back_to_the_one_before_and_is_set_aside() -> None:
    disk = SimDisk()
    a_life(disk)
    disk.flip_bit(SnapshotRef(30, 2).name, 40)
    storage = recover(disk)
    assert storage.snapshot_ref == SnapshotRef(20, 2)
    assert indices(storage)[-15:] == list(range(21, 36))
    assert storage.snapshots.list() == [SnapshotRef(20, 2)]
    assert SnapshotRef(30, 2).name + ".corrupt" in [f"{SNAPSHOT_DIR}/{name}" for name in disk.list(SNAPSHOT_DIR)]


def test_a_torn_newest_snapshot_is_found_out_wherever_it_ends() -> None:
    whole = SimDisk()
    a_life(whole)
    data = whole.read(SnapshotRef(30, 2).name)
    for keep in (0, 1, 7, 40, len(data) // 2, len(data) - 32, len(data) - 1):
        disk = SimDisk()
        a_life(disk)
        disk.replace(SnapshotRef(30, 2).name, data[:keep])
        storage = recover(disk)
        assert storage.snapshot_ref == SnapshotRef(20, 2), keep
        assert storage.journal.last_index == 35
        assert storage.snapshots.list() == [SnapshotRef(20, 2)]


def test_damage_to_every_snapshot_is_refused_and_names_them() -> None:
    disk = SimDisk()
    a_life(disk)
    for index in (20, 30):
        disk.flip_bit(SnapshotRef(index, 2).name, 40)
    with pytest.raises(CorruptStateError, match=r"no usable snapshot.*000000000000001e.*0000000000000014"):
        recover(disk)


def test_a_damaged_only_snapshot_is_no_loss_while_the_log_is_whole() -> None:
    disk = SimDisk()
    storage = create_storage(disk, ME)
    append(storage, 12)
    save(storage.snapshots, 10)
    disk.flip_bit(SnapshotRef(10, 2).name, 40)
    storage = recover(disk)
    assert (storage.snapshot, indices(storage)) == (None, list(range(1, 13)))


def test_a_damaged_snapshot_that_the_leader_sent_cannot_be_replaced_by_an_older_one() -> None:
    disk = SimDisk()
    storage = a_life(disk)
    save(storage.snapshots, 90, 3)
    storage.journal.install(90, 3)
    storage.wal.flush()
    disk.flip_bit(SnapshotRef(90, 3).name, 40)
    with pytest.raises(CorruptStateError, match="begins at entry 91, the newest usable snapshot ends at 30"):
        recover(disk)


def test_a_snapshot_of_another_cluster_is_refused() -> None:
    disk = SimDisk()
    storage = create_storage(disk, ME)
    writer = storage.snapshots.begin(SnapshotHeader(cluster_id=0xBAD, index=1, term=1))
    writer.commit()
    with pytest.raises(ConfigError, match="is of cluster bad, this replica belongs to c1"):
        recover(disk)


@pytest.mark.parametrize("stop", [SimDisk.power_loss, SimDisk.process_died], ids=["power loss", "kill -9"])
def test_stopping_at_every_step_of_a_life_recovers_everything_acknowledged(stop: Callable[[SimDisk], None]) -> None:
    disk = SimDisk()
    a_life(disk)
    for stop_at in range(len(disk.operations)):
        disk = SimDisk(stop_at)
        disk.stop_at = stop_at
        acknowledged: list[int] = []
        with pytest.raises(PowerLoss):
            a_life(disk, acknowledged)
        stop(disk)
        if not has_run_before(disk):
            assert not acknowledged
            continue
        storage = open_storage(disk, ME, segment_bytes=200)
        covered = storage.snapshot.header.index if storage.snapshot else 0
        assert set(range(1, covered + 1)) | set(indices(storage)) >= set(acknowledged)
        assert not acknowledged or storage.journal.getVotedForNodeId() == "a"
        append(storage, 1)


# -- seeding ----------------------------------------------------------------------------------------------------------


def test_a_seeded_directory_starts_like_any_other() -> None:
    disk = SimDisk()
    seed_data_dir(disk, ME, header(50, 4), CHUNKS)
    storage = recover(disk)
    assert storage.snapshot is not None
    assert storage.snapshot.header == header(50, 4)
    assert indices(storage) == [50]
    assert (storage.journal.getCurrentTerm(), storage.journal.getVotedForNodeId()) == (4, None)
    assert storage.journal.commit_index == 50
    append(storage, 2, term=5)
    assert indices(recover(disk)) == [50, 51, 52]


def test_seeding_works_on_a_real_disk(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path / "new", create=True)
    seed_data_dir(disk, ME, header(50, 4), CHUNKS)
    storage = open_storage(disk, ME)
    assert storage.snapshot_ref is not None
    assert list(storage.snapshots.chunks(storage.snapshot_ref)) == CHUNKS
    storage.wal.close()
    disk.close()


def test_seeding_over_data_or_for_another_cluster_is_refused() -> None:
    disk = SimDisk()
    with pytest.raises(ConfigError, match="cannot seed a member of cluster c2"):
        seed_data_dir(disk, Identity(0xC2, 1), header(), CHUNKS)
    seed_data_dir(disk, ME, header(), CHUNKS)
    with pytest.raises(ConfigError, match="already holds data"):
        seed_data_dir(disk, ME, header(), CHUNKS)


def test_an_interrupted_restore_is_never_taken_for_a_new_member() -> None:
    disk = SimDisk()
    seed_data_dir(disk, ME, header(), CHUNKS)
    refused = 0
    for stop_at in range(len(disk.operations)):
        disk = SimDisk(stop_at)
        disk.stop_at = stop_at
        with pytest.raises(PowerLoss):
            seed_data_dir(disk, ME, header(), CHUNKS)
        disk.process_died()
        if Wal.exists(disk):
            assert open_storage(disk, ME).snapshot is not None
        elif disk.list(SNAPSHOT_DIR):
            with pytest.raises(ConfigError, match="unfinished restore"):
                create_storage(disk, ME)
            refused += 1
    assert refused > 3
