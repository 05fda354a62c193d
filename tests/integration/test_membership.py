"""Membership with real processes: a learner joins, is promoted, the leader is removed; nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from controlplane.pb.etcd import rpc_pb2, rpc_pb2_grpc
from controlplane.transport.channel import new_channel
from tests.integration.etcd_rig import free_port

pytestmark = pytest.mark.slow

_FAST = ("--heartbeat-ms", "30", "--election-ms-min", "200", "--election-ms-max", "400")


class Member:
    """One replica process and its client."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self.peer, self.client, self.metrics = (f"127.0.0.1:{free_port()}" for _ in range(3))
        self.process: asyncio.subprocess.Process | None = None
        self.channel = new_channel(self.client)
        self.kv = rpc_pb2_grpc.KVStub(self.channel)
        self.cluster = rpc_pb2_grpc.ClusterStub(self.channel)
        self.maintenance = rpc_pb2_grpc.MaintenanceStub(self.channel)

    @property
    def spec(self) -> str:
        return f"{self.name}={self.peer}@{self.client}@{self.metrics}"

    @property
    def log(self) -> str:
        return (self.root / f"{self.name}.log").read_text()

    async def start(self, cluster: str, *args: str) -> None:
        with (self.root / f"{self.name}.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "controlplane", "--name", self.name,
                "--data-dir", str(self.root / self.name), "--initial-cluster", cluster, *_FAST, *args,
                stdout=log, stderr=log,
            )  # fmt: skip

    async def close(self) -> None:
        await self.channel.close()
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def exit_code(self) -> int:
        assert self.process is not None
        async with asyncio.timeout(20):
            return await self.process.wait()

    async def status(self) -> rpc_pb2.StatusResponse:
        answer: rpc_pb2.StatusResponse = await self.maintenance.Status(
            rpc_pb2.StatusRequest(), timeout=5, wait_for_ready=True
        )
        return answer


class Writer:
    """Writes one key after another through whoever answers, and remembers what was acknowledged."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members
        self.acknowledged: list[bytes] = []
        self.stopping = False

    async def run(self) -> None:
        n = 0
        while not self.stopping:
            key = f"k{n}".encode()
            member = self.members[n % len(self.members)]
            n += 1
            with contextlib.suppress(grpc.aio.AioRpcError):
                await member.kv.Put(rpc_pb2.PutRequest(key=key, value=key), timeout=3)
                self.acknowledged.append(key)
            await asyncio.sleep(0.005)

    async def more(self, count: int = 30) -> None:
        enough = len(self.acknowledged) + count
        async with asyncio.timeout(30):
            while len(self.acknowledged) < enough:  # noqa: ASYNC110 - the other task's progress
                await asyncio.sleep(0.02)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[list[Member]]:
    members = [Member(f"r{n}", tmp_path) for n in (1, 2, 3, 4)]
    try:
        yield members
    finally:
        for member in members:
            await member.close()


async def _promoted(through: Member, member_id: int) -> bool:
    try:
        await through.cluster.MemberPromote(rpc_pb2.MemberPromoteRequest(ID=member_id), timeout=5, wait_for_ready=True)
    except grpc.aio.AioRpcError as error:
        # A voter that was slow for a moment makes the cluster unhealthy, as in etcd: ask again, as operators do.
        if "in sync" in str(error.details()) or error.code() is grpc.StatusCode.UNAVAILABLE:
            return False
        raise
    return True


async def test_a_learner_joins_and_is_promoted_and_the_leader_is_removed_while_writes_go_on(
    fleet: list[Member],
) -> None:
    founders, r4 = fleet[:3], fleet[3]
    cluster = ",".join(m.spec for m in founders)
    for member in founders:
        await member.start(cluster)
    writer = Writer(list(founders))
    writing = asyncio.create_task(writer.run())
    await writer.more()

    add = rpc_pb2.MemberAddRequest(peerURLs=[f"http://{r4.peer}"], isLearner=True)
    added = (await founders[1].cluster.MemberAdd(add, timeout=10, wait_for_ready=True)).member.ID
    await r4.start(r4.spec, "--initial-cluster-state", "existing", "--join", ",".join(m.client for m in founders))
    async with asyncio.timeout(30):
        while not await _promoted(founders[1], added):  # noqa: ASYNC110 - until another process is in sync
            await asyncio.sleep(0.1)
    await writer.more()

    status = await founders[0].status()
    ids = {(await member.status()).header.member_id: member for member in founders}
    leader = ids[status.leader]
    other = next(member for member in founders if member is not leader)
    await other.cluster.MemberRemove(rpc_pb2.MemberRemoveRequest(ID=status.leader), timeout=10, wait_for_ready=True)
    assert await leader.exit_code() == 1
    assert f"member {leader.name} " in leader.log
    assert "was removed from the cluster at index" in leader.log
    writer.members = [m for m in fleet if m is not leader]
    await writer.more()

    # Who it is, and who the others are, stands in its data directory: its settings name nobody but itself.
    assert r4.process is not None
    r4.process.kill()
    await r4.process.wait()
    await r4.start(r4.spec)
    await writer.more()
    writer.stopping = True
    await writing

    await asyncio.wait_for(r4.channel.channel_ready(), 20)
    rest = await r4.cluster.MemberList(rpc_pb2.MemberListRequest(linearizable=True), timeout=5)
    assert sorted(m.name for m in rest.members) == sorted(m.name for m in fleet if m is not leader)
    found = await r4.kv.Range(rpc_pb2.RangeRequest(key=b"k", range_end=b"l", keys_only=True), timeout=10)
    assert set(writer.acknowledged) <= {kv.key for kv in found.kvs}
