"""The core's turn between three replicas whose messages move by hand: reads, writes, leadership, durability order."""

from __future__ import annotations

from collections import deque

import pytest

from controlplane.base.clock import ManualClock
from controlplane.base.errors import StatusError
from controlplane.base.rand import SeededRand
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Proposal
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import Forward, RaftMessage
from controlplane.raft.config import RaftConfig
from controlplane.raft.core import Core, Turn
from controlplane.raft.types import Applied, Member, NeverSent, Outcome, RemoveMember, Unknown
from tests.unit.raft.fleet import Fleet
from tests.unit.raft.memory import memory_journal
from tests.unit.raft.toy import ToyMachine

MEMBERS = [Member(n, f"r{n}", "", "") for n in (1, 2, 3)]


class Trio:
    """Three cores and the messages between them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.machines = {n: ToyMachine() for n in (1, 2, 3)}
        self.cores = {
            n: Core(
                config=RaftConfig(),
                me=MEMBERS[n - 1],
                members=MEMBERS,
                journal=memory_journal(),
                state_machine=self.machines[n],
                clock=self.clock,
                rand=SeededRand(n),
            )
            for n in (1, 2, 3)
        }
        self.wires: dict[tuple[int, int], deque[RaftMessage]] = {}
        self.cut: set[tuple[int, int]] = set()
        self.leadership: list[tuple[int, int, bool]] = []
        for a in (1, 2, 3):
            for b in (1, 2, 3):
                if a != b:
                    self.wires[a, b] = deque()
                    self.cores[a].link_up(b)

    def step(self, n: int) -> Turn:
        turn = self.cores[n].step()
        for peer, message in (*turn.ahead, *turn.messages):
            self.wires[n, peer].append(message)
        for done, outcome in turn.outcomes:
            done(outcome)
        for read_done, result in turn.reads:
            read_done(result)
        self.leadership += [(n, term, leading) for term, leading in turn.leadership]
        return turn

    def settle(self, rounds: int = 8) -> None:
        """Let everything that needs no time happen."""
        for _ in range(rounds):
            for (a, b), wire in self.wires.items():
                while wire:
                    message = wire.popleft()
                    if (a, b) not in self.cut:
                        self.cores[b].receive(a, message)
            for n in (1, 2, 3):
                self.step(n)

    def pass_time(self, seconds: float) -> None:
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end:
            self.clock.advance(0.02)
            self.settle(4)

    def elect(self) -> int:
        self.pass_time(2.5)
        (leader,) = [n for n, c in self.cores.items() if c.engine.is_leader]
        return leader

    def isolate(self, n: int) -> None:
        self.cut |= {pair for pair in self.wires if n in pair}

    def propose(self, n: int, payload: bytes, timeout_s: float = 5.0) -> list[Outcome]:
        told: list[Outcome] = []
        deadline = self.clock.monotonic() + timeout_s
        self.cores[n].propose(payload, request_id=payload.ljust(16), deadline=deadline, done=told.append)
        return told

    def read(self, n: int, timeout_s: float = 5.0) -> list[int | StatusError]:
        told: list[int | StatusError] = []
        self.cores[n].read(deadline=self.clock.monotonic() + timeout_s, done=told.append)
        return told


def test_a_write_through_any_replica_is_answered_there_and_applied_everywhere() -> None:
    trio = Trio()
    trio.elect()
    told = [trio.propose(n, f"w{n}".encode()) for n in (1, 2, 3)]
    trio.settle()
    assert all(isinstance(outcomes[0], Applied) for outcomes in told)
    assert trio.machines[1].log == trio.machines[2].log == trio.machines[3].log
    assert sorted(trio.machines[1].log) == [b"w1", b"w2", b"w3"]


def test_a_read_sees_every_write_that_was_answered_before_it() -> None:
    trio = Trio()
    leader = trio.elect()
    follower = leader % 3 + 1
    trio.propose(leader, b"w")
    trio.settle()
    told = trio.read(follower)
    trio.settle()
    assert isinstance(told[0], int)
    assert trio.machines[follower].log == [b"w"]


def test_reads_that_wait_together_cost_one_round() -> None:
    trio = Trio()
    leader = trio.elect()
    told = [trio.read(leader) for _ in range(50)]
    turn = trio.step(leader)
    probes = [m for _, m in turn.ahead if m.HasField("probe")]
    assert len(probes) == 2
    trio.settle()
    assert all(isinstance(results[0], int) for results in told)


def test_a_leader_sends_its_entries_ahead_of_its_own_sync_and_a_follower_its_word_after_it() -> None:
    trio = Trio()
    leader = trio.elect()
    trio.propose(leader, b"w")
    turn = trio.step(leader)
    assert [m.append_entries.entries[0].index for _, m in turn.ahead] == [trio.cores[leader].engine.last_index] * 2
    assert not turn.messages
    follower = leader % 3 + 1
    trio.cores[follower].receive(leader, trio.wires[leader, follower].popleft())
    answer = trio.step(follower)
    assert not answer.ahead
    assert [m.WhichOneof("body") for _, m in answer.messages] == ["next_index"]


def test_an_entry_is_committed_only_in_a_step_after_the_leader_synced_it() -> None:
    trio = Trio()
    leader = trio.elect()
    told = trio.propose(leader, b"w")
    first = trio.step(leader)
    assert not first.outcomes
    trio.settle()
    assert isinstance(told[0], Applied)
    next_told = trio.propose(leader, b"x")
    assert trio.step(leader).settled
    assert next_told == []


def test_what_a_replica_says_in_the_turn_of_its_election_waits_for_its_disk() -> None:
    trio = Trio()
    leader = trio.elect()
    trio.isolate(leader)
    others = [n for n in (1, 2, 3) if n != leader]
    turns: list[tuple[bool, Turn]] = []
    for _ in range(400):
        trio.clock.advance(0.01)
        for n in others:
            before = (trio.cores[n].role, trio.cores[n].engine.term)
            for peer in others:
                wire = trio.wires.get((peer, n), deque())
                while wire:
                    trio.cores[n].receive(peer, wire.popleft())
            turn = trio.step(n)
            turns.append(((trio.cores[n].role, trio.cores[n].engine.term) == before, turn))
    disturbed = [turn for undisturbed, turn in turns if not undisturbed]
    assert any(m.HasField("append_entries") for turn in disturbed for _, m in turn.messages)
    assert not any(turn.settled or turn.ahead for turn in disturbed)


def test_a_replica_that_votes_alone_lets_nothing_out_before_its_disk_has_it() -> None:
    alone = Core(
        config=RaftConfig(),
        me=MEMBERS[0],
        members=MEMBERS[:1],
        journal=memory_journal(),
        state_machine=ToyMachine(),
        clock=(clock := ManualClock()),
        rand=SeededRand(1),
    )
    told: list[Outcome] = []
    alone.propose(b"w", request_id=b"w" * 16, deadline=60.0 + clock.monotonic(), done=told.append)
    durable = 0
    answered = False
    for _ in range(400):
        clock.advance(0.01)
        turn = alone.step()
        assert not turn.settled or alone.engine.commit_index <= durable or not alone.engine.is_leader
        answered = answered or any(isinstance(outcome, Applied) for _, outcome in turn.outcomes)
        durable = alone.engine.last_index
    assert answered


def test_a_replica_that_votes_alone_waits_for_its_election_and_does_not_spin_for_it() -> None:
    journal = memory_journal()
    for index, term in ((1, 0), (2, 1), (3, 1)):
        journal.add(b"\x01", index, term)
    alone = Core(
        config=RaftConfig(),
        me=MEMBERS[0],
        members=MEMBERS[:1],
        journal=journal,
        state_machine=ToyMachine(),
        clock=(clock := ManualClock()),
        rand=SeededRand(1),
    )
    alone.step()
    assert alone.engine.commit_index < alone.engine.last_index, "a kill came before the commit index was on disk"
    assert not alone.has_work
    clock.advance(alone.next_wake() - clock.monotonic() + 0.001)
    alone.step()
    assert alone.engine.is_leader
    while alone.has_work:
        alone.step()
    assert alone.engine.commit_index == alone.engine.last_index == 4


def test_a_leader_that_is_left_alone_lets_nothing_out_before_its_disk_has_the_change() -> None:
    fleet = Fleet(2)
    fleet.pass_time(2.5)
    leader = fleet.leader()
    core = fleet.cores[leader]
    told: list[Outcome] = []
    core.propose(b"w", request_id=b"w" * 16, deadline=60.0 + fleet.clock.monotonic(), done=told.append)
    core.step()  # the write is in its log, and in no other
    index = fleet.change(RemoveMember(3 - leader))
    turn = core.step()
    assert core.engine.commit_index == index, (
        "alone it is a majority: the removal is committed in the turn that writes it"
    )
    assert [type(outcome) for _, outcome in turn.outcomes] == [Applied]
    assert not turn.settled
    assert not turn.ahead
    assert any(m.HasField("append_entries") for _, m in turn.messages), "the other one hears of it, later"
    assert core.step().settled


def test_an_isolated_leader_answers_no_read_and_no_write() -> None:
    trio = Trio()
    old = trio.elect()
    trio.isolate(old)
    told_read, told_write = trio.read(old, 2.0), trio.propose(old, b"w", 2.0)
    trio.settle()
    assert (told_read, told_write) == ([], [])
    trio.pass_time(3.0)
    assert isinstance(told_read[0], StatusError)
    assert isinstance(told_write[0], Unknown)
    assert not trio.cores[old].engine.is_leader


def test_a_write_taken_by_an_isolated_leader_is_carried_to_the_next_one() -> None:
    trio = Trio()
    old = trio.elect()
    trio.isolate(old)
    told = trio.propose(old, b"w", 20.0)
    trio.pass_time(3.0)
    trio.cut.clear()
    trio.pass_time(3.0)
    assert isinstance(told[0], Applied)
    assert trio.machines[1].log == [b"w"]


def test_a_write_without_a_leader_was_never_sent() -> None:
    trio = Trio()
    for n in (1, 2, 3):
        trio.isolate(n)
    told = trio.propose(1, b"w", 1.0)
    trio.pass_time(1.5)
    assert isinstance(told[0], NeverSent)


def test_leadership_is_announced_after_an_own_entry_is_committed_and_withdrawn_at_its_end() -> None:
    trio = Trio()
    old = trio.elect()
    term = trio.cores[old].engine.term
    assert (old, term, True) in trio.leadership
    trio.isolate(old)
    trio.pass_time(2.5)
    assert (old, term, False) in trio.leadership
    winners = [(n, t) for n, t, leading in trio.leadership if leading]
    assert len({t for _, t in winners}) == len(winners)


def test_a_stopping_leader_hands_over_without_an_election_timeout() -> None:
    trio = Trio()
    old = trio.elect()
    trio.cores[old].step_aside()
    trio.clock.advance(0.001)
    trio.settle()
    (new,) = [n for n, c in trio.cores.items() if c.engine.is_leader]
    assert new != old
    assert trio.cores[old].engine.leader == new


def test_a_replica_is_ready_only_after_it_caught_up_with_a_leader() -> None:
    trio = Trio()
    trio.isolate(3)
    trio.elect()
    assert [trio.cores[n].ready for n in (1, 2, 3)] == [True, True, False]
    trio.cut.clear()
    trio.pass_time(2.0)
    assert trio.cores[3].ready


def test_stopping_does_not_make_a_replica_ready() -> None:
    trio = Trio()
    turn = trio.cores[1].abandon("stopped")
    for read_done, result in turn.reads:
        read_done(result)
    assert not trio.cores[1].ready


def test_what_peers_send_while_a_turn_cannot_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.raft.core.INBOX_BYTES_MAX", 10_000)
    trio = Trio()
    leader = trio.elect()
    follower = next(n for n in trio.cores if n != leader)
    trio.isolate(follower)
    told = [trio.propose(leader, bytes([n]) * 900) for n in range(40)]
    trio.pass_time(0.5)
    core = trio.cores[follower]
    for wire in (trio.wires[leader, follower],):
        wire.clear()
    entries = trio.cores[leader].engine.entries(1, 10_000)
    for _ in range(20):
        core.receive(
            leader, RaftMessage(term=1, forward=Forward(proposals=[Proposal(request_id=b"x", payload=bytes(900))]))
        )
    assert core.dropped > 0
    trio.cut.clear()
    trio.pass_time(2)
    assert all(told)
    assert core.engine.last_index >= len(entries)
    assert trio.machines[follower].log == trio.machines[leader].log
