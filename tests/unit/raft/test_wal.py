"""The log gives back what was synced, repairs what a crash tears, and refuses what only rot explains."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.base.errors import ConfigError, CorruptStateError, StorageError
from controlplane.base.rand import SeededRand
from controlplane.raft import wal_format as fmt
from controlplane.raft.disk import Disk, RealDisk
from controlplane.raft.wal import WAL_DIR, HardState, Identity, Recovered, Wal
from tests.sim.disk import PowerLoss, SimDisk
from tests.unit.raft.storage_kit import ME, Written, entry, new_log


@pytest.fixture(params=["real", "sim"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "sim":
        yield SimDisk()
        return
    real = RealDisk(tmp_path)
    yield real
    real.close()


def reopen(disk: Disk) -> Recovered:
    wal, recovered = Wal.open(disk, ME)
    wal.close()
    return recovered


def last_segment(disk: Disk) -> str:
    return f"{WAL_DIR}/{disk.list(WAL_DIR)[-1]}"


# -- round trips ------------------------------------------------------------------------------------------------------


def test_a_new_log_is_empty_and_exists(disk: Disk) -> None:
    assert not Wal.exists(disk)
    Wal.create(disk, ME).close()
    assert Wal.exists(disk)
    recovered = reopen(disk)
    assert (recovered.first_index, recovered.entries, recovered.hard_state) == (1, [], HardState())
    assert recovered.report.clean


def test_entries_term_and_vote_come_back(disk: Disk) -> None:
    log = new_log(disk)
    log.append(3)
    log.vote(2, "b")
    log.flush()
    log.append(2, term=2)
    log.flush()
    log.wal.close()
    recovered = reopen(disk)
    assert recovered.entries == log.given
    assert recovered.hard_state == HardState(2, "b")
    assert (recovered.report.frames, recovered.report.segments) == (3, 1)


def test_appending_goes_on_after_reopening(disk: Disk) -> None:
    log = new_log(disk)
    log.append(3)
    log.flush()
    log.wal.close()
    for _ in range(3):
        log.wal, _recovered = Wal.open(disk, ME)
        log.append(2)
        log.flush()
        log.wal.close()
    assert reopen(disk).entries == log.given


def test_a_truncated_tail_does_not_come_back(disk: Disk) -> None:
    log = new_log(disk)
    log.append(5)
    log.flush()
    log.truncate(3)
    log.append(2, term=2)
    log.flush()
    log.wal.close()
    assert reopen(disk).entries == [entry(1), entry(2), entry(3, 2), entry(4, 2)]


def test_after_a_snapshot_the_log_goes_on_behind_it(disk: Disk) -> None:
    log = new_log(disk)
    log.append(5)
    log.wal.restart_after(100, 7)
    log.wal.append_entry(b"x", 101, 7)
    log.flush()
    log.wal.close()
    recovered = reopen(disk)
    assert (recovered.first_index, recovered.entries) == (101, [(b"x", 101, 7)])


def test_an_empty_and_a_large_command_come_back(disk: Disk) -> None:
    log = new_log(disk)
    large = bytes(range(256)) * 16_384
    log.wal.append_entry(b"", 1, 1)
    log.wal.append_entry(large, 2, 1)
    log.flush()
    log.wal.close()
    assert reopen(disk).entries == [(b"", 1, 1), (large, 2, 1)]


def test_a_full_segment_is_followed_by_another(disk: Disk) -> None:
    log = new_log(disk, segment_bytes=500)
    log.vote(3, "a")
    for _ in range(20):
        log.append(3, term=3)
        log.flush()
    log.wal.close()
    assert len(disk.list(WAL_DIR)) > 3
    recovered = reopen(disk)
    assert recovered.entries == log.given
    assert recovered.hard_state == HardState(3, "a")


def test_several_terms_in_the_turn_that_begins_a_segment_come_back(disk: Disk) -> None:
    log = new_log(disk, segment_bytes=100)
    log.append(5)
    log.flush()
    log.vote(1, "a")
    log.vote(2)
    log.vote(3, "b")
    log.flush()
    log.wal.close()
    assert len(disk.list(WAL_DIR)) == 2
    assert reopen(disk).hard_state == HardState(3, "b")


def test_one_turn_is_one_sync() -> None:
    disk = SimDisk()
    log = new_log(disk)
    before = disk.syncs
    log.append(500)
    log.vote(1, "a")
    log.append(500)
    log.flush()
    assert disk.syncs == before + 1


def test_what_is_recorded_during_a_flush_belongs_to_the_next(disk: Disk) -> None:
    log = new_log(disk)
    log.append(1)
    flush = log.wal.take_dirty()
    assert flush is not None
    log.append(1)
    with pytest.raises(StorageError, match="still under way"):
        log.wal.take_dirty()
    log.wal.write_and_sync(flush)
    log.wal.close()
    assert reopen(disk).entries == [entry(1)]


def test_nothing_recorded_is_no_flush(disk: Disk) -> None:
    log = new_log(disk)
    assert log.wal.take_dirty() is None
    assert not log.wal.dirty


# -- what it refuses --------------------------------------------------------------------------------------------------


def test_a_gap_a_term_going_back_and_a_truncation_past_the_end_are_refused(disk: Disk) -> None:
    log = new_log(disk)
    log.append(2)
    log.vote(5)
    with pytest.raises(CorruptStateError, match="entry 4 given where entry 3"):
        log.wal.append_entry(b"", 4, 1)
    with pytest.raises(CorruptStateError, match="term would go back from 5 to 4"):
        log.vote(4)
    with pytest.raises(CorruptStateError, match="truncation at 4"):
        log.wal.truncate_from(4)


def test_another_members_log_is_refused(disk: Disk) -> None:
    new_log(disk).wal.close()
    with pytest.raises(ConfigError, match="belongs to member a1 of cluster c1, this replica is member a2"):
        Wal.open(disk, Identity(0xC1, 0xA2))


def test_creating_over_a_log_and_opening_none_are_refused(disk: Disk) -> None:
    with pytest.raises(ConfigError, match="holds no log"):
        Wal.open(disk, ME)
    new_log(disk).wal.close()
    with pytest.raises(ConfigError, match="already holds a log"):
        Wal.create(disk, ME)


def test_a_newer_format_is_refused_by_name() -> None:
    disk = SimDisk()
    new_log(disk).wal.close()
    header = fmt.encode_segment_header(fmt.SegmentHeader(fmt.FORMAT_VERSION + 1, ME.cluster_id, ME.member_id, 1, 1))
    disk.replace(last_segment(disk), fmt.encode_frame(1, 1, [header]))
    with pytest.raises(ConfigError, match="log format 2, this version reads up to 1"):
        Wal.open(disk, ME)


def test_a_longer_header_of_a_newer_format_is_refused_by_its_version_alone() -> None:
    disk = SimDisk()
    new_log(disk).wal.close()
    body = struct.pack("<I", fmt.FORMAT_VERSION + 1) + b"what a later version has to say" * 3
    record = struct.pack("<BI", fmt.RecordType.SEGMENT, len(body)) + body
    disk.replace(last_segment(disk), fmt.encode_frame(1, 1, [record]))
    with pytest.raises(ConfigError, match="log format 2, this version reads up to 1; start the newer version"):
        Wal.open(disk, ME)


def test_a_record_that_only_a_newer_version_knows_is_not_called_damage() -> None:
    disk = SimDisk()
    new_log(disk).wal.close()
    name = last_segment(disk)
    whole = fmt.encode_segment_header(fmt.SegmentHeader(fmt.FORMAT_VERSION, ME.cluster_id, ME.member_id, 1, 1))
    disk.replace(name, fmt.encode_frame(1, 1, [whole]) + fmt.encode_frame(1, 2, [struct.pack("<BI", 99, 2) + b"??"]))
    with pytest.raises(ConfigError, match=r"has a record of type 99, this version knows up to 5; start the newer"):
        Wal.open(disk, ME)


def test_a_missing_segment_is_named(disk: Disk) -> None:
    log = new_log(disk, segment_bytes=200)
    for _ in range(6):
        log.append(3)
        log.flush()
    log.wal.close()
    names = disk.list(WAL_DIR)
    disk.remove(f"{WAL_DIR}/{names[1]}")
    with pytest.raises(CorruptStateError, match=f"{names[1]} is missing"):
        Wal.open(disk, ME)


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([fmt.encode_entry(b"", 5, 1)], "entry 5 where entry 1 belongs"),
        ([fmt.encode_truncate(9)], "truncation at 9"),
        ([fmt.encode_hard_state(HardState(2)), fmt.encode_hard_state(HardState(1))], "term goes back"),
        ([fmt.encode_segment_header(fmt.SegmentHeader(1, 0xC1, 0xA1, 1, 1))], "a segment header inside"),
        ([b"\x02\xff\x00\x00\x00"], "record of 255 bytes in 0"),
        ([b"\x02\x00\x00\x00\x00"], "16 bytes"),
    ],
)
def test_records_that_cannot_follow_each_other_are_refused(records: list[bytes], reason: str) -> None:
    disk = SimDisk()
    new_log(disk).wal.close()
    name = last_segment(disk)
    disk.replace(name, disk.read(name) + fmt.encode_frame(1, 2, records))
    with pytest.raises(CorruptStateError, match=reason):
        Wal.open(disk, ME)


# -- torn tail or rot -------------------------------------------------------------------------------------------------


def three_frames(disk: Disk) -> tuple[Written, list[int]]:
    """A log of a header frame and three more, and where each frame ends."""
    log = new_log(disk)
    ends = [disk.size(last_segment(disk))]
    for _ in range(3):
        log.append(2, size=60)
        log.flush()
        ends.append(disk.size(last_segment(disk)))
    log.wal.close()
    return log, ends


def test_the_last_frame_cut_at_every_byte_is_repaired_and_reported() -> None:
    disk = SimDisk()
    log, ends = three_frames(disk)
    name = last_segment(disk)
    whole = disk.read(name)
    for size in range(ends[-2], ends[-1]):
        torn = disk.copy()
        torn.replace(name, whole[:size])
        wal, recovered = Wal.open(torn, ME)
        report = recovered.report
        assert recovered.entries == log.given[:4]
        assert report.cut_bytes == size - ends[-2]
        assert report.clean or report.cut_offset == ends[-2]
        wal.append_entry(*entry(5))
        wal.flush()
        wal.close()
        again = reopen(torn)
        assert again.entries == [*log.given[:4], entry(5)]
        assert again.report.clean


def test_a_tail_with_lost_sectors_is_repaired() -> None:
    disk = SimDisk()
    log = new_log(disk)
    log.append(2)
    log.flush()
    name = last_segment(disk)
    end = disk.size(name)
    log.append(60, size=60)
    log.flush()
    whole = disk.read(name)
    for start in range(end // 512 * 512, len(whole), 512):
        torn = disk.copy()
        lost_from, lost_to = max(start, end), min(start + 512, len(whole))
        torn.replace(name, whole[:lost_from] + bytes(lost_to - lost_from) + whole[lost_to:])
        recovered = reopen(torn)
        assert recovered.entries == log.given[:2]
        assert recovered.report.cut_offset == end


def test_every_single_flipped_bit_anywhere_is_refused_with_segment_and_offset() -> None:
    """Also in the last frame: it is complete, so it may have been acknowledged, and a crash does not flip bits."""
    disk = SimDisk()
    _, ends = three_frames(disk)
    name = last_segment(disk)
    for offset in range(ends[-1]):
        for bit in (0, 5, 7):
            rotten = disk.copy()
            rotten.flip_bit(name, offset, bit)
            frame_start = max([0, *(end for end in ends if end <= offset)])
            with pytest.raises(CorruptStateError, match=rf"{name} is damaged at offset {frame_start}:"):
                Wal.open(rotten, ME)


def test_a_lost_sector_before_other_frames_is_refused() -> None:
    """A device that forgets a sector it had acknowledged: no crash does that to a frame that others follow."""
    disk = SimDisk()
    log = new_log(disk)
    name = last_segment(disk)
    starts = []
    for _ in range(3):
        starts.append(disk.size(name))
        log.append(1, size=2000)
        log.flush()
    whole = disk.read(name)
    for start in range(starts[0], starts[2], 512):
        lost_to = start // 512 * 512 + 512
        disk.replace(name, whole[:start] + bytes(lost_to - start) + whole[lost_to:])
        with pytest.raises(CorruptStateError, match="follow"):
            Wal.open(disk, ME)


def test_a_torn_end_of_a_segment_that_is_not_the_last_is_refused() -> None:
    disk = SimDisk()
    log = new_log(disk, segment_bytes=200)
    while len(disk.list(WAL_DIR)) < 2:
        log.append(3)
        log.flush()
    log.wal.close()
    name = f"{WAL_DIR}/{disk.list(WAL_DIR)[0]}"
    disk.replace(name, disk.read(name)[:-1])
    with pytest.raises(CorruptStateError, match=f"{name} is damaged"):
        Wal.open(disk, ME)


def test_a_frame_copied_into_another_place_is_refused() -> None:
    disk = SimDisk()
    _, ends = three_frames(disk)
    name = last_segment(disk)
    data = disk.read(name)
    disk.replace(name, data + data[ends[-2] :])
    with pytest.raises(CorruptStateError, match="frame 4 where frame 5 belongs"):
        Wal.open(disk, ME)


def test_refusing_changes_nothing() -> None:
    disk = SimDisk()
    three_frames(disk)
    name = last_segment(disk)
    disk.flip_bit(name, 30)
    before = (disk.read(name), len(disk.operations))
    with pytest.raises(CorruptStateError):
        Wal.open(disk, ME)
    assert (disk.read(name), len(disk.operations)) == before


def test_garbage_that_no_crash_leaves_is_refused() -> None:
    disk = SimDisk()
    three_frames(disk)
    name = last_segment(disk)
    disk.replace(name, disk.read(name) + b"garbage" * 10)
    with pytest.raises(CorruptStateError, match="unreadable frame header"):
        Wal.open(disk, ME)


# -- a disk that refuses ----------------------------------------------------------------------------------------------


def test_after_a_failed_sync_nothing_is_taken_until_it_is_reopened() -> None:
    disk = SimDisk()
    log = new_log(disk)
    log.append(3)
    log.flush()
    log.append(1)
    disk.sync_failures = 1
    with pytest.raises(StorageError, match="Input/output error"):
        log.flush()
    for use in (lambda: log.append(1), lambda: log.vote(9), log.flush, lambda: log.wal.compact_to(1)):
        with pytest.raises(StorageError, match=r"until this replica is restarted.*Input/output"):
            use()
    assert log.wal.failure


def test_what_a_failed_sync_left_in_the_page_cache_is_made_durable_before_it_counts() -> None:
    disk = SimDisk()
    log = new_log(disk)
    log.append(3)
    disk.sync_failures = 1
    with pytest.raises(StorageError):
        log.flush()
    disk.process_died()
    seen = reopen(disk).entries
    disk.power_loss()
    assert reopen(disk).entries == seen


def test_a_full_disk_is_survived_by_freeing_space_and_reopening() -> None:
    disk = SimDisk()
    log = new_log(disk)
    log.append(3)
    log.flush()
    disk.capacity_bytes = disk.size(last_segment(disk)) + 70
    log.append(10)
    with pytest.raises(StorageError, match="No space left"):
        log.flush()
    with pytest.raises(StorageError, match="No space left"):
        log.flush()
    disk.capacity_bytes = 1 << 30
    wal, recovered = Wal.open(disk, ME)
    assert recovered.entries == log.synced
    assert recovered.report.cut_bytes == 70
    wal.append_entry(*entry(4))
    wal.flush()
    wal.close()
    assert reopen(disk).entries == [*log.synced, entry(4)]


def test_a_disk_that_lies_about_syncs_loses_whole_turns_but_never_half_ones() -> None:
    lost = False
    for seed in range(30):
        disk = SimDisk(seed)
        log = new_log(disk)
        disk.loses_syncs = True
        log.append(4)
        log.flush()
        disk.loses_syncs = False
        disk.power_loss()
        entries = reopen(disk).entries
        assert entries in ([], log.given)
        lost = lost or not entries
    assert lost


# -- compaction -------------------------------------------------------------------------------------------------------


def many_segments(disk: Disk) -> Written:
    log = new_log(disk, segment_bytes=300)
    log.vote(4, "b")
    for _ in range(12):
        log.append(3, term=4)
        log.flush()
    return log


def test_compaction_drops_whole_segments_and_keeps_term_and_vote(disk: Disk) -> None:
    log = many_segments(disk)
    before = len(disk.list(WAL_DIR))
    dropped = log.wal.compact_to(20)
    log.wal.close()
    assert dropped > 0
    assert len(disk.list(WAL_DIR)) == before - dropped
    recovered = reopen(disk)
    assert 1 < recovered.first_index <= 20
    assert recovered.entries == log.given[recovered.first_index - 1 :]
    assert recovered.hard_state == HardState(4, "b")


def test_compaction_never_drops_the_last_segment(disk: Disk) -> None:
    log = many_segments(disk)
    log.wal.compact_to(10_000)
    log.append(1, term=4)
    log.flush()
    log.wal.close()
    recovered = reopen(disk)
    assert recovered.entries[-1] == log.given[-1]
    assert recovered.hard_state == HardState(4, "b")


def test_a_truncation_into_dropped_segments_still_replays(disk: Disk) -> None:
    log = new_log(disk, segment_bytes=300)
    for _ in range(3):
        log.append(4)
        log.flush()
    log.truncate(5)
    for _ in range(4):
        log.append(4, term=2)
        log.flush()
    log.wal.compact_to(13)
    log.wal.close()
    recovered = reopen(disk)
    assert recovered.entries == log.given[recovered.first_index - 1 :]
    assert recovered.first_index <= 13


# -- the machine stops anywhere ---------------------------------------------------------------------------------------


def a_life(disk: SimDisk, log: Written) -> None:
    """Writes, rolls, a conflict, a vote and a compaction."""
    for turn in range(8):
        log.append(3, term=2, size=40)
        if turn == 3:
            log.vote(5, "c")
        if turn == 4:
            log.truncate(len(log.given) - 1)
        log.flush()
    log.wal.compact_to(12)
    log.append(2, term=5)
    log.flush()


Stop = Callable[[SimDisk], None]


@pytest.mark.parametrize("stop", [SimDisk.power_loss, SimDisk.process_died], ids=["power loss", "kill -9"])
def test_stopping_at_every_disk_operation_loses_nothing_that_was_synced(stop: Stop) -> None:
    disk = SimDisk()
    a_life(disk, new_log(disk, segment_bytes=400))
    operations = len(disk.operations)
    assert operations > 30
    for stop_at in range(operations):
        for seed in range(4):
            _stop_and_recover(SimDisk(seed), stop_at, stop)


def _stop_and_recover(disk: SimDisk, stop_at: int, stop: Stop) -> None:
    disk.stop_at = stop_at
    log: Written | None = None
    try:
        log = new_log(disk, segment_bytes=400)
        a_life(disk, log)
    except PowerLoss:
        pass
    stop(disk)
    if log is None:
        # It never began; a second attempt must be possible, unless the first one got to the end after all.
        if not Wal.exists(disk):
            new_log(disk)
        assert reopen(disk).entries == []
        return
    recovered = reopen(disk)
    check_recovered(log, recovered)
    disk.power_loss()
    again = reopen(disk)
    assert (again.entries, again.hard_state) == (recovered.entries, recovered.hard_state)
    assert again.report.clean


def check_recovered(log: Written, recovered: Recovered) -> None:
    """Either the last synced state or the one that was on its way, never anything else."""
    assert recovered.entries in [expected[recovered.first_index - 1 :] for expected in (log.synced, log.given)], (
        f"{recovered.entries} is neither what was synced nor what was under way"
    )
    assert recovered.first_index <= 12
    assert recovered.hard_state in (log.synced_state, log.wal.hard_state)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 5)),
            st.tuples(st.just("truncate"), st.integers(0, 4)),
            st.tuples(st.just("vote"), st.integers(0, 2)),
            st.tuples(st.just("flush"), st.just(0)),
            st.tuples(st.just("crash"), st.integers(0, 6)),
        ),
        max_size=40,
    ),
    seed=st.integers(0, 2**32),
)
def test_any_history_with_crashes_gives_back_what_was_synced(steps: list[tuple[str, int]], seed: int) -> None:
    disk = SimDisk(SeededRand(seed))
    log = new_log(disk, segment_bytes=300)
    term = 0
    for step, amount in steps:
        if step == "append":
            log.append(amount, term=max(1, term))
        elif step == "truncate" and len(log.given) > amount:
            log.truncate(len(log.given) - amount)
        elif step == "vote":
            term += amount
            log.vote(term, f"n{amount}")
        elif step == "flush":
            log.flush()
        elif step == "crash":
            disk.stop_at = len(disk.operations) + amount
            try:
                log.flush()
            except PowerLoss:
                pass
            disk.power_loss()
            under_way = list(log.given)
            wal, recovered = Wal.open(disk, ME, segment_bytes=300)
            assert recovered.entries in (log.synced, under_way)
            assert recovered.hard_state in (log.synced_state, log.wal.hard_state)
            log = Written(wal, recovered.entries, recovered.hard_state, list(recovered.entries))
            term = recovered.hard_state.term


def test_it_works_on_a_real_disk_over_many_restarts(tmp_path: Path) -> None:
    given_entries: list[tuple[bytes, int, int]] = []
    for life in range(5):
        disk = RealDisk(tmp_path)
        if life == 0:
            wal = Wal.create(disk, ME, segment_bytes=2000)
        else:
            wal, recovered = Wal.open(disk, ME, segment_bytes=2000)
            assert recovered.entries == given_entries
        for _ in range(10):
            given_entries.append(entry(len(given_entries) + 1, size=100))
            wal.append_entry(*given_entries[-1])
            wal.flush()
        wal.close()
        disk.close()
