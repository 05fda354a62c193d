"""Faults of disks, clocks and resources on a real cluster: each bites, is healed, and loses nothing acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from chaos.faults import fault_named
from chaos.faults.disks import until_dead
from chaos.ground import Ground
from chaos.small_disk import missing as small_disk_missing
from controlplane.base.rand import SeededRand
from controlplane.local.clocks import library
from controlplane.local.cluster import LocalCluster
from controlplane.local.damage import flip, restore
from controlplane.pb.etcd import rpc_pb2
from controlplane.raft.snapshots import SNAPSHOT_DIR
from tests.conftest import not_run
from tests.e2e.support import Qd

PORT_BASE = "15750"


@pytest.fixture
def qd(tmp_path: Path) -> Iterator[Qd]:
    made = Qd(tmp_path)
    try:
        made.ok("local", "up", "--nodes", "1", "--port-base", PORT_BASE)
        yield made
    finally:
        made.run("local", "down", "--destroy")


class Rig:
    """Strikes one fault after another at a cluster, and writes before, during and after each."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.acknowledged: set[bytes] = set()

    async def write(self) -> None:
        key = f"/test/{len(self.acknowledged)}".encode()
        await self.ground.patiently(lambda: self.ground.kv.put(key, b"kept"))
        self.acknowledged.add(key)

    async def _write_on(self) -> None:
        while True:
            await self.write()
            await self.ground.clock.sleep(0.02)

    async def bite(self, fault: str, *, seconds: float = 0.5, victim: str = "", **params: Any) -> Mapping[str, Any]:
        ground = self.ground
        seen = await ground.look()
        assert seen.leader is not None
        made = fault_named(fault)
        assert made.missing(ground) is None
        strike = made.plan(ground, [victim or seen.leader], params, SeededRand(3))
        assert not strike.quorum_lost
        entry = ground.undo.add("test", strike)
        writing = asyncio.create_task(self._write_on())
        facts = await made.strike(ground, strike)
        await ground.clock.sleep(seconds)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await self.write()
        proof = await made.proof(ground, strike)
        async with Ground.open(ground.cluster, say=lambda _: None) as another:
            await another.look()
            for undo in strike.undo:
                await made.heal(another, undo)
                await made.heal(ground, undo)
        ground.undo.remove(entry)
        assert await ground.replicas.until_whole(30, lambda: None), f"not whole after {fault}"
        return {**facts, **proof}

    async def nothing_lost(self) -> None:
        request = rpc_pb2.RangeRequest(key=b"/test/", range_end=b"/test0", keys_only=True)
        found = {kv.key for kv in (await self.ground.kv.range(request)).kvs}
        assert found >= self.acknowledged


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.needs("faketime", "faketime")
async def test_disks_clocks_and_resources_bite_and_heal(qd: Qd) -> None:
    if library() is None:
        not_run("libfaketime is not installed (apt-get install faketime)")
    async with Ground.open(LocalCluster.open(qd.root), say=lambda _: None) as ground:
        rig = Rig(ground)
        for fault, params in (
            ("disk-error", {"errno": "EIO"}),
            ("lose-unsynced", {}),
            ("tear", {}),
            ("clock-step", {"step_s": -3600}),
            ("clock-skew", {"rate": 3}),
            ("cpu-throttle", {"percent": 2, "seconds": 1.0}),
            ("memory-pressure", {"mib": 64}),
        ):
            found = await rig.bite(fault, **params)
            assert found["bit"] is True, f"{fault}: {found}"
        leader = ground.seen.leader
        follower = next(name for name in ground.seen.replicas if name != leader)
        found = await rig.bite("monotonic-jump", victim=follower, jump_s=30)
        assert found["clocks"] == {follower: "monotonic"}
        found = await rig.bite("flip", victim=follower, where="wal", seconds=2.0)
        assert found["refused_to_start"] is True, "a turned bit in the log was not found out"
        await rig.nothing_lost()


@pytest.mark.slow
async def test_a_full_disk_of_the_leader_and_its_data_back_in_their_place(qd: Qd) -> None:
    async with Ground.open(LocalCluster.open(qd.root), say=lambda _: None) as ground:
        rig = Rig(ground)
        found = await rig.bite("disk-full", seconds=1.0)
        assert found["means"] == ("failpoint" if small_disk_missing() else "small disk")
        assert found["bit"] is True, found
        await rig.nothing_lost()
        beside = sorted(path.name for path in (qd.root / "replicas").iterdir())
        assert beside == ["r1", "r2", "r3"]


@pytest.mark.slow
async def test_replicas_killed_in_the_middle_of_a_snapshot_leave_half_a_file_and_lose_nothing(qd: Qd) -> None:
    cut = qd.ok("snapshot", "cut").stdout.splitlines()
    assert [line.split()[0] for line in cut[1:]] == ["r1", "r2", "r3"]
    assert all(int(line.split()[4]) >= int(line.split()[1]) for line in cut[1:]), "the log it holds is dropped"
    assert "there are: r1, r2, r3" in qd.run("snapshot", "cut", "r9").stderr
    async with Ground.open(LocalCluster.open(qd.root), say=lambda _: None) as ground:
        rig = Rig(ground)
        found = await rig.bite("kill-cutting")
        assert "left saving.tmp" in found["proved"]["snapshot-cut-at-kill"], found
        leader = (await ground.look()).leader
        follower = next(name for name in ground.seen.replicas if name != leader)
        found = await rig.bite("kill-receiving", victim=follower)
        assert ".part" in found["proved"]["snapshot-received-at-kill"], found
        await rig.nothing_lost()


@pytest.mark.slow
async def test_a_damaged_snapshot_is_set_aside_for_the_one_before_and_without_one_the_replica_refuses(qd: Qd) -> None:
    # A cluster made of a snapshot: no log of it reaches back to the beginning.
    file = str(qd.folder / "all.qdsnap")
    qd.ok("snapshot", "save", file)
    for name in "r1", "r2", "r3":
        qd.ok("local", "kill", name)
    qd.ok("snapshot", "restore", file, "--yes")
    async with Ground.open(LocalCluster.open(qd.root), say=lambda _: None) as ground:
        rig = Rig(ground)
        leader = (await ground.look()).leader
        follower = next(name for name in ground.seen.replicas if name != leader)
        folder = ground.cluster.replica_dir(follower) / SNAPSHOT_DIR

        async def cut_twice() -> None:
            for _ in range(2):
                await rig.write()
                await asyncio.to_thread(qd.ok, "snapshot", "cut", follower)

        for fault, damaged in (("flip", "flipped"), ("tear", "torn")):
            await cut_twice()
            newest = max(path.name for path in folder.glob("*.snap"))
            found = await rig.bite(fault, victim=follower, where="snapshot")
            assert str(found[damaged]).startswith(newest), found
            assert found["refused_to_start"] is False, "the log reaches back to the snapshot before"
            assert (folder / f"{newest}.corrupt").exists()
            assert "snapshot refused" in ground.cluster.processes.log_tail(follower, 200)
        await cut_twice()
        await asyncio.to_thread(ground.cluster.kill, follower)
        turned = [flip(path, path.stat().st_size // 2, 3) for path in folder.glob("*.snap")]
        assert len(turned) == 2
        ground.cluster.start(follower)
        await until_dead(ground, follower, "serves a damaged state")
        said = ground.cluster.processes.log_tail(follower, 20)
        assert "no usable snapshot" in said
        assert all(f"{byte.path.name} is damaged or incomplete" in said for byte in turned), said
        for byte in turned:
            restore(byte.path, byte.offset, byte.before)
        ground.cluster.start(follower)
        assert await ground.replicas.until_whole(30, lambda: None)
        await rig.nothing_lost()
