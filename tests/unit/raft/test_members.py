"""Membership of real replicas in one process, over loopback sockets and real files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.base.errors import Code, RemovedError, StatusError
from controlplane.raft.driver import Replica
from controlplane.raft.types import AddMember, Member, PromoteMember, RemoveMember, UpdateMember
from controlplane.transport import peer_handshake
from tests.unit.raft.test_replica import CONFIG, Cluster, free_ports
from tests.unit.raft.toy import ToyMachine


class Growing(Cluster):
    """A cluster that takes in members while it runs."""

    async def join(self, name: str, members: tuple[Member, ...], member_id: int) -> Replica:
        machine = ToyMachine()
        replica = Replica(
            config=CONFIG,
            cluster_id=self.cluster_id,
            members=members,
            name=name,
            member_id=member_id,
            data_dir=self.root / name,
            state_machine=machine,
            create_data_dir=True,
        )
        await replica.start()
        self.replicas[name], self.machines[name] = replica, machine
        return replica

    async def add(self, via: str, name: str, *, learner: bool = True) -> Member:
        address = f"127.0.0.1:{free_ports(1)[0]}"
        change = AddMember(address, learner=learner, name=name)
        members = await self.replicas[via].change_members(change, timeout_ms=5_000)
        (added,) = [m for m in members if m.peer_address == address]
        await self.join(name, members, added.id)
        return added

    async def promote(self, via: str, member: Member) -> None:
        """As an operator does: again, until it is in sync."""
        async with asyncio.timeout(10):
            while not await self._promoted(via, member):  # noqa: ASYNC110 - until another replica is in sync
                await asyncio.sleep(0.02)

    async def _promoted(self, via: str, member: Member) -> bool:
        try:
            await self.replicas[via].change_members(PromoteMember(member.id), timeout_ms=5_000)
        except StatusError as error:
            if "in sync" in error.message:
                return False
            raise
        return True

    async def lead(self) -> str:
        await self.until(self.leader)
        leader = self.leader()
        assert leader is not None
        return leader


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Growing]:
    made = Growing(tmp_path, 3)
    await asyncio.gather(*(made.start(name) for name in made.names))
    try:
        yield made
    finally:
        await asyncio.gather(*(made.stop(name) for name in list(made.replicas)))


async def test_a_learner_is_added_through_a_follower_catches_up_and_is_promoted(cluster: Growing) -> None:
    leader = await cluster.lead()
    follower = next(n for n in cluster.names if n != leader)
    for n in range(20):
        await cluster.put(leader, f"w{n}".encode())
    added = await cluster.add(follower, "r4")
    await cluster.until(lambda: cluster.machines["r4"].log == cluster.machines[leader].log)
    assert next(m for m in cluster.replicas["r4"].status().members if m.id == added.id).learner
    await cluster.promote(follower, added)
    await cluster.until(lambda: not any(m.learner for m in cluster.replicas["r4"].status().members))
    assert len(cluster.replicas["r4"].status().members) == 4


@pytest.fixture
def outdated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas that start now say that they are of version 0.1."""
    monkeypatch.setattr(peer_handshake, "PROTOCOL_REVISION", 0)


async def test_members_do_not_change_while_one_of_them_does_not_know_how(outdated: None, cluster: Growing) -> None:
    with pytest.raises(StatusError, match=r"runs? an older version that does not know this request; upgrade first"):
        await cluster.add(await cluster.lead(), "r4")


async def test_a_removed_follower_learns_it_and_stops_and_does_so_again_when_restarted(cluster: Growing) -> None:
    leader = await cluster.lead()
    gone = next(n for n in cluster.names if n != leader)
    member_id = cluster.replicas[gone].status().member_id
    members = await cluster.replicas[leader].change_members(RemoveMember(member_id), timeout_ms=5_000)
    assert member_id not in {m.id for m in members}
    async with asyncio.timeout(5):
        error = await cluster.replicas[gone].failed
    assert isinstance(error, RemovedError)
    assert f"member {gone} " in str(error)
    assert "was removed from the cluster at index" in str(error)
    await cluster.put(leader, b"goes on")
    await cluster.stop(gone)
    again = await cluster.start(gone)
    async with asyncio.timeout(5):
        assert isinstance(await again.failed, RemovedError)


async def test_a_member_removed_while_it_was_down_is_told_by_any_peer(cluster: Growing) -> None:
    leader = await cluster.lead()
    gone = next(n for n in cluster.names if n != leader)
    member_id = cluster.replicas[gone].status().member_id
    await cluster.stop(gone)
    await cluster.replicas[leader].change_members(RemoveMember(member_id), timeout_ms=5_000)
    await cluster.put(leader, b"w")
    back = await cluster.start(gone)
    async with asyncio.timeout(5):
        assert isinstance(await back.failed, RemovedError)


async def test_a_leader_hands_over_before_it_is_removed(cluster: Growing) -> None:
    leader = await cluster.lead()
    member_id = cluster.replicas[leader].status().member_id
    members = await cluster.replicas[leader].change_members(RemoveMember(member_id), timeout_ms=5_000)
    assert len(members) == 2
    async with asyncio.timeout(5):
        assert isinstance(await cluster.replicas[leader].failed, RemovedError)
    rest = next(n for n in cluster.names if n != leader)
    await cluster.put(rest, b"goes on")


async def test_leadership_moves_to_the_member_that_was_named(cluster: Growing) -> None:
    leader = await cluster.lead()
    target = next(n for n in cluster.names if n != leader)
    target_id = cluster.replicas[target].status().member_id
    await cluster.put(leader, b"w")
    with pytest.raises(StatusError, match="not leader"):
        await cluster.replicas[target].transfer_leadership(target_id, timeout_ms=1_000)
    with pytest.raises(StatusError, match="bad leader transferee"):
        await cluster.replicas[leader].transfer_leadership(99, timeout_ms=1_000)
    await cluster.replicas[leader].transfer_leadership(target_id, timeout_ms=2_000)
    await cluster.until(lambda: cluster.leader() == target)


async def test_an_identity_that_has_lived_does_not_come_back_on_an_empty_disk(cluster: Growing) -> None:
    leader = await cluster.lead()
    lost = next(n for n in cluster.names if n != leader)
    await cluster.put(leader, b"w")
    await cluster.stop(lost)
    (cluster.root / lost).rename(cluster.root / "lost")
    back = await cluster.start(lost)
    async with asyncio.timeout(5):
        error = await back.failed
    assert isinstance(error, RemovedError)
    assert "remove the member and add a new one" in str(error)


async def test_a_lost_member_is_replaced_by_a_new_one_at_the_same_address_under_a_new_id(cluster: Growing) -> None:
    leader = await cluster.lead()
    lost = next(n for n in cluster.names if n != leader)
    old = cluster.replicas[lost].status().member_id
    address = next(m.peer_address for m in cluster.members if m.id == old)
    await cluster.stop(lost)
    (cluster.root / lost).rename(cluster.root / "lost")
    await cluster.replicas[leader].change_members(RemoveMember(old), timeout_ms=5_000)
    members = await cluster.replicas[leader].change_members(AddMember(address, name=lost), timeout_ms=5_000)
    added = next(m for m in members if m.peer_address == address)
    assert added.id != old
    await cluster.join(lost, members, added.id)
    await cluster.promote(leader, added)
    await cluster.put(lost, b"through the new one")


async def test_an_endpoint_is_published_and_seen_everywhere(cluster: Growing) -> None:
    leader = await cluster.lead()
    me = cluster.replicas[leader].status().member_id
    await cluster.replicas[leader].change_members(UpdateMember(me, client_endpoint="h:1"), timeout_ms=5_000)
    for replica in cluster.replicas.values():
        await cluster.until(lambda: any(m.client_endpoint == "h:1" for m in replica.status().members))  # noqa: B023


async def test_the_last_voter_cannot_be_removed_and_an_unknown_one_is_not_found(tmp_path: Path) -> None:
    one = Growing(tmp_path, 1)
    replica = await one.start("r1")
    try:
        await one.lead()
        with pytest.raises(StatusError, match="not enough started members"):
            await replica.change_members(RemoveMember(replica.status().member_id), timeout_ms=2_000)
        with pytest.raises(StatusError, match="member not found") as raised:
            await replica.change_members(RemoveMember(7), timeout_ms=2_000)
        assert raised.value.code is Code.NOT_FOUND
    finally:
        await one.stop("r1")


async def test_growing_to_five_and_shrinking_to_three_under_load_loses_nothing(cluster: Growing) -> None:
    leader = await cluster.lead()
    acknowledged: list[bytes] = []
    stop = asyncio.Event()

    async def write(writer: int) -> None:
        n = 0
        while not stop.is_set():
            payload = f"{writer}-{n}".encode()
            await cluster.put("r1" if writer % 2 else leader, payload)
            acknowledged.append(payload)
            n += 1
            await asyncio.sleep(0)

    keep = "r2" if leader == "r1" else leader
    writers = [asyncio.create_task(write(w)) for w in range(4)]

    async def more_writes() -> None:
        enough = len(acknowledged) + 20
        await cluster.until(lambda: len(acknowledged) >= enough)

    for name in ("r4", "r5"):
        await cluster.promote("r1", await cluster.add("r1", name))
        await more_writes()
    leaving = [n for n in cluster.names if n not in ("r1", keep)] + ["r4"]
    for name in leaving:
        member_id = cluster.replicas[name].status().member_id
        await cluster.replicas["r1"].change_members(RemoveMember(member_id), timeout_ms=5_000)
        await more_writes()
    stop.set()
    await asyncio.gather(*writers)
    await cluster.replicas["r1"].read_barrier(timeout_ms=5_000)
    await cluster.until(lambda: cluster.machines["r5"].log == cluster.machines["r1"].log)
    log = cluster.machines["r1"].log
    assert len(acknowledged) >= 80
    assert set(acknowledged) <= set(log)
    assert len(set(log)) == len(log)
    assert len(cluster.replicas["r1"].status().members) == 3
