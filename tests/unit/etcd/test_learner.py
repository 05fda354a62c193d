"""What a learner serves: its status and local reads."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.etcd.guard import LeaderGuard
from controlplane.etcd.kv_service import KVService
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.raft.types import AddMember, PromoteMember
from tests.unit.etcd.fakes import FakeContext, Replica, put

PLAIN: Any = FakeContext()


async def test_a_learner_serves_local_reads_and_refuses_the_rest_until_it_is_promoted() -> None:
    replica = Replica()
    replica.kv.start()
    guard = LeaderGuard(replica.raft, replica.clock, election_timeout_ms=1_000)
    service = KVService(replica.kv, guard, replica.authorizer)
    try:
        await put(replica.kv, b"k")
        members = await replica.raft.change_members(AddMember("h:1", learner=True), timeout_ms=100)
        learner = next(m for m in members if m.peer_address == "h:1")
        replica.raft._member_id = learner.id
        assert (await service.Range(e.RangeRequest(key=b"k", serializable=True), PLAIN)).count == 1
        for call in (service.Range(e.RangeRequest(key=b"k"), PLAIN), service.Put(e.PutRequest(key=b"k"), PLAIN)):
            with pytest.raises(StatusError) as refused:
                await call
            assert (refused.value.code, refused.value.message) == (
                Code.UNAVAILABLE,
                "etcdserver: rpc not supported for learner",
            )
        await replica.raft.change_members(PromoteMember(learner.id), timeout_ms=100)
        assert (await service.Range(e.RangeRequest(key=b"k"), PLAIN)).count == 1
    finally:
        await replica.kv.stop()
