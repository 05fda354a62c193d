"""The engine's log: truncation only on conflict, nothing committed ever replaced, term and vote durable."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.base.errors import CorruptStateError
from controlplane.raft.journal import Base, RaftJournal
from controlplane.raft.wal import Entry, HardState, Wal
from tests.sim.disk import SimDisk
from tests.unit.raft.storage_kit import ME, entry


@dataclass
class Replica:
    """A disk and the journal over it."""

    disk: SimDisk
    journal: RaftJournal

    def flush(self) -> None:
        flush = self.journal.take_dirty()
        if flush is not None:
            self.journal.wal.write_and_sync(flush)

    def restart(self, base: Base | None = None) -> RaftJournal:
        self.disk.power_loss()
        wal, recovered = Wal.open(self.disk, ME)
        self.journal = RaftJournal(wal, recovered, base)
        return self.journal


def replica(*entries: Entry) -> Replica:
    disk = SimDisk()
    r = Replica(disk, RaftJournal(Wal.create(disk, ME)))
    for e in entries:
        r.journal.add(*e)
    r.flush()
    return r


def content(journal: RaftJournal) -> list[Entry]:
    return journal[0 : len(journal)]


def append_entries(journal: RaftJournal, prev_index: int, entries: list[Entry]) -> None:
    """What pysyncobj does with the log in an AppendEntries whose previous entry matches."""
    position = prev_index - journal.first_index
    if len(journal) > position + 1:
        journal.deleteEntriesFrom(position + 1)
    for e in entries:
        journal.add(*e)


ONE_TO_FIVE = tuple(entry(index) for index in range(1, 6))


# -- truncation -------------------------------------------------------------------------------------------------------


def test_a_cut_tail_is_hidden_until_the_handler_ends_and_then_back() -> None:
    r = replica(*ONE_TO_FIVE)
    r.journal.deleteEntriesFrom(2)
    assert (len(r.journal), r.journal.last_index, r.journal.term_at(3)) == (2, 2, None)
    r.journal.handler_ended()
    assert content(r.journal) == list(ONE_TO_FIVE)
    assert r.journal.take_dirty() is None


def test_a_resent_prefix_writes_nothing_and_loses_nothing() -> None:
    r = replica(*ONE_TO_FIVE)
    syncs = r.disk.syncs
    append_entries(r.journal, 1, [entry(2), entry(3)])
    assert r.journal.last_index == 3
    r.journal.handler_ended()
    r.flush()
    assert content(r.journal) == list(ONE_TO_FIVE)
    assert r.disk.syncs == syncs
    assert content(r.restart()) == list(ONE_TO_FIVE)


def test_an_empty_heartbeat_behind_the_end_loses_nothing() -> None:
    r = replica(*ONE_TO_FIVE)
    append_entries(r.journal, 2, [])
    r.journal.handler_ended()
    assert r.journal.last_index == 5


def test_an_entry_of_another_term_drops_the_rest_for_good() -> None:
    r = replica(*ONE_TO_FIVE)
    append_entries(r.journal, 2, [entry(3), entry(4, 2)])
    r.journal.handler_ended()
    expected = [entry(1), entry(2), entry(3), entry(4, 2)]
    assert content(r.journal) == expected
    r.flush()
    assert content(r.restart()) == expected


def test_a_longer_resend_takes_back_and_appends() -> None:
    r = replica(*ONE_TO_FIVE)
    append_entries(r.journal, 3, [entry(4), entry(5), entry(6)])
    r.journal.handler_ended()
    r.flush()
    assert [e[1] for e in content(r.restart())] == [1, 2, 3, 4, 5, 6]


def test_a_crash_in_the_middle_of_a_handler_leaves_the_acknowledged_log() -> None:
    r = replica(*ONE_TO_FIVE)
    append_entries(r.journal, 1, [entry(2)])
    assert content(r.restart()) == list(ONE_TO_FIVE)


def test_cutting_twice_in_one_handler_keeps_the_order() -> None:
    r = replica(*ONE_TO_FIVE)
    r.journal.deleteEntriesFrom(3)
    r.journal.deleteEntriesFrom(1)
    r.journal.handler_ended()
    assert content(r.journal) == list(ONE_TO_FIVE)


def test_flushing_with_a_hidden_tail_is_refused() -> None:
    r = replica(*ONE_TO_FIVE)
    r.journal.deleteEntriesFrom(2)
    with pytest.raises(CorruptStateError, match="handler_ended"):
        r.journal.take_dirty()


def test_a_gap_and_a_jump_over_hidden_entries_are_refused() -> None:
    r = replica(*ONE_TO_FIVE)
    with pytest.raises(CorruptStateError, match="adds entry 7 behind entry 5"):
        r.journal.add(*entry(7))
    r.journal.deleteEntriesFrom(2)
    with pytest.raises(CorruptStateError, match="adds entry 4 where entry 3 was"):
        r.journal.add(*entry(4))


def test_replacing_a_committed_entry_is_refused() -> None:
    r = replica(*ONE_TO_FIVE)
    r.journal.setRaftCommitIndex(4)
    r.journal.deleteEntriesFrom(3)
    with pytest.raises(CorruptStateError, match="committed entry 4 of term 1 would be replaced by one of term 2"):
        r.journal.add(*entry(4, 2))


@settings(max_examples=200, deadline=None)
@given(
    messages=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=20),
    restarts=st.sets(st.integers(0, 20)),
)
def test_replaying_any_old_append_never_shrinks_the_log(messages: list[tuple[int, int]], restarts: set[int]) -> None:
    leader = [entry(index) for index in range(1, 13)]
    r = replica(leader[0])
    for number, (prev_index, count) in enumerate(messages):
        last = r.journal.last_index
        if prev_index <= last:
            append_entries(r.journal, prev_index, leader[prev_index : prev_index + count])
            r.journal.handler_ended()
        assert r.journal.last_index >= last
        assert content(r.journal) == leader[: r.journal.last_index]
        r.flush()
        if number in restarts:
            before = content(r.journal)
            assert content(r.restart()) == before


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_log_shrinks_only_where_terms_differ_and_memory_and_disk_agree(data: st.DataObject) -> None:
    """Two leaders' logs with a common prefix; a follower hears pieces of the first, then of the second."""
    common = data.draw(st.integers(1, 6))
    old = [entry(i, 1) for i in range(1, common + 6)]
    new = [*old[:common], *(entry(i, 2) for i in range(common + 1, common + 6))]
    r = replica(old[0])
    for leader in (old, new):
        for _ in range(data.draw(st.integers(1, 6))):
            held = content(r.journal)
            prev = data.draw(st.integers(1, len(held)))
            if held[prev - 1] != leader[prev - 1]:
                continue  # the engine answers with a rewind and touches nothing
            sent = leader[prev : prev + data.draw(st.integers(0, 5))]
            append_entries(r.journal, prev, sent)
            r.journal.handler_ended()
            after = content(r.journal)
            conflict = any(mine != theirs for mine, theirs in zip(held[prev:], sent, strict=False))
            assert after[: prev + len(sent)] == leader[: prev + len(sent)]
            assert conflict or after[: len(held)] == held
            r.flush()
    expected = content(r.journal)
    assert content(r.restart()) == expected


# -- commit index, term and vote --------------------------------------------------------------------------------------


def test_the_highest_commit_index_survives_the_engine_lowering_it() -> None:
    r = replica(*ONE_TO_FIVE)
    r.journal.setRaftCommitIndex(4)
    r.journal.setRaftCommitIndex(2)
    assert r.journal.getRaftCommitIndex() == r.journal.commit_index == 4


def test_the_commit_index_rides_on_other_writes_and_on_the_timer_never_alone() -> None:
    r = replica(*ONE_TO_FIVE)
    r.journal.setRaftCommitIndex(4)
    assert r.journal.take_dirty() is None
    r.journal.onOneSecondTimer()
    r.flush()
    assert r.restart().commit_index == 4
    r.journal.setRaftCommitIndex(5)
    r.journal.add(*entry(6))
    r.flush()
    assert r.restart().commit_index == 5


def test_term_and_vote_are_durable_with_the_turns_flush() -> None:
    r = replica(*ONE_TO_FIVE)
    r.journal.setCurrentTerm(3, None)
    r.journal.setCurrentTerm(3, "b")
    r.journal.setCurrentTerm(3, "b")
    r.flush()
    r.restart()
    assert (r.journal.getCurrentTerm(), r.journal.getVotedForNodeId()) == (3, "b")
    assert r.journal.take_dirty() is None


def test_a_second_vote_in_a_term_and_a_term_going_back_are_refused() -> None:
    r = replica(*ONE_TO_FIVE)
    r.journal.setCurrentTerm(3, "b")
    with pytest.raises(CorruptStateError, match="second vote in term 3: b, then c"):
        r.journal.setCurrentTerm(3, "c")
    with pytest.raises(CorruptStateError, match="second vote in term 3: b, then None"):
        r.journal.setCurrentTerm(3, None)
    with pytest.raises(CorruptStateError, match="term would go back"):
        r.journal.setCurrentTerm(2, None)


def test_an_empty_log_is_what_the_engine_expects_of_one() -> None:
    journal = replica().journal
    assert (len(journal), journal.getRaftCommitIndex(), journal.getCurrentTerm()) == (0, 1, 0)
    assert (journal.getVotedForNodeId(), journal.first_index, journal.last_index) == (None, 1, 0)


def test_the_engines_own_dump_loading_is_refused() -> None:
    with pytest.raises(CorruptStateError, match="clear the log"):
        replica().journal.clear()


# -- snapshots --------------------------------------------------------------------------------------------------------


def test_forgetting_entries_in_memory_touches_no_disk() -> None:
    r = replica(*ONE_TO_FIVE)
    operations = len(r.disk.operations)
    r.journal.deleteEntriesTo(3)
    assert [e[1] for e in content(r.journal)] == [4, 5]
    assert (r.journal.first_index, r.journal.term_at(3), r.journal.term_at(4)) == (4, None, 1)
    assert len(r.disk.operations) == operations


def test_an_installed_snapshot_leaves_a_placeholder_and_the_log_goes_on_behind_it() -> None:
    r = replica(*ONE_TO_FIVE)
    r.journal.install(100, 7)
    assert [e[1:] for e in content(r.journal)] == [(100, 7)]
    assert r.journal.commit_index == 100
    r.journal.add(*entry(101, 7))
    r.flush()
    assert [e[1:] for e in content(r.restart(Base(100, 7)))] == [(100, 7), (101, 7)]


def test_a_snapshot_of_an_entry_the_log_holds_keeps_what_follows() -> None:
    r = replica(*ONE_TO_FIVE)
    r.journal.install(3, 1)
    assert content(r.journal) == [entry(3), entry(4), entry(5)]
    assert r.journal.commit_index == 3
    assert r.journal.bytes_in_log == 60


def test_a_snapshot_older_than_what_is_committed_is_refused() -> None:
    r = replica(*ONE_TO_FIVE)
    r.journal.setRaftCommitIndex(4)
    with pytest.raises(CorruptStateError, match="ends at 3 would replace a log committed up to 4"):
        r.journal.install(3, 1)


def test_stopping_between_the_saved_snapshot_and_the_log_starts_from_the_snapshot() -> None:
    r = replica(*ONE_TO_FIVE)
    assert [e[1:] for e in content(r.restart(Base(100, 7)))] == [(100, 7)]
    r.journal.add(*entry(101, 7))
    r.flush()
    assert [e[1:] for e in content(r.restart(Base(100, 7)))] == [(100, 7), (101, 7)]


def test_an_uncommitted_entry_that_the_snapshot_contradicts_gives_way() -> None:
    r = replica(*ONE_TO_FIVE)
    assert [e[1:] for e in content(r.restart(Base(4, 2)))] == [(4, 2)]


def test_a_committed_entry_that_the_snapshot_contradicts_is_refused() -> None:
    r = replica(*ONE_TO_FIVE)
    r.journal.setRaftCommitIndex(4)
    r.journal.onOneSecondTimer()
    r.flush()
    with pytest.raises(CorruptStateError, match="committed entry 4 has term 1 in the log and 2 in the snapshot"):
        r.restart(Base(4, 2))


def test_entries_that_the_snapshot_also_holds_stay_for_followers_that_are_behind() -> None:
    r = replica(*ONE_TO_FIVE)
    assert content(r.restart(Base(3, 1))) == list(ONE_TO_FIVE)
    assert r.journal.commit_index == 3


def test_a_gap_between_snapshot_and_log_is_refused() -> None:
    r = replica(*ONE_TO_FIVE)
    r.journal.install(100, 7)
    r.flush()
    with pytest.raises(CorruptStateError, match="begins at entry 101, the newest usable snapshot ends at 50"):
        r.restart(Base(50, 7))
    with pytest.raises(CorruptStateError, match="begins at entry 101 and there is no usable snapshot"):
        r.restart(None)


@pytest.mark.parametrize("base", [None, Base(2, 1)])
def test_a_log_that_ends_before_what_was_committed_is_refused(base: Base | None) -> None:
    disk = SimDisk()
    wal = Wal.create(disk, ME)
    for e in ONE_TO_FIVE:
        wal.append_entry(*e)
    wal.record_hard_state(HardState(1, None, 7))
    wal.flush()
    wal, recovered = Wal.open(disk, ME)
    with pytest.raises(CorruptStateError, match="the log ends at entry 5, before entry 7, which was committed"):
        RaftJournal(wal, recovered, base)


def test_a_log_that_begins_right_behind_the_snapshot_is_joined_to_it() -> None:
    disk = SimDisk()
    wal = Wal.create(disk, ME, first_index=51, hard_state=HardState(3, None, 50))
    wal.append_entry(*entry(51, 3))
    wal.flush()
    wal, recovered = Wal.open(disk, ME)
    assert [e[1:] for e in content(RaftJournal(wal, recovered, Base(50, 3)))] == [(50, 3), (51, 3)]


def test_the_bytes_held_are_counted_through_every_change() -> None:
    r = replica(*ONE_TO_FIVE)
    assert r.journal.bytes_in_log == 100
    r.journal.deleteEntriesFrom(2)
    assert r.journal.bytes_in_log == 100
    r.journal.add(*entry(3, 2, size=7))
    assert r.journal.bytes_in_log == 47
    r.journal.handler_ended()
    r.journal.deleteEntriesTo(1)
    assert r.journal.bytes_in_log == 27
    r.journal.install(90, 9)
    assert r.journal.bytes_in_log == 1
