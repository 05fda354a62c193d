"""Writes on their way: what is told to whom, and that "never sent" is never a lie."""

from __future__ import annotations

import pytest

from controlplane.base.errors import ConfigError
from controlplane.base.limits import BATCH_BYTES_MAX, BATCH_PROPOSALS_MAX
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Batch, Proposal
from controlplane.raft.proposals import BATCH_FORMAT_VERSION, Proposals, decode_batch
from controlplane.raft.types import Applied, NeverSent, Outcome, Unknown

ROUTE = (2, 5, 1)


class Bench:
    def __init__(self, pending_max: int = 100) -> None:
        self.proposals = Proposals(pending_max=pending_max)
        self.told: dict[bytes, list[Outcome]] = {}

    def add(self, request_id: bytes, payload: bytes = b"p", deadline: float = 10.0) -> None:
        told = self.told.setdefault(request_id, [])
        self.proposals.add(payload, request_id, deadline, 7, told.append)

    def settle(self) -> dict[bytes, list[Outcome]]:
        for done, outcome in self.proposals.take_outcomes():
            done(outcome)
        return self.told

    def forwarded(self, now: float = 0.0, route: tuple[int, int, int] = ROUTE) -> list[bytes]:
        return [p.request_id for frame in self.proposals.forward(route, now, 1.0) for p in frame]

    def batch(self) -> list[bytes]:
        made = self.proposals.next_batch()
        return [] if made is None else [p.request_id for p in Batch.FromString(made[0]).proposals]


def test_a_write_that_never_left_is_never_sent() -> None:
    bench = Bench()
    bench.add(b"a", deadline=1.0)
    bench.proposals.expire(1.0)
    assert isinstance(bench.settle()[b"a"][0], NeverSent)


def test_a_forwarded_write_past_its_deadline_is_unknown() -> None:
    bench = Bench()
    bench.add(b"a", deadline=1.0)
    assert bench.forwarded() == [b"a"]
    bench.proposals.expire(1.0)
    assert isinstance(bench.settle()[b"a"][0], Unknown)


def test_an_expired_write_of_the_leaders_own_queue_can_no_longer_enter_the_log() -> None:
    bench = Bench()
    bench.proposals.lead([])
    bench.add(b"a", deadline=1.0)
    bench.proposals.accept_own()
    bench.proposals.expire(1.0)
    assert isinstance(bench.settle()[b"a"][0], NeverSent)
    assert bench.batch() == []


def test_a_write_in_the_log_past_its_deadline_is_unknown() -> None:
    bench = Bench()
    bench.proposals.lead([])
    bench.add(b"a", deadline=1.0)
    bench.proposals.accept_own()
    assert bench.batch() == [b"a"]
    bench.proposals.expire(1.0)
    assert isinstance(bench.settle()[b"a"][0], Unknown)


def test_a_write_that_also_came_from_another_replica_is_unknown_not_never_sent() -> None:
    bench = Bench()
    bench.proposals.lead([])
    bench.add(b"a", deadline=1.0)
    bench.proposals.accept_own()
    bench.proposals.accept([Proposal(request_id=b"a", payload=b"p")], forwarded=True)
    bench.proposals.expire(1.0)
    assert isinstance(bench.settle()[b"a"][0], Unknown)


def test_every_waiter_of_an_id_hears_when_it_is_applied_whoever_proposed_it() -> None:
    bench = Bench()
    bench.add(b"a")
    bench.add(b"a")
    bench.proposals.applied([Proposal(request_id=b"x"), Proposal(request_id=b"a")], [b"rx", b"ra"], 12)
    assert bench.settle()[b"a"] == [Applied(b"ra", 12), Applied(b"ra", 12)]
    assert len(bench.proposals) == 0


def test_a_changed_route_sends_everything_again_and_silence_does_so_later() -> None:
    bench = Bench()
    bench.add(b"a")
    assert bench.forwarded(0.0) == [b"a"]
    bench.add(b"b")
    assert bench.forwarded(0.1) == [b"b"]
    assert bench.forwarded(0.2) == []
    assert bench.forwarded(0.3, (2, 5, 2)) == [b"a", b"b"]
    assert bench.forwarded(1.2, (2, 5, 2)) == []
    assert bench.forwarded(1.3, (2, 5, 2)) == [b"a", b"b"]


def test_a_write_already_in_the_queue_or_the_log_tail_is_not_queued_again() -> None:
    bench = Bench()
    tail = Batch(proposals=[Proposal(request_id=b"a")]).SerializeToString()
    bench.proposals.lead([tail])
    bench.proposals.accept([Proposal(request_id=b"a"), Proposal(request_id=b"b"), Proposal(request_id=b"b")])
    assert bench.batch() == [b"b"]
    bench.proposals.accept([Proposal(request_id=b"b")])
    assert bench.batch() == []


def test_a_new_leader_queues_the_writes_it_holds_itself() -> None:
    bench = Bench()
    bench.add(b"a")
    bench.proposals.lead([])
    assert bench.batch() == [b"a"]


def test_batches_are_bounded_in_writes_and_bytes() -> None:
    bench = Bench(pending_max=10_000)
    bench.proposals.lead([])
    bench.proposals.accept(Proposal(request_id=b"%d" % n) for n in range(BATCH_PROPOSALS_MAX + 1))
    assert [len(bench.batch()), len(bench.batch())] == [BATCH_PROPOSALS_MAX, 1]
    large = b"x" * (BATCH_BYTES_MAX // 2)
    bench.proposals.accept(Proposal(request_id=b"L%d" % n, payload=large) for n in range(2))
    assert [bench.batch(), bench.batch()] == [[b"L0"], [b"L1"]]


def test_too_many_and_too_large_are_refused_at_once() -> None:
    bench = Bench(pending_max=1)
    bench.add(b"large", b"x" * BATCH_BYTES_MAX)
    bench.add(b"a")
    bench.add(b"b")
    told = bench.settle()
    assert isinstance(told[b"large"][0], NeverSent)
    assert isinstance(told[b"b"][0], NeverSent)
    assert told[b"a"] == []


def test_stopping_tells_every_waiter_the_truth() -> None:
    bench = Bench()
    bench.add(b"sent")
    bench.forwarded()
    bench.add(b"held")
    bench.proposals.abandon("stopping")
    told = bench.settle()
    assert isinstance(told[b"sent"][0], Unknown)
    assert isinstance(told[b"held"][0], NeverSent)


def test_an_entry_of_a_newer_format_is_refused_not_half_understood() -> None:
    data = Batch(format_version=BATCH_FORMAT_VERSION + 1, proposals=[Proposal(request_id=b"a")]).SerializeToString()
    with pytest.raises(ConfigError, match="a log entry has format 2, this version applies up to 1"):
        decode_batch(data)
