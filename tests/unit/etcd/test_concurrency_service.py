"""Server-side locks and elections: one holder, in order of arrival, freed by release, revoke or departure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.etcd.concurrency_service import ElectionService, LockService
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.etcd import v3election_pb2 as ve
from controlplane.pb.etcd import v3lock_pb2 as vl
from tests.unit.etcd.fakes import FakeContext, Replica, settle

CONTEXT: Any = FakeContext()


@pytest.fixture
async def replica() -> Replica:
    replica = Replica()
    for lease_id in (1, 2, 0xABC):
        await replica.kv.lease_grant(e.LeaseGrantRequest(ID=lease_id, TTL=60))
    return replica


@pytest.fixture
def locks(replica: Replica) -> LockService:
    return LockService(replica.kv, replica.authorizer, replica.clock)


@pytest.fixture
def elections(replica: Replica) -> ElectionService:
    return ElectionService(replica.kv, replica.authorizer, replica.clock)


def lock(locks: LockService, lease: int) -> asyncio.Future[vl.LockResponse]:
    return asyncio.ensure_future(locks.Lock(vl.LockRequest(name=b"l", lease=lease), CONTEXT))


async def test_the_key_is_name_slash_lease_in_lower_hex(locks: LockService) -> None:
    assert (await lock(locks, 0xABC)).key == b"l/abc"


async def test_a_second_locker_waits_until_unlock(locks: LockService) -> None:
    first = await lock(locks, 1)
    waiting = lock(locks, 2)
    await settle()
    assert not waiting.done()
    await locks.Unlock(vl.UnlockRequest(key=first.key), CONTEXT)
    assert (await waiting).key == b"l/2"


async def test_lockers_are_served_in_order_of_arrival(locks: LockService) -> None:
    first = await lock(locks, 2)
    second = lock(locks, 0xABC)
    await settle()
    third = lock(locks, 1)
    await settle()
    await locks.Unlock(vl.UnlockRequest(key=first.key), CONTEXT)
    granted = await second
    await settle()
    assert not third.done()
    await locks.Unlock(vl.UnlockRequest(key=granted.key), CONTEXT)
    await third


async def test_locking_again_under_the_same_lease_is_the_same_lock(locks: LockService) -> None:
    assert (await lock(locks, 1)).key == (await lock(locks, 1)).key


async def test_a_revoked_lease_frees_its_lock(locks: LockService, replica: Replica) -> None:
    await lock(locks, 1)
    waiting = lock(locks, 2)
    await settle()
    await replica.kv.lease_revoke(e.LeaseRevokeRequest(ID=1))
    await waiting


async def test_a_caller_that_goes_away_leaves_the_queue(locks: LockService, replica: Replica) -> None:
    first = await lock(locks, 1)
    gone = lock(locks, 2)
    await settle()
    last = lock(locks, 0xABC)
    await settle()
    gone.cancel()
    await settle()
    assert (await replica.kv.range(e.RangeRequest(key=b"l/2"))).count == 0
    await locks.Unlock(vl.UnlockRequest(key=first.key), CONTEXT)
    await last


async def test_a_waiter_whose_lease_is_gone_does_not_get_the_lock(locks: LockService, replica: Replica) -> None:
    first = await lock(locks, 1)
    waiting = lock(locks, 2)
    await settle()
    await replica.kv.lease_revoke(e.LeaseRevokeRequest(ID=2))
    await locks.Unlock(vl.UnlockRequest(key=first.key), CONTEXT)
    with pytest.raises(StatusError, match="requested lease not found"):
        await waiting


async def test_without_a_lease_one_is_made(locks: LockService, replica: Replica) -> None:
    before = {status.ID for status in (await replica.kv.lease_leases()).leases}
    response = await lock(locks, 0)
    (made,) = {status.ID for status in (await replica.kv.lease_leases()).leases} - before
    assert response.key == f"l/{made:x}".encode()


async def test_an_unknown_lease_is_refused(locks: LockService) -> None:
    with pytest.raises(StatusError) as caught:
        await lock(locks, 99)
    assert (caught.value.code, caught.value.message) == (Code.NOT_FOUND, "etcdserver: requested lease not found")


def campaign(elections: ElectionService, lease: int, value: bytes) -> asyncio.Future[ve.CampaignResponse]:
    request = ve.CampaignRequest(name=b"e", lease=lease, value=value)
    return asyncio.ensure_future(elections.Campaign(request, CONTEXT))


async def leader_value(elections: ElectionService) -> bytes:
    return (await elections.Leader(ve.LeaderRequest(name=b"e"), CONTEXT)).kv.value


async def test_the_first_campaigner_leads_until_it_resigns(elections: ElectionService) -> None:
    first = await campaign(elections, 1, b"one")
    waiting = campaign(elections, 2, b"two")
    await settle()
    assert await leader_value(elections) == b"one"
    assert not waiting.done()
    await elections.Resign(ve.ResignRequest(leader=first.leader), CONTEXT)
    await waiting
    assert await leader_value(elections) == b"two"


async def test_a_leader_proclaims_and_a_former_one_cannot(elections: ElectionService) -> None:
    first = await campaign(elections, 1, b"one")
    await elections.Proclaim(ve.ProclaimRequest(leader=first.leader, value=b"uno"), CONTEXT)
    assert await leader_value(elections) == b"uno"
    await elections.Resign(ve.ResignRequest(leader=first.leader), CONTEXT)
    with pytest.raises(StatusError, match="election: not leader"):
        await elections.Proclaim(ve.ProclaimRequest(leader=first.leader, value=b"x"), CONTEXT)


async def test_campaigning_again_with_another_value_proclaims_it(elections: ElectionService) -> None:
    await campaign(elections, 1, b"one")
    await campaign(elections, 1, b"uno")
    assert await leader_value(elections) == b"uno"


async def test_without_candidates_there_is_no_leader(elections: ElectionService) -> None:
    with pytest.raises(StatusError, match="election: no leader"):
        await leader_value(elections)


async def test_observers_see_every_leader_and_proclamation(elections: ElectionService) -> None:
    seen: list[bytes] = []

    async def observe() -> None:
        async for response in elections.Observe(ve.LeaderRequest(name=b"e"), CONTEXT):
            seen.append(response.kv.value)  # noqa: PERF401 - it never ends

    observing = asyncio.ensure_future(observe())
    await settle()
    first = await campaign(elections, 1, b"one")
    second = campaign(elections, 2, b"two")
    await settle()
    await elections.Proclaim(ve.ProclaimRequest(leader=first.leader, value=b"uno"), CONTEXT)
    await settle()
    await elections.Resign(ve.ResignRequest(leader=first.leader), CONTEXT)
    await second
    await settle()
    observing.cancel()
    await asyncio.gather(observing, return_exceptions=True)
    assert seen == [b"one", b"uno", b"two"]


async def test_a_resignation_without_a_leader_key_is_refused(elections: ElectionService) -> None:
    with pytest.raises(StatusError, match='"leader" field must be provided'):
        await elections.Resign(ve.ResignRequest(), CONTEXT)
