"""A cluster that has a leader is not disturbed. Pre-vote, stickiness, check-quorum, hand-over: in virtual time."""

from __future__ import annotations

import pytest

from controlplane.base.errors import StatusError
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import NextIndex, RaftMessage, RequestVote
from controlplane.raft.config import RaftConfig
from controlplane.raft.types import Applied, Outcome
from tests.unit.raft.fleet import Fleet

STEP_DOWN_S = RaftConfig().step_down_ms / 1000


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_replica_that_comes_back_from_isolation_disturbs_nobody(seed: int) -> None:
    fleet = Fleet(3, seed=seed)
    leader = fleet.elect()
    term = fleet.cores[leader].engine.term
    lonely = leader % 3 + 1
    fleet.isolate(lonely)
    fleet.pass_time(10)
    assert fleet.cores[lonely].engine.term == term
    fleet.cut.clear()
    fleet.pass_time(3)
    assert fleet.led == [(leader, term)]
    assert fleet.cores[lonely].engine.leader == leader


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_chain_where_the_ends_do_not_hear_each_other_keeps_its_leader(seed: int) -> None:
    fleet = Fleet(3, seed=seed)
    leader = fleet.elect()
    end = leader % 3 + 1
    fleet.cut_both(leader, end)
    fleet.pass_time(60)
    assert len(fleet.led) == 1
    middle = ({1, 2, 3} - {leader, end}).pop()
    told = fleet.put(middle, b"w")
    fleet.pass_time(0.1)
    assert isinstance(told[0], Applied)


@pytest.mark.parametrize("deaf", [True, False])
def test_a_leader_cut_in_one_direction_gives_up_within_an_election_timeout(deaf: bool) -> None:
    fleet = Fleet(3)
    old = fleet.elect()
    others = {1, 2, 3} - {old}
    fleet.cut |= {(o, old) for o in others} if deaf else {(old, o) for o in others}
    fleet.pass_time(STEP_DOWN_S + 0.06)
    assert not fleet.cores[old].engine.is_leader
    fleet.pass_time(2.5)
    assert fleet.leader() != old
    fleet.cut.clear()
    fleet.pass_time(2)
    leader = fleet.leader()
    assert {c.engine.leader for c in fleet.cores.values()} == {leader}


def test_a_follower_that_only_cannot_hear_its_leader_disturbs_nobody() -> None:
    fleet = Fleet(3)
    leader = fleet.elect()
    fleet.cut.add((leader, leader % 3 + 1))
    fleet.pass_time(20)
    assert len(fleet.led) == 1


def test_two_leaders_never_overlap_when_the_old_one_is_cut_off() -> None:
    fleet = Fleet(5)
    old = fleet.elect()
    fleet.isolate(old)
    for _ in range(300):
        fleet.clock.advance(0.01)
        fleet.settle()
        assert len([n for n, c in fleet.cores.items() if c.engine.is_leader]) <= 1
    assert len(fleet.led) == 2


@pytest.mark.parametrize("seed", range(1, 6))
def test_the_death_of_the_leader_is_answered_at_once(seed: int) -> None:
    fleet = Fleet(3, seed=seed)
    old = fleet.elect()
    fleet.kill(old)
    fleet.pass_time(0.3)
    assert fleet.leader() != old


def test_a_vote_is_refused_while_a_leader_lives_unless_the_leader_asked_for_the_election() -> None:
    fleet = Fleet(3)
    leader = fleet.elect()
    a, b = sorted({1, 2, 3} - {leader})
    term = fleet.cores[leader].engine.term
    ask = RequestVote(last_index=1_000, last_term=term)
    for target in (leader, a):
        fleet.cores[target].receive(b, RaftMessage(term=term + 1, request_vote=ask))
    fleet.settle()
    assert {c.engine.term for c in fleet.cores.values()} == {term}
    ask.transfer = True
    fleet.cores[a].receive(b, RaftMessage(term=term + 1, request_vote=ask))
    fleet.settle(1)
    assert fleet.cores[a].engine.term == term + 1


def test_a_replica_stuck_in_a_later_term_is_heard_and_comes_back() -> None:
    fleet = Fleet(3)
    leader = fleet.elect()
    stuck = leader % 3 + 1
    fleet.cores[stuck].engine._elections.enter(50)
    fleet.pass_time(3)
    assert {c.engine.leader for c in fleet.cores.values()} == {fleet.leader()}
    assert fleet.cores[stuck].engine.term > 50


def test_a_leader_that_hears_of_a_later_term_gives_way() -> None:
    fleet = Fleet(3)
    leader = fleet.elect()
    news = RaftMessage(term=9, next_index=NextIndex(next_index=1))
    fleet.cores[leader].receive(leader % 3 + 1, news)
    fleet.settle(1)
    assert fleet.cores[leader].engine.term == 9
    assert not fleet.cores[leader].engine.is_leader


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_leader_that_is_asked_hands_over_and_no_write_is_lost(seed: int) -> None:
    fleet = Fleet(3, seed=seed)
    leader = fleet.elect()
    target = leader % 3 + 1
    moved: list[StatusError | None] = []
    writes: list[list[Outcome]] = [fleet.put(n, f"a{n}".encode()) for n in (1, 2, 3)]
    fleet.cores[leader].transfer(target, deadline=fleet.clock.monotonic() + 5, done=moved.append)
    writes += [fleet.put(n, f"b{n}".encode()) for n in (1, 2, 3)]
    fleet.pass_time(0.05)
    assert moved == [None]
    assert fleet.leader() == target
    fleet.pass_time(0.05)
    assert all(isinstance(told[0], Applied) for told in writes)


def test_whoever_has_the_whole_log_first_takes_over_unless_somebody_was_named() -> None:
    fleet = Fleet(3)
    leader = fleet.elect()
    quick, slow = sorted({1, 2, 3} - {leader})
    fleet.cut.add((leader, slow))
    told = fleet.put(leader, b"w")
    fleet.settle(1)
    moved: list[StatusError | None] = []
    fleet.cores[leader].transfer(None, deadline=fleet.clock.monotonic() + 5, done=moved.append)
    fleet.pass_time(0.05)
    assert moved == [None]
    assert fleet.leader() == quick
    assert isinstance(told[0], Applied)


def test_a_successor_that_does_not_answer_is_replaced_by_the_next_unless_it_was_named() -> None:
    fleet = Fleet(3)
    leader = fleet.elect()
    other, first_choice = sorted({1, 2, 3} - {leader})
    fleet.cut.add((leader, first_choice))
    moved: list[StatusError | None] = []
    fleet.cores[leader].transfer(None, deadline=fleet.clock.monotonic() + 5, done=moved.append)
    fleet.pass_time(0.3)
    assert moved == [None]
    assert fleet.leader() == other


def test_a_leader_whose_successor_does_not_answer_goes_on() -> None:
    fleet = Fleet(3)
    leader = fleet.elect()
    target = leader % 3 + 1
    moved: list[StatusError | None] = []
    fleet.cut.add((leader, target))
    fleet.cores[leader].transfer(target, deadline=fleet.clock.monotonic() + 5, done=moved.append)
    told = fleet.put(leader, b"w")
    fleet.pass_time(0.1)
    assert not told, "the log stands still while the successor is expected"
    fleet.pass_time(0.6)
    assert isinstance(moved[0], StatusError)
    assert isinstance(told[0], Applied)
    assert fleet.leader() == leader


def test_a_leader_does_not_hold_writes_for_a_successor_that_is_far_behind() -> None:
    fleet = Fleet(3)
    leader = fleet.elect()
    target = leader % 3 + 1
    fleet.cut.add((leader, target))
    for n in range(30):
        fleet.put(leader, f"w{n}".encode())
        fleet.settle()
    fleet.cores[leader].transfer(target, deadline=fleet.clock.monotonic() + 1, done=lambda error: None)
    told = fleet.put(leader, b"last")
    fleet.pass_time(0.05)
    assert isinstance(told[0], Applied)


def test_peers_of_a_version_without_pre_vote_still_elect() -> None:
    fleet = Fleet(3)
    for core in fleet.cores.values():
        for peer in sorted({1, 2, 3} - {core.me.id}):
            core.link_up(peer, knows_pre_vote=False)
    fleet.pass_time(3)
    assert fleet.leader()


def test_a_leader_that_loses_its_quorum_in_the_middle_of_a_transfer_says_so_in_time_and_rests() -> None:
    fleet = Fleet(3)
    leader = fleet.elect()
    core = fleet.cores[leader]
    moved: list[StatusError | None] = []
    fleet.isolate(leader)
    core.transfer(leader % 3 + 1, deadline=fleet.clock.monotonic() + 5, done=moved.append)
    fleet.pass_time(0.6)
    assert not core.engine.is_leader
    fleet.pass_time(0.2)
    assert isinstance(moved[0], StatusError)
    assert core.next_wake() > fleet.clock.monotonic()
