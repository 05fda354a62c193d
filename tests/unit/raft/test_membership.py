"""Changes of the membership between cores in virtual time: one at a time, through the log, and back if it is cut."""

from __future__ import annotations

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import AppendEntries, Entry, RaftMessage
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader
from controlplane.raft.core import Core
from controlplane.raft.membership import Membership, Memberships, membership_of, to_wire
from controlplane.raft.types import AddMember, Applied, Member, Outcome, PromoteMember, RemoveMember, UpdateMember
from tests.unit.raft.fleet import Fleet, member
from tests.unit.raft.test_engine import Bench

FOUNDERS = Membership(tuple(member(n) for n in (1, 2, 3)))
ATTEMPT = b"a" * 16


def added(core: Core) -> Member:
    """The member that is not a founder."""
    return next(m for m in core.members if m.id > 1_000)


def refused(call: object) -> str:
    with pytest.raises(StatusError) as caught:
        call()  # type: ignore[operator]
    return caught.value.message


# -- the rules of one change -------------------------------------------------------------------------------------------


def test_an_id_that_was_removed_never_comes_back_and_an_address_gets_a_new_one() -> None:
    gone = FOUNDERS.changed(RemoveMember(2), attempt_id=b"1", index=9)
    assert gone.voters == {1, 3}
    assert (gone.removed[0].id, gone.removed[0].index) == (2, 9)
    back = gone.changed(AddMember("h:2"), attempt_id=b"2", index=10)
    assert added_id(back) not in (1, 2, 3)
    again = gone.changed(AddMember("h:2"), attempt_id=b"3", index=10)
    assert added_id(again) != added_id(back)


def added_id(membership: Membership) -> int:
    return next(m.id for m in membership.members if m.id > 1_000)


def test_changes_that_do_not_fit_are_refused_in_etcds_words() -> None:
    def text(change: AddMember | RemoveMember | PromoteMember | UpdateMember, before: Membership = FOUNDERS) -> str:
        return refused(lambda: before.changed(change, attempt_id=ATTEMPT, index=9))

    one_learner = FOUNDERS.changed(AddMember("h:4"), attempt_id=ATTEMPT, index=9)
    assert text(AddMember("h:2")) == "etcdserver: Peer URLs already exists"
    assert text(RemoveMember(7)) == "etcdserver: member not found"
    assert text(PromoteMember(1)) == "etcdserver: can only promote a learner member"
    assert text(AddMember("h:5"), one_learner) == "etcdserver: too many learner members in cluster"
    assert text(UpdateMember(1, peer_address="h:2")) == "etcdserver: Peer URLs already exists"
    assert "named 'r2' already" in text(UpdateMember(1, name="r2"))


def test_a_membership_survives_its_bytes_and_a_snapshots_header() -> None:
    changed = FOUNDERS.changed(AddMember("h:4", name="r4"), attempt_id=ATTEMPT, index=5)
    changed = changed.changed(RemoveMember(2), attempt_id=b"b", index=6)
    assert Membership.decode(changed.encode()) == changed
    header = SnapshotHeader(members=to_wire(changed.members), membership=changed.encode())
    assert membership_of(header) == changed
    older = SnapshotHeader(members=to_wire(FOUNDERS.members))
    assert membership_of(older) == FOUNDERS


def test_a_log_that_is_cut_brings_the_membership_before_back() -> None:
    terms = {5: 1, 8: 2}
    memberships = Memberships(FOUNDERS, 0)
    second = FOUNDERS.changed(RemoveMember(3), attempt_id=b"1", index=5)
    third = second.changed(RemoveMember(2), attempt_id=b"2", index=8)
    memberships.add(5, 1, second)
    memberships.add(8, 2, third)
    assert memberships.active is third
    assert memberships.at(7) is second
    terms[8] = 3
    assert memberships.revert(terms.get)
    assert memberships.active is second
    memberships.applied(5)
    assert memberships.all == [second]


# -- in a log ----------------------------------------------------------------------------------------------------------


def test_a_membership_entry_is_in_force_at_once_and_out_of_force_when_it_is_replaced() -> None:
    bench = Bench(3)
    smaller = FOUNDERS.changed(RemoveMember(3), attempt_id=ATTEMPT, index=2)
    entry = Entry(index=2, term=1, kind=Entry.CONFIG, data=smaller.encode())
    append = AppendEntries(prev_index=1, prev_term=0, entries=[entry], commit_index=1, seq=1)
    bench.engine.receive(2, RaftMessage(term=1, append_entries=append))
    assert bench.engine.voters == {2}
    bench.append(3, 2, (1, 0), [(2, b"other")])
    assert bench.engine.voters == {2, 3}


def test_a_change_waits_until_the_leader_has_committed_an_entry_of_its_own_term() -> None:
    """Ongaro, raft-dev, July 2015: without it two leaders could each change one voter and lose an entry."""
    fleet = Fleet(3)
    old = fleet.elect()
    fleet.kill(old)
    while not any(c.engine.is_leader for c in fleet.cores.values()):
        fleet.clock.advance(0.001)
        fleet.settle(1)
    new = fleet.leader()
    assert not fleet.cores[new].engine.term_committed
    assert fleet.change(RemoveMember(old)) is None
    fleet.pass_time(0.1)
    assert fleet.change(RemoveMember(old)) is not None


def test_two_changes_at_once_are_not_taken_and_a_retry_is_recognized() -> None:
    fleet = Fleet(3)
    leader = fleet.elect()
    first = fleet.change(AddMember("h:4"), ATTEMPT)
    assert first is not None
    assert fleet.change(RemoveMember(leader % 3 + 1)) is None
    assert fleet.change(AddMember("h:4"), ATTEMPT) == first
    fleet.pass_time(0.1)
    assert fleet.change(AddMember("h:4"), ATTEMPT) == first
    assert len(fleet.cores[leader].members) == 4
    assert fleet.change(RemoveMember(leader % 3 + 1)) is not None


def test_a_learner_gets_the_log_does_not_count_and_never_stands() -> None:
    fleet = Fleet(3)
    leader = fleet.elect()
    fleet.change(AddMember("h:4"))
    fleet.pass_time(0.1)
    learner = added(fleet.cores[leader])
    fleet.join(learner, list(fleet.cores[leader].members))
    fleet.acknowledged(leader, b"w")
    fleet.pass_time(0.2)
    assert fleet.machines[learner.id].log == [b"w"]
    others = {1, 2, 3} - {leader}
    fleet.cut |= {(a, b) for a in others for b in fleet.cores} | {(b, a) for a in others for b in fleet.cores}
    told = fleet.put(leader, b"not with a learner's word")
    fleet.pass_time(5)
    assert not any(isinstance(outcome, Applied) for outcome in told)
    assert learner.id not in {n for n, _ in fleet.led}


def test_a_learner_is_promoted_once_it_is_in_sync_and_counts_from_then_on() -> None:
    fleet = Fleet(3)
    leader = fleet.elect()
    for n in range(20):
        fleet.acknowledged(leader, f"w{n}".encode())
    fleet.change(AddMember("h:4"))
    fleet.pass_time(0.1)
    learner = added(fleet.cores[leader])
    text = refused(lambda: fleet.change(PromoteMember(learner.id)))
    assert text == "etcdserver: can only promote a learner member which is in sync with leader"
    fleet.join(learner, list(fleet.cores[leader].members))
    fleet.pass_time(0.5)
    assert fleet.change(PromoteMember(learner.id)) is not None
    fleet.pass_time(0.2)
    fleet.isolate(leader)
    fleet.pass_time(3)
    assert fleet.leader() != leader
    fleet.acknowledged(learner.id, b"through the new voter")


def test_a_change_that_would_leave_no_living_majority_is_refused() -> None:
    fleet = Fleet(3)
    leader = fleet.elect()
    dead, alive = leader % 3 + 1, (leader + 1) % 3 + 1
    fleet.cut_both(leader, dead)
    fleet.pass_time(1)
    with pytest.raises(StatusError, match="unhealthy cluster") as unhealthy:
        fleet.change(RemoveMember(alive))
    assert unhealthy.value.code is Code.UNAVAILABLE
    with pytest.raises(StatusError, match="unhealthy cluster"):
        fleet.change(AddMember("h:5", learner=False))
    assert fleet.change(RemoveMember(dead)) is not None


def test_a_removed_replica_hears_of_it_only_once_it_is_committed_and_disturbs_nobody() -> None:
    fleet = Fleet(3)
    leader = fleet.elect()
    gone, rest = leader % 3 + 1, (leader + 1) % 3 + 1
    fleet.cut_both(leader, rest)
    assert fleet.change(RemoveMember(gone)) is not None
    fleet.pass_time(0.2)
    assert fleet.cores[gone].removed_at is None
    assert len(fleet.cores[gone].members) == 3, "not even as an entry that is not committed"
    fleet.cut.clear()
    fleet.pass_time(0.5)
    assert fleet.cores[gone].removed_at is not None
    term = fleet.cores[leader].engine.term
    fleet.pass_time(10)
    assert fleet.cores[leader].engine.term == term
    assert fleet.cores[leader].engine.is_leader
    assert fleet.cores[leader].engine.farewells == frozenset()


@pytest.mark.parametrize("seed", range(1, 9))
def test_a_leader_killed_in_the_middle_of_a_change_leaves_one_membership(seed: int) -> None:
    fleet = Fleet(5, seed=seed)
    leader = fleet.elect()
    fleet.acknowledged(leader, b"before")
    gone = leader % 5 + 1
    fleet.change(RemoveMember(gone), ATTEMPT)
    # It reaches as many followers as the seed says; then the leader dies.
    fleet.cut |= {(leader, n) for n in range(1, 6) if n % (seed % 4 + 1)}
    fleet.settle(1 + seed % 2)
    fleet.kill(leader)
    fleet.cut.clear()
    fleet.pass_time(2)
    new = fleet.leader()
    fleet.change(RemoveMember(gone), ATTEMPT)
    fleet.pass_time(1)
    rest = [n for n in fleet.cores if n != gone]
    assert {tuple(m.id for m in fleet.cores[n].members) for n in rest} == {tuple(sorted({1, 2, 3, 4, 5} - {gone}))}
    assert fleet.cores[gone].removed_at is not None
    fleet.acknowledged(new, b"after")
    assert {tuple(fleet.machines[n].log) for n in rest} == {(b"before", b"after")}


def test_three_members_become_five_and_three_again_under_load_and_nothing_is_lost() -> None:
    fleet = Fleet(3)
    leader = fleet.elect()
    told: dict[bytes, list[Outcome]] = {}

    def load() -> None:
        for n in sorted(fleet.cores):
            payload = f"w{len(told)}".encode()
            told[payload] = fleet.put(n, payload)
        fleet.pass_time(0.05)

    for name in ("r4", "r5"):
        fleet.change(AddMember(f"h:{name}", name=name))
        load()
        new = next(m for m in fleet.cores[leader].members if m.learner)
        fleet.join(new, list(fleet.cores[leader].members))
        load()
        load()
        assert fleet.change(PromoteMember(new.id)) is not None
        load()
    for gone in [n for n in (1, 2, 3) if n != leader]:
        assert fleet.change(RemoveMember(gone)) is not None
        load()
        del fleet.cores[gone]
        fleet.wires = {pair: wire for pair, wire in fleet.wires.items() if gone not in pair}
    fleet.pass_time(2)
    acknowledged = {payload for payload, outcomes in told.items() if any(isinstance(o, Applied) for o in outcomes)}
    assert len(acknowledged) > 30
    for n in fleet.cores:
        assert acknowledged <= set(fleet.machines[n].log)
        assert fleet.machines[n].log == fleet.machines[leader].log
    assert len(fleet.cores[leader].members) == 3


def test_an_entry_of_an_earlier_term_is_not_committed_by_counting() -> None:
    """Figure 8 of the Raft paper: a majority holds it, and it may still be overwritten."""
    bench = Bench(5)
    bench.append(2, 2, (1, 0), [(2, b"earlier")])
    term = bench.lead()
    assert term > 2
    for peer in (3, 4, 5):
        bench.ack(peer, term, 2)
    bench.engine.tick()
    assert bench.engine.commit_index == 1
    for peer in (3, 4):
        bench.ack(peer, term, bench.engine.last_index)
    bench.engine.tick()
    assert bench.engine.commit_index == bench.engine.last_index
