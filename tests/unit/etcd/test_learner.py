"""What a learner serves: its status, its backup and local reads. Every other call of the etcd API is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.etcd.service import SERVICE_NAMES, add_services
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.etcd import v3election_pb2, v3lock_pb2
from controlplane.raft.types import AddMember, PromoteMember
from controlplane.transport.handlers import HandlerTable
from tests.unit.etcd.fakes import FakeContext, Replica, put

METHODS = [
    f"/{service.full_name}/{method.name}"
    for proto in (e, v3lock_pb2, v3election_pb2)
    for service in proto.DESCRIPTOR.services_by_name.values()
    if service.full_name in SERVICE_NAMES
    for method in service.methods
]
SERVED = {"/etcdserverpb.Maintenance/Status", "/etcdserverpb.Maintenance/Snapshot"}
PLAIN: Any = FakeContext()


class Learner:
    """Every etcd service of one replica that became a learner."""

    def __init__(self, replica: Replica, member_id: int) -> None:
        self.replica = replica
        self.member_id = member_id
        self._table = HandlerTable()
        add_services(self._table, replica.kv, replica.raft, replica.store, clock=replica.clock, rand=replica.rand)

    async def call(self, method: str, request: Any = None) -> None:
        """Call it; of a stream, until its first answer."""
        handler: Any = await self._table.find(method, ())
        assert handler is not None
        request = request or handler.request_deserializer(b"")

        async def requests() -> AsyncIterator[Any]:
            yield request

        asked = requests() if handler.request_streaming else request
        if not handler.response_streaming:
            await (handler.stream_unary or handler.unary_unary)(asked, PLAIN)
            return
        answers = (handler.stream_stream or handler.unary_stream)(asked, PLAIN)
        if not hasattr(answers, "__aiter__"):
            await answers
            return
        async for _ in answers:
            break
        await answers.aclose()


@pytest.fixture
async def learner() -> AsyncIterator[Learner]:
    replica = Replica()
    replica.kv.start()
    try:
        await put(replica.kv, b"k")
        members = await replica.raft.change_members(AddMember("h:1", learner=True), timeout_ms=100)
        member = next(m for m in members if m.peer_address == "h:1")
        replica.raft._member_id = member.id
        yield Learner(replica, member.id)
    finally:
        await replica.kv.stop()


def test_the_list_is_that_of_the_protocol() -> None:
    assert len(METHODS) == 47, "methods were added: does a learner serve them?"


@pytest.mark.parametrize("method", METHODS)
async def test_of_all_calls_a_learner_serves_two(method: str, learner: Learner) -> None:
    if method in SERVED:
        await learner.call(method)
        return
    with pytest.raises(StatusError) as refused:
        async with asyncio.timeout(5):
            await learner.call(method)
    error = "etcdserver: rpc not supported for learner"
    assert (refused.value.code, refused.value.message) == (Code.UNAVAILABLE, error)


async def test_a_learner_reads_its_own_state_and_serves_everything_once_it_is_promoted(learner: Learner) -> None:
    range_method = "/etcdserverpb.KV/Range"
    await learner.call(range_method, e.RangeRequest(key=b"k", serializable=True))
    with pytest.raises(StatusError, match="not supported for learner"):
        await learner.call(range_method, e.RangeRequest(key=b"k"))
    await learner.replica.raft.change_members(PromoteMember(learner.member_id), timeout_ms=100)
    await learner.call(range_method, e.RangeRequest(key=b"k"))
    await learner.call("/etcdserverpb.Auth/AuthStatus")
