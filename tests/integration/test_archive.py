"""Real replicas, killed without warning while they archive: what the archive gives was a state of theirs, whole.

First leaders are killed at any moment under load, then all replicas at once and their disks are lost.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from controlplane.backup.audit import audit
from controlplane.backup.materialize import Materialized, materialize
from controlplane.backup.objects import open_objects
from controlplane.backup.repository import Repository, clusters
from controlplane.client import EtcdClient
from controlplane.client.etcd_client import Acknowledged
from controlplane.pb.etcd.rpc_pb2 import RangeRequest
from controlplane.raft.snapshot_format import read_snapshot_file
from controlplane.store.store import Store
from tests.integration.test_rolling_upgrade import Fleet, running

log = logging.getLogger(__name__)

pytestmark = pytest.mark.slow

#: A bound for a machine that is busy with other things; the interval itself is a second.
_RECOVERY_POINT_S = 6.0
_KILLS = 2


@dataclass(frozen=True, slots=True)
class Write:
    key: bytes
    revision: int
    at_s: float


class Writers:
    """Each key is written once, with itself as the value."""

    def __init__(self, endpoints: list[str]) -> None:
        self.acknowledged: list[Write] = []
        self._clients = [EtcdClient(endpoints, first=first) for first in endpoints]
        self._tasks = [asyncio.create_task(self._write(n, client)) for n, client in enumerate(self._clients)]

    async def _write(self, number: int, client: EtcdClient) -> None:
        for count in range(1_000_000):
            key = b"w/%d/%d" % (number, count)
            outcome = await client.put(key, key)
            if isinstance(outcome, Acknowledged):
                self.acknowledged.append(Write(key, outcome.revision, time.monotonic()))
            else:
                await asyncio.sleep(0.05)

    async def more(self, count: int) -> None:
        enough = len(self.acknowledged) + count
        async with asyncio.timeout(60):
            while len(self.acknowledged) < enough:  # noqa: ASYNC110 - the other tasks' progress
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self._clients))


def keys_of(found: Materialized) -> dict[bytes, tuple[bytes, int]]:
    _, chunks = read_snapshot_file(found.path)
    store = Store()
    store.restore(chunks)
    rows = store.range(RangeRequest(key=b"w/", range_end=b"w0")).kvs
    return {kv.key: (kv.value, kv.mod_revision) for kv in rows}


def check(found: Materialized, acknowledged: list[Write]) -> None:
    """It holds every acknowledged write up to its revision, at that revision, and nothing from after it."""
    rows = keys_of(found)
    for write in acknowledged:
        assert rows.get(write.key) == ((write.key, write.revision) if write.revision <= found.revision else None), write
    assert all(value == key and revision <= found.revision for key, (value, revision) in rows.items())


async def kill_the_leader(fleet: Fleet) -> None:
    leader = await fleet.leader()
    await asyncio.to_thread(fleet.cluster.kill, leader)
    fleet.cluster.start(leader)
    await fleet.ready(leader)


async def test_the_loss_of_all_disks_costs_no_write_older_than_the_interval(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    archive = tmp_path / "archive"
    async with running(tmp_path, None, "--archive", str(archive), "--archive-snapshot-every", "5s") as fleet:
        writers = Writers(fleet.endpoints)
        try:
            await writers.more(20)
            for _ in range(_KILLS):
                await asyncio.sleep(chance.random())
                await kill_the_leader(fleet)
            await writers.more(100)
            await asyncio.sleep(1 + chance.random())
            names = [replica.name for replica in fleet.cluster.spec.replicas]
            killed_at = time.monotonic()
            for name in names:
                fleet.cluster.processes.signal(name, signal.SIGKILL)
        finally:
            await writers.close()
        for name in names:
            await asyncio.to_thread(fleet.cluster.processes.wait_gone, name)
            await asyncio.to_thread(fleet.cluster.destroy_replica_data, name)
    acknowledged = writers.acknowledged
    found = await asyncio.to_thread(materialize, str(archive), scratch=tmp_path / "found")
    lost = [write for write in acknowledged if write.revision > found.revision]
    oldest_s = max((killed_at - write.at_s for write in lost), default=0.0)
    text = "seed %d: %d writes acknowledged, %d lost, the oldest acknowledged %.2f s before the end"
    log.info(text, seed, len(acknowledged), len(lost), oldest_s)
    assert oldest_s < _RECOVERY_POINT_S, f"seed {seed}"
    assert not found.notes, f"seed {seed}"
    check(found, acknowledged)
    objects = open_objects(str(archive))
    (cluster_id,) = clusters(objects)
    repository = Repository(objects, cluster_id)
    assert audit(repository, tmp_path).problems == [], f"seed {seed}"
    first = min(name.revision for name in repository.snapshots())
    between = [write.revision for write in acknowledged if first <= write.revision <= found.revision]
    for revision in chance.sample(between, 3):
        earlier = materialize(str(archive), to_revision=revision, scratch=tmp_path / "found")
        assert earlier.revision == revision
        check(earlier, acknowledged)
