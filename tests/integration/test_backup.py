"""Backups that etcd understands: its own hash, its own file, and an etcd that starts from ours."""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.etcd import rpc_pb2_grpc
from controlplane.transport.channel import new_channel
from tests.conftest import find_program
from tests.integration.etcd_rig import Ours, ours, real_etcd

pytestmark = [
    pytest.mark.needs("etcd", "etcd-server"),
    pytest.mark.needs("etcdctl", "etcd-client"),
    pytest.mark.slow,
]


class Stubs:
    """The gRPC services of one endpoint."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.kv: Any = rpc_pb2_grpc.KVStub(channel)
        self.lease: Any = rpc_pb2_grpc.LeaseStub(channel)
        self.maintenance: Any = rpc_pb2_grpc.MaintenanceStub(channel)

    async def hash_kv(self, revision: int = 0) -> tuple[int, int]:
        answer = await self.maintenance.HashKV(e.HashKVRequest(revision=revision))
        return answer.hash, answer.compact_revision

    async def everything(self, revision: int = 0) -> list[Any]:
        answer = await self.kv.Range(e.RangeRequest(key=b"\0", range_end=b"\0", revision=revision))
        return list(answer.kvs)


def put_op(key: bytes, value: bytes) -> e.RequestOp:
    return e.RequestOp(request_put=e.PutRequest(key=key, value=value))


def traffic(seed: int, count: int) -> list[tuple[str, str, Any]]:
    """The same requests for everybody: (service, method, request)."""
    choose = random.Random(seed)
    keys = [b"key/%03d" % number for number in range(60)]
    calls: list[tuple[str, str, Any]] = [
        ("lease", "LeaseGrant", e.LeaseGrantRequest(ID=lease, TTL=3_600)) for lease in (7, 8)
    ]
    for number in range(count):
        key, value = choose.choice(keys), b"%d" % number * choose.choice((1, 1, 1, 400))
        match choose.randrange(8):
            case 0:
                calls.append(("kv", "DeleteRange", e.DeleteRangeRequest(key=key)))
            case 1:
                calls.append(("kv", "DeleteRange", e.DeleteRangeRequest(key=key, range_end=key[:-1] + b"9")))
            case 2:
                some = choose.sample(keys, 3)
                calls.append(("kv", "Txn", e.TxnRequest(success=[put_op(each, value) for each in some])))
            case 3:
                calls.append(("kv", "Put", e.PutRequest(key=key, value=value, lease=choose.choice((7, 8)))))
            case _:
                calls.append(("kv", "Put", e.PutRequest(key=key, value=value)))
    return calls


async def play(stubs: Stubs, calls: list[tuple[str, str, Any]]) -> None:
    for service, method, request in calls:
        await getattr(getattr(stubs, service), method)(request)


@pytest.mark.parametrize("seed", range(3))
async def test_the_same_requests_give_the_same_hash_as_etcds_own(seed: int, tmp_path: Path) -> None:
    async with (
        ours() as server,
        real_etcd(tmp_path / "etcd") as endpoint,
        new_channel(server.endpoint) as mine_channel,
        new_channel(endpoint) as theirs_channel,
    ):
        mine, theirs = Stubs(mine_channel), Stubs(theirs_channel)
        calls = traffic(seed, 400)
        for stubs in (mine, theirs):
            await play(stubs, calls[:200])
        assert await mine.hash_kv() == await theirs.hash_kv()
        assert (await mine.hash_kv())[1] == -1
        revision = server.store.revision
        assert await mine.hash_kv(revision // 2) == await theirs.hash_kv(revision // 2)
        for stubs in (mine, theirs):
            await stubs.kv.Compact(e.CompactionRequest(revision=revision - 20, physical=True))
            await play(stubs, calls[200:])
            await stubs.lease.LeaseRevoke(e.LeaseRevokeRequest(ID=7))
        for at in (0, revision - 19, revision, revision + 50):
            assert await mine.hash_kv(at) == await theirs.hash_kv(at), f"at revision {at}"
        for stubs in (mine, theirs):
            await stubs.kv.DeleteRange(e.DeleteRangeRequest(key=b"\0", range_end=b"\0"))
        assert await mine.hash_kv() == await theirs.hash_kv(), "with no key left"


async def etcdctl(*arguments: str) -> str:
    program = find_program("etcdctl")
    assert program is not None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
    process = await asyncio.create_subprocess_exec(
        program, *arguments, env={**environment, "ETCDCTL_API": "3"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0, f"etcdctl {arguments}: {out.decode()}"
    return out.decode()


async def filled(server: Ours, stubs: Stubs, count: int) -> None:
    await play(stubs, traffic(9, 300))
    await stubs.kv.Compact(e.CompactionRequest(revision=server.store.revision - 40, physical=True))
    await stubs.kv.Put(e.PutRequest(key=b"big", value=bytes(range(256)) * 5_000))
    for start in range(0, count, 100):
        ops = [put_op(b"many/%06d" % number, b"v%d" % number) for number in range(start, start + 100)]
        await stubs.kv.Txn(e.TxnRequest(success=ops))


async def test_an_etcd_starts_from_our_snapshot_with_every_key_revision_and_lease(tmp_path: Path) -> None:
    file, restored = tmp_path / "backup.db", tmp_path / "restored"
    async with ours() as server, new_channel(server.endpoint) as channel:
        stubs = Stubs(channel)
        await filled(server, stubs, 5_000)
        revision = server.store.revision
        before = await stubs.everything()
        older = await stubs.everything(revision - 60)
        hashed = (await stubs.maintenance.Hash(e.HashRequest())).hash
        # Writes go on, one at a time, while the file is made: none of them is in it.
        written, enough = 0, False

        async def write_on() -> None:
            nonlocal written
            while not enough:
                await stubs.kv.Put(e.PutRequest(key=b"later", value=b"x"))
                written += 1

        writing = asyncio.create_task(write_on())
        chunks = [chunk async for chunk in stubs.maintenance.Snapshot(e.SnapshotRequest())]
        enough = True
        await writing  # to its end: a write that is cancelled may still happen, after the next snapshot
        assert written > 0, "making a snapshot must not stop writes"
        sizes = [chunk.remaining_bytes for chunk in chunks]
        assert sizes == sorted(sizes, reverse=True)
        assert (sizes[-1], len(chunks[-1].blob)) == (0, 32)
        saved = await etcdctl(f"--endpoints={server.endpoint}", "snapshot", "save", str(file))
        assert "Snapshot saved" in saved
        cut = server.store.revision
        after = await stubs.everything()
    status = json.loads(await etcdctl("snapshot", "status", str(file), "--write-out=json"))
    assert status["revision"] == cut
    assert status["totalSize"] == file.stat().st_size - 32
    assert status["totalKey"] > len(after)
    assert hashed != 0
    peer = "http://127.0.0.1:1"
    await etcdctl(
        "snapshot", "restore", str(file), f"--data-dir={restored}", "--name=solo",
        f"--initial-cluster=solo={peer}", f"--initial-advertise-peer-urls={peer}",
    )  # fmt: skip
    async with real_etcd(restored) as endpoint, new_channel(endpoint) as channel:
        etcd = Stubs(channel)
        assert await etcd.everything() == after
        assert await etcd.everything(revision) == before
        assert await etcd.everything(revision - 60) == older
        with pytest.raises(grpc.aio.AioRpcError, match="compacted"):
            await etcd.everything(2)
        leases = (await etcd.lease.LeaseLeases(e.LeaseLeasesRequest())).leases
        assert {lease.ID for lease in leases} == {7, 8}
        left = await etcd.lease.LeaseTimeToLive(e.LeaseTimeToLiveRequest(ID=7, keys=True))
        assert left.grantedTTL == 3_600
        assert sorted(left.keys) == sorted(kv.key for kv in after if kv.lease == 7)
        put = await etcd.kv.Put(e.PutRequest(key=b"first", value=b"new"))
        assert put.header.revision > cut
