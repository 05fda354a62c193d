"""Changes on their way into the log: what they carry, and what a client is told of their outcome."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.base.errors import Code
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command
from tests.unit.etcd.fakes import Replica, put, refused, settle

ID = bytes(range(16))


@pytest.fixture
async def replica() -> Replica:
    return Replica()


async def test_the_proposer_stamps_the_time_and_a_request_id(replica: Replica) -> None:
    await put(replica.kv, b"k")
    proposal = replica.raft.proposals[0]
    assert len(proposal.request_id) == 16
    assert Command.FromString(proposal.payload).proposed_at_ms == replica.clock.wall_ms()


async def test_two_writes_have_different_request_ids(replica: Replica) -> None:
    await put(replica.kv, b"k")
    await put(replica.kv, b"k")
    first, second = replica.raft.proposals
    assert first.request_id != second.request_id


async def test_the_same_request_id_writes_once_and_answers_alike(replica: Replica) -> None:
    first = await replica.kv.put(e.PutRequest(key=b"k"), request_id=ID)
    again = await replica.kv.put(e.PutRequest(key=b"k"), request_id=ID)
    assert again == first
    assert replica.kv.revision == 2


async def test_a_request_id_used_for_another_kind_of_request_is_refused_not_answered_with_the_first_ones_reply(
    replica: Replica,
) -> None:
    await replica.kv.put(e.PutRequest(key=b"k", value=b"1"), request_id=b"r" * 16)
    error = await refused(replica.kv.delete_range(e.DeleteRangeRequest(key=b"k"), request_id=b"r" * 16))
    assert error.code is Code.INVALID_ARGUMENT
    assert replica.store.key_count == 1


async def test_a_bad_request_is_refused_before_it_is_proposed(replica: Replica) -> None:
    error = await refused(replica.kv.put(e.PutRequest()))
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "etcdserver: key is not provided")
    assert replica.raft.proposals == []


async def test_a_rejection_of_the_state_machine_arrives_as_its_error(replica: Replica) -> None:
    error = await refused(replica.kv.put(e.PutRequest(key=b"k", lease=5)))
    assert (error.code, error.message) == (Code.NOT_FOUND, "etcdserver: requested lease not found")
    assert not error.unknown_outcome


@pytest.mark.parametrize("applied", [True, False])
async def test_a_write_nobody_saw_applied_is_unknown_whatever_really_happened(replica: Replica, applied: bool) -> None:
    replica.raft.lose_next(applied=applied)
    error = await refused(replica.kv.put(e.PutRequest(key=b"k"), request_id=ID))
    assert (error.code, error.message) == (Code.UNAVAILABLE, "etcdserver: request timed out")
    assert error.unknown_outcome
    await replica.kv.put(e.PutRequest(key=b"k"), request_id=ID)
    assert replica.kv.revision == 2, "the retry under the same id must not write twice"


async def test_an_unknown_outcome_over_a_leader_change_says_so(replica: Replica) -> None:
    replica.raft.hold()
    writing = asyncio.ensure_future(replica.kv.put(e.PutRequest(key=b"k"), timeout_ms=30))
    await settle()
    replica.raft.set_leader("r1")
    error = await refused(writing)
    assert error.message == "etcdserver: request timed out, possibly due to previous leader failure"
    assert error.unknown_outcome


async def test_a_write_that_never_left_is_safe_to_retry(replica: Replica) -> None:
    replica.raft.fail_next()
    error = await refused(replica.kv.put(e.PutRequest(key=b"k")))
    assert error.code is Code.UNAVAILABLE
    assert not error.unknown_outcome
