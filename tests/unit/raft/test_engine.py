"""The engine against single messages: what it must never do, whatever a peer says."""

from __future__ import annotations

import pytest

from controlplane.base.clock import ManualClock
from controlplane.base.errors import CorruptStateError
from controlplane.base.rand import SeededRand
from controlplane.pb.quarterdeck.internal.v1 import raft_pb2
from controlplane.raft.config import RaftConfig
from controlplane.raft.engine import Engine, Role
from controlplane.raft.journal import RaftJournal
from tests.unit.raft.memory import memory_journal


class Bench:
    """One engine of a cluster of five, and what it applied."""

    def __init__(self, members: int = 5) -> None:
        self.clock = ManualClock()
        self.applied: list[tuple[int, int, bytes | None]] = []
        self.journal: RaftJournal = memory_journal()
        self.engine = Engine(
            config=RaftConfig(),
            member_id=1,
            peer_ids=range(2, members + 1),
            journal=self.journal,
            clock=self.clock,
            rand=SeededRand(7),
            apply=lambda index, term, data: self.applied.append((index, term, data)),
            applied_index=0,
        )
        for peer in range(2, members + 1):
            self.engine.connected(peer)

    def append(
        self,
        leader: int,
        term: int,
        prev: tuple[int, int],
        entries: list[tuple[int, bytes]],
        commit: int = 1,
        seq: int = 1,
        news: bool = False,
    ) -> raft_pb2.NextIndex | None:
        """AppendEntries with (term, data) entries behind ``prev``; the answer, if any."""
        message = raft_pb2.AppendEntries(
            commit_index=commit,
            prev_index=prev[0],
            prev_term=prev[1],
            seq=seq,
            news=news,
            entries=[
                raft_pb2.Entry(index=prev[0] + 1 + n, term=entry_term, data=data)
                for n, (entry_term, data) in enumerate(entries)
            ],
        )
        self.engine.receive(leader, raft_pb2.RaftMessage(term=term, append_entries=message))
        answers = [m.next_index for _, m in self.engine.take_messages() if m.HasField("next_index")]
        return answers[0] if answers else None

    def stand(self) -> int:
        """Become a candidate; the term."""
        self.clock.advance(1.1)
        self.engine.tick()
        for peer, message in self.engine.take_messages():
            reply = raft_pb2.PreVoteReply(seq=message.pre_vote.seq, granted=True)
            self.engine.receive(peer, raft_pb2.RaftMessage(term=self.engine.term, pre_vote_reply=reply))
        self.engine.tick()
        assert self.engine.role is Role.CANDIDATE
        self.engine.take_messages()
        return self.engine.term

    def vote(self, peer: int, term: int) -> None:
        self.engine.receive(peer, raft_pb2.RaftMessage(term=term, vote=raft_pb2.Vote()))

    def lead(self) -> int:
        term = self.stand()
        for peer in (2, 3):
            self.vote(peer, term)
        assert self.engine.is_leader
        return term

    def ack(self, peer: int, term: int, index: int, seq: int = 1_000) -> None:
        answer = raft_pb2.NextIndex(next_index=index + 1, success=True, seq=seq)
        self.engine.receive(peer, raft_pb2.RaftMessage(term=term, next_index=answer))

    def data(self) -> list[bytes]:
        return [command[1:] for command, _, _ in self.engine.entries(2, self.engine.last_index + 1)]


def test_a_voter_that_answers_twice_is_counted_once() -> None:
    bench = Bench()
    term = bench.stand()
    bench.vote(2, term)
    bench.vote(2, term)
    assert bench.engine.role is Role.CANDIDATE
    bench.vote(3, term)
    assert bench.engine.is_leader


def test_a_vote_of_an_earlier_term_does_not_count() -> None:
    bench = Bench()
    old = bench.stand()
    new = bench.stand()
    bench.vote(2, old)
    bench.vote(3, old)
    assert bench.engine.role is Role.CANDIDATE
    bench.vote(2, new)
    bench.vote(3, new)
    assert bench.engine.is_leader


def test_an_acknowledgement_of_another_term_commits_nothing() -> None:
    bench = Bench()
    term = bench.lead()
    for peer in (2, 3, 4):
        bench.ack(peer, term - 1, bench.engine.last_index)
    bench.engine.tick()
    assert bench.engine.commit_index == 1
    for peer in (2, 3):
        bench.ack(peer, term, bench.engine.last_index)
    bench.engine.tick()
    assert bench.engine.commit_index == bench.engine.last_index


def test_a_resent_prefix_never_shortens_the_log() -> None:
    bench = Bench()
    entries = [(1, bytes([n])) for n in range(10)]
    bench.append(2, 1, (1, 0), entries, commit=11)
    bench.engine.tick()
    answer = bench.append(2, 1, (1, 0), entries[:3], commit=11)
    assert answer is not None
    assert (answer.success, answer.next_index) == (True, 5)
    assert bench.data() == [data for _, data in entries]
    assert bench.engine.commit_index == 11


def test_a_conflicting_tail_is_replaced() -> None:
    bench = Bench()
    bench.append(2, 1, (1, 0), [(1, b"a"), (1, b"b"), (1, b"c")])
    bench.append(3, 2, (2, 1), [(2, b"B")])
    assert bench.data() == [b"a", b"B"]


def test_an_unverified_tail_is_not_committed_by_a_heartbeat() -> None:
    bench = Bench()
    bench.append(2, 1, (1, 0), [(1, b"a"), (1, b"stale")])
    bench.append(3, 2, (2, 1), [], commit=50)
    bench.engine.tick()
    assert bench.engine.commit_index == 2
    assert [data for _, _, data in bench.applied] == [None, b"a"]


def test_the_heartbeat_to_a_follower_that_needs_a_snapshot_commits_nothing() -> None:
    bench = Bench()
    bench.append(2, 1, (1, 0), [(1, b"stale")])
    bench.engine.receive(3, raft_pb2.RaftMessage(term=2, leader_alive=raft_pb2.LeaderAlive(seq=4)))
    bench.engine.tick()
    assert bench.engine.commit_index == 1
    assert bench.engine.leader == 3
    ((peer, answer),) = [(p, m.next_index) for p, m in bench.engine.take_messages() if m.HasField("next_index")]
    assert (peer, answer.next_index, answer.success, answer.reset) == (3, 2, False, False)


def test_a_leader_that_contradicts_a_committed_entry_stops_the_replica() -> None:
    bench = Bench()
    bench.append(2, 1, (1, 0), [(1, b"a")], commit=2)
    with pytest.raises(CorruptStateError, match="diverged"):
        bench.append(3, 2, (1, 0), [(2, b"A")])


def test_two_leaders_in_one_term_stop_the_replica() -> None:
    bench = Bench()
    bench.append(2, 1, (1, 0), [])
    with pytest.raises(CorruptStateError, match="two leaders in term 1"):
        bench.append(3, 1, (1, 0), [])


def test_a_mismatch_is_answered_with_the_start_of_the_conflicting_term() -> None:
    bench = Bench()
    bench.append(2, 1, (1, 0), [(1, bytes([n])) for n in range(20)], commit=5)
    answer = bench.append(3, 3, (15, 2), [(3, b"x")])
    assert answer is not None
    assert (answer.reset, answer.success, answer.next_index) == (True, False, 6)


def test_a_leader_ignores_a_rewind_that_answers_what_was_sent_before_the_last_one() -> None:
    bench = Bench()
    term = bench.lead()
    rewind = raft_pb2.RaftMessage(term=term, next_index=raft_pb2.NextIndex(next_index=1, reset=True, seq=1))
    bench.engine.take_messages()
    bench.clock.advance(0.06)
    bench.engine.tick()
    bench.engine.take_messages()
    bench.engine.receive(
        2, raft_pb2.RaftMessage(term=term, next_index=raft_pb2.NextIndex(next_index=2, reset=True, seq=1))
    )
    bench.clock.advance(0.001)
    bench.engine.tick()
    resent = [m for p, m in bench.engine.take_messages() if p == 2]
    assert [len(m.append_entries.entries) for m in resent] == [1]
    bench.engine.receive(2, rewind)
    bench.clock.advance(0.001)
    bench.engine.tick()
    assert bench.engine.take_messages() == []


def test_a_follower_with_a_longer_log_does_not_push_the_leader_beyond_its_own() -> None:
    bench = Bench()
    term = bench.lead()
    bench.engine.receive(
        2, raft_pb2.RaftMessage(term=term, next_index=raft_pb2.NextIndex(next_index=500, reset=True, seq=1))
    )
    bench.clock.advance(0.06)
    bench.engine.tick()
    sent = [m.append_entries for p, m in bench.engine.take_messages() if p == 2 and m.HasField("append_entries")]
    assert sent[-1].prev_index == bench.engine.last_index


def test_a_leader_without_a_quorum_steps_down_before_anyone_can_be_elected() -> None:
    bench = Bench()
    bench.lead()
    bench.clock.advance(RaftConfig().step_down_ms / 1000 + 0.001)
    bench.engine.tick()
    assert not bench.engine.is_leader
    assert bench.engine.leader is None
    assert bench.engine.next_wake() >= bench.clock.monotonic() + 0.5


def test_the_death_of_the_leader_pulls_the_election_in() -> None:
    bench = Bench()
    bench.append(2, 1, (1, 0), [])
    bench.engine.peer_died(3)
    assert bench.engine.next_wake() > bench.clock.monotonic() + 0.4
    bench.engine.peer_died(2)
    assert bench.clock.monotonic() + 0.004 < bench.engine.next_wake() < bench.clock.monotonic() + 0.036


def test_a_vote_is_given_once_per_term() -> None:
    bench = Bench()
    for peer in (2, 3):
        ask = raft_pb2.RequestVote(last_index=5, last_term=1)
        bench.engine.receive(peer, raft_pb2.RaftMessage(term=7, request_vote=ask))
    votes = [peer for peer, m in bench.engine.take_messages() if m.HasField("vote")]
    assert votes == [2]
    assert bench.journal.getVotedForNodeId() == f"{2:016x}"


def test_an_exception_of_the_state_machine_leaves_the_tick() -> None:
    bench = Bench(members=1)

    def broken(index: int, term: int, data: bytes | None) -> None:
        raise CorruptStateError("disagree")

    bench.engine._apply_entry = broken
    bench.clock.advance(1.1)
    with pytest.raises(CorruptStateError, match="disagree"):
        bench.engine.tick()


def test_an_unknown_kind_of_entry_is_never_applied() -> None:
    bench = Bench(members=1)
    bench.clock.advance(1.1)
    bench.engine.tick()
    bench.journal.add(b"\x03evil", bench.engine.last_index + 1, bench.engine.term)
    with pytest.raises(CorruptStateError, match="unknown kind"):
        bench.engine.tick()


def test_a_write_left_over_from_a_lost_leadership_is_dropped_and_not_sent_to_the_next_leader() -> None:
    """A process that is stopped for a moment inside the library's tick leaves its queue unread until the next one."""
    b = Bench()
    term = b.lead()
    monotonic = b.clock.monotonic
    in_tick = 0

    def stopped_in_the_tick() -> float:
        nonlocal in_tick
        in_tick += 1
        b.clock.advance(0.06)  # longer than the library gives its queue in one tick
        return monotonic()

    b.engine.append(b"left over")
    b.clock.monotonic = stopped_in_the_tick  # type: ignore[method-assign]
    b.engine.tick()
    b.clock.monotonic = monotonic  # type: ignore[method-assign]
    assert in_tick > 0
    assert b.engine.last_index == 2, "the write is still in the library's queue"
    b.append(leader=2, term=term + 1, prev=(1, 0), entries=[(term + 1, b"x")])
    b.engine.tick()
    assert b.engine.entries(2, 3) == [(b"\x00x", 2, term + 1)]
    assert b.engine.last_index == 2


def _appends(bench: Bench, peer: int) -> list[raft_pb2.AppendEntries]:
    sent = bench.engine.take_messages()
    return [m.append_entries for to, m in sent if to == peer and m.HasField("append_entries")]


def _majority_acks(bench: Bench, term: int) -> None:
    for peer in (2, 3):
        bench.ack(peer, term, bench.engine.last_index)


def _lead_settled(bench: Bench) -> int:
    """Lead, with the first entry committed and everybody told; the term."""
    term = bench.lead()
    bench.engine.tick()
    bench.engine.take_messages()
    _majority_acks(bench, term)
    bench.engine.tick()
    bench.engine.take_messages()
    return term


def test_a_new_commit_index_is_told_at_once_and_as_news() -> None:
    bench = Bench()
    term = _lead_settled(bench)
    bench.engine.append(b"x")
    bench.engine.tick()
    (entries,) = _appends(bench, 4)
    assert (len(entries.entries), entries.news) == (1, False)
    _majority_acks(bench, term)
    bench.engine.tick()
    (news,) = _appends(bench, 4)
    assert (list(news.entries), news.news, news.commit_index) == ([], True, bench.engine.last_index)


def test_entries_of_the_same_turn_tell_the_commit_index_alone() -> None:
    bench = Bench()
    term = _lead_settled(bench)
    bench.engine.append(b"x")
    bench.engine.tick()
    bench.engine.take_messages()
    committed = bench.engine.last_index
    _majority_acks(bench, term)
    bench.engine.append(b"y")
    bench.engine.tick()
    (both,) = _appends(bench, 4)
    assert (len(both.entries), both.news, both.commit_index) == (1, False, committed)


def test_a_heartbeat_that_is_due_is_no_news_though_it_tells_some() -> None:
    """Whether a majority still follows is known from answers: at least one in every heartbeat's time is asked for."""
    bench = Bench()
    term = _lead_settled(bench)
    bench.engine.append(b"x")
    bench.engine.tick()
    bench.engine.take_messages()
    _majority_acks(bench, term)
    bench.clock.advance(0.051)
    bench.engine.tick()
    (heartbeat,) = _appends(bench, 4)
    assert (list(heartbeat.entries), heartbeat.news) == ([], False)


def test_news_is_heard_and_not_answered_where_the_log_matches() -> None:
    bench = Bench()
    assert bench.append(2, 1, (1, 0), [(1, b"x")], seq=1) is not None
    assert bench.append(2, 1, (2, 1), [], commit=2, seq=2, news=True) is None
    bench.engine.tick()
    assert bench.engine.commit_index == 2
    assert bench.applied[-1] == (2, 1, b"x")
    heartbeat = bench.append(2, 1, (2, 1), [], commit=2, seq=3)
    assert heartbeat is not None
    assert (heartbeat.success, heartbeat.next_index, heartbeat.seq) == (True, 3, 3)


def test_news_is_answered_where_the_log_does_not_match_or_the_term_is_over() -> None:
    bench = Bench()
    assert bench.append(2, 3, (1, 0), [(3, b"x")], seq=1) is not None
    shorter = bench.append(2, 3, (5, 3), [], commit=5, seq=2, news=True)
    assert shorter is not None
    assert (shorter.reset, shorter.next_index, shorter.seq) == (True, 3, 2)
    old = bench.append(3, 2, (2, 2), [], commit=1, seq=1, news=True)
    assert old is not None
    assert not old.success
    assert bench.engine.commit_index == 1


def test_entries_are_answered_whatever_they_are_called() -> None:
    bench = Bench()
    answer = bench.append(2, 1, (1, 0), [(1, b"x")], seq=1, news=True)
    assert answer is not None
    assert answer.success
