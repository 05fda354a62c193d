"""Three replicas in one process over real loopback sockets and real files."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from controlplane.base.errors import ConfigError, StorageError
from controlplane.base.rand import SystemRand
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Batch
from controlplane.raft.config import RaftConfig, make_members
from controlplane.raft.core import Turn
from controlplane.raft.driver import Replica
from controlplane.raft.snapshot_format import read_snapshot_file
from controlplane.raft.snapshots import SnapshotStore
from controlplane.raft.types import Applied, NeverSent, Unknown
from controlplane.raft.wal import Flush, Wal
from tests.unit.raft.toy import ToyMachine

CONFIG = RaftConfig(heartbeat_ms=20, election_min_ms=150, election_max_ms=300, step_down_ms=140, resend_ms=300)


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports: list[int] = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Cluster:
    """Replicas by name, with their state machines."""

    def __init__(self, root: Path, size: int) -> None:
        self.root = root
        self.config = CONFIG
        names = [f"r{n}" for n in range(1, size + 1)]
        rows = [(name, f"127.0.0.1:{port}", "", "") for name, port in zip(names, free_ports(size), strict=True)]
        self.cluster_id, self.members = make_members("test", rows)
        self.names = names
        self.replicas: dict[str, Replica] = {}
        self.machines: dict[str, ToyMachine] = {}

    async def start(self, name: str) -> Replica:
        machine = ToyMachine()
        replica = Replica(
            config=self.config,
            cluster_id=self.cluster_id,
            members=self.members,
            name=name,
            data_dir=self.root / name,
            state_machine=machine,
            create_data_dir=True,
        )
        await replica.start()
        self.replicas[name], self.machines[name] = replica, machine
        return replica

    async def stop(self, name: str) -> None:
        await self.replicas.pop(name).stop()

    def leader(self) -> str | None:
        leading = [name for name, r in self.replicas.items() if r.status().role == "leader"]
        return leading[0] if len(leading) == 1 else None

    async def until(self, condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110 - what is waited for is another replica's state
                await asyncio.sleep(0.005)

    async def put(self, name: str, payload: bytes) -> Applied:
        outcome = await self.replicas[name].propose(payload, request_id=SystemRand().token(16), timeout_ms=5_000)
        assert isinstance(outcome, Applied), outcome
        return outcome


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path, 3)
    await asyncio.gather(*(made.start(name) for name in made.names))
    try:
        yield made
    finally:
        await asyncio.gather(*(made.stop(name) for name in list(made.replicas)))


async def test_three_replicas_elect_replicate_and_read_anywhere(cluster: Cluster) -> None:
    await cluster.until(lambda: all(r.status().ready for r in cluster.replicas.values()))
    for turn, name in enumerate(cluster.names * 5):
        await cluster.put(name, f"write {turn}".encode())
        for other in cluster.names:
            await cluster.replicas[other].read_barrier(timeout_ms=2_000)
            assert cluster.machines[other].log[-1] == f"write {turn}".encode()
    assert len({m.state_hash for m in cluster.machines.values()}) == 1


async def test_concurrent_writes_share_entries_and_none_is_lost_or_doubled(cluster: Cluster) -> None:
    await cluster.until(cluster.leader)
    payloads = [f"w{n}".encode() for n in range(300)]
    await asyncio.gather(*(cluster.put(cluster.names[n % 3], p) for n, p in enumerate(payloads)))
    machine = cluster.machines["r1"]
    await cluster.replicas["r1"].read_barrier(timeout_ms=2_000)
    assert sorted(machine.log) == sorted(payloads)
    assert machine.applied_index < 150


async def test_a_write_survives_the_leader_stopping_under_it(cluster: Cluster) -> None:
    await cluster.until(lambda: all(r.status().ready for r in cluster.replicas.values()))
    leader = cluster.leader()
    assert leader is not None
    follower = next(name for name in cluster.names if name != leader)
    writes = [asyncio.create_task(cluster.put(follower, f"x{n}".encode())) for n in range(20)]
    await cluster.stop(leader)
    await asyncio.gather(*writes)
    assert cluster.leader() not in (None, leader)


async def test_a_restarted_replica_recovers_its_log_and_catches_up(cluster: Cluster) -> None:
    await cluster.until(cluster.leader)
    await cluster.put("r1", b"before")
    await cluster.stop("r3")
    await cluster.put("r1", b"while away")
    await cluster.start("r3")
    await cluster.replicas["r3"].read_barrier(timeout_ms=5_000)
    assert cluster.machines["r3"].log == [b"before", b"while away"]


async def test_replicas_that_all_come_back_do_not_wait_out_an_election_timeout(cluster: Cluster) -> None:
    await cluster.until(cluster.leader)
    await cluster.put("r1", b"before")
    await asyncio.gather(*(cluster.stop(name) for name in cluster.names))
    cluster.config = RaftConfig(election_min_ms=60_000, election_max_ms=120_000)
    await asyncio.gather(*(cluster.start(name) for name in cluster.names))
    await cluster.until(cluster.leader)
    await cluster.put("r1", b"after")
    assert cluster.machines["r1"].log == [b"before", b"after"]


async def test_a_replica_that_comes_back_in_haste_leaves_the_leader_in_place(cluster: Cluster) -> None:
    await cluster.until(lambda: all(r.status().ready for r in cluster.replicas.values()))
    leader = cluster.leader()
    assert leader is not None
    term = cluster.replicas[leader].status().term
    other = next(name for name in cluster.names if name != leader)
    for _ in range(3):
        await cluster.stop(other)
        await cluster.start(other)
        await cluster.until(lambda: cluster.replicas[other].status().ready)
    assert (cluster.leader(), cluster.replicas[other].status().term) == (leader, term)


async def test_a_follower_behind_the_compacted_log_gets_a_snapshot(cluster: Cluster) -> None:
    await cluster.stop("r3")
    for name in ("r1", "r2"):
        await cluster.stop(name)
    cluster.config = dataclasses.replace(CONFIG, snapshot_entries=20, catch_up_entries=2, snapshot_chunk_bytes=512)
    for name in ("r1", "r2"):
        await cluster.start(name)
    await cluster.until(cluster.leader)
    for n in range(60):
        await cluster.put("r1", f"s{n}".encode())
    await cluster.until(lambda: cluster.replicas["r1"].status().snapshot_index > 40)
    await cluster.until(lambda: cluster.replicas["r2"].status().snapshot_index > 40)
    await cluster.start("r3")
    await cluster.replicas["r3"].read_barrier(timeout_ms=5_000)
    assert cluster.replicas["r3"].status().snapshot_index > 40
    assert cluster.machines["r3"].state_hash == cluster.machines["r1"].state_hash
    # What it does with the log from here on is like everyone else's, a restart included.
    await cluster.put("r3", b"after")
    await cluster.stop("r3")
    await cluster.start("r3")
    await cluster.replicas["r3"].read_barrier(timeout_ms=5_000)
    assert cluster.machines["r3"].log[-1] == b"after"


async def test_a_snapshot_cut_on_demand_drops_the_log_it_holds_so_that_who_was_away_is_sent_it(
    cluster: Cluster,
) -> None:
    await cluster.until(cluster.leader)
    await cluster.put("r1", b"before")
    await cluster.until(lambda: len(cluster.machines["r3"].log) == 1)
    await cluster.stop("r3")
    for n in range(5):
        await cluster.put("r1", f"s{n}".encode())
    for name in ("r1", "r2"):
        cut = await cluster.replicas[name].cut_snapshot()
        assert cut.index == cluster.replicas[name].status().snapshot_index > 0
        assert cut.log_first_index >= cut.index, "a tail is kept of snapshots that come by themselves only"
        assert cut.size_bytes > 0
        again = await cluster.replicas[name].cut_snapshot()
        assert again.index >= cut.index
    await cluster.start("r3")
    await cluster.replicas["r3"].read_barrier(timeout_ms=5_000)
    assert cluster.replicas["r3"].status().snapshot_index > 0
    assert cluster.machines["r3"].state_hash == cluster.machines["r1"].state_hash


async def test_a_snapshot_asked_for_on_a_disk_that_refuses_is_refused_and_the_log_stays(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.until(cluster.leader)
    await cluster.put("r1", b"before")

    def refuse(*_: object) -> None:
        raise StorageError("no space", errno=errno.ENOSPC)

    with monkeypatch.context() as patched:
        patched.setattr(SnapshotStore, "begin", refuse)
        with pytest.raises(StorageError, match="no space"):
            await cluster.replicas["r1"].cut_snapshot()
    assert cluster.replicas["r1"].status().snapshot_index == 0
    await cluster.put("r1", b"after")
    assert (await cluster.replicas["r1"].cut_snapshot()).index > 0, "asked again, it is tried at once"


async def test_a_snapshot_file_of_a_running_replica_verifies_and_restores(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.until(cluster.leader)
    for n in range(20):
        await cluster.put("r2", f"s{n}".encode())
    path = tmp_path / "backup.snap"
    path.write_bytes(b"".join([piece async for piece in cluster.replicas["r2"].snapshot_file()]))
    info, chunks = read_snapshot_file(path)
    restored = ToyMachine()
    restored.restore(chunks)
    assert restored.log == cluster.machines["r2"].log
    assert info.header.index == restored.applied_index


async def test_a_disk_that_refuses_stops_the_replica_and_not_the_cluster(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.until(lambda: all(r.status().ready for r in cluster.replicas.values()))
    leader = cluster.leader()
    assert leader is not None
    storage = cluster.replicas[leader]._storage
    assert storage is not None

    def refuse(_flush: object) -> None:
        raise StorageError("cannot sync: No space left on device")

    monkeypatch.setattr(storage.wal, "write_and_sync", refuse)
    outcome = await cluster.replicas[leader].propose(b"x", request_id=b"1" * 16, timeout_ms=2_000)
    assert isinstance(outcome, Unknown | NeverSent)
    assert isinstance(await cluster.replicas[leader].failed, StorageError)
    await cluster.put(next(name for name in cluster.names if name != leader), b"y")


@pytest.mark.parametrize(("settled", "told"), [(True, Applied), (False, Unknown)])
async def test_answers_of_a_turn_that_cannot_be_made_durable_are_honest_and_do_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: bool, told: type[Applied | Unknown]
) -> None:
    alone = Cluster(tmp_path, 1)
    replica = await alone.start("r1")
    await alone.put("r1", b"before")
    core, storage = replica._core, replica._storage
    assert core is not None
    assert storage is not None
    step, take_dirty = core.step, storage.journal.take_dirty
    answering = False

    def stepping() -> Turn:
        nonlocal answering
        turn = step()
        answering = bool(turn.outcomes)
        turn.settled = turn.settled and settled
        return turn

    def take() -> Flush | None:
        return Flush(b"", None, 0, storage.wal.hard_state) if answering else take_dirty()

    def write_and_sync(flush: Flush) -> None:
        if answering:
            raise StorageError("cannot sync: Input/output error")
        storage.wal.__class__.write_and_sync(storage.wal, flush)

    monkeypatch.setattr(core, "step", stepping)
    monkeypatch.setattr(storage.journal, "take_dirty", take)
    monkeypatch.setattr(storage.wal, "write_and_sync", write_and_sync)
    async with asyncio.timeout(5):
        outcome = await replica.propose(b"x", request_id=b"1" * 16, timeout_ms=1_000)
    # What an earlier turn made durable is applied, whatever becomes of this one.
    assert isinstance(outcome, told)
    assert isinstance(await replica.failed, StorageError)
    await alone.stop("r1")


async def test_peers_answer_calls_on_their_channels(cluster: Cluster) -> None:
    async def shout(peer: str, payload: bytes) -> bytes:
        return f"{peer}:{payload.decode().upper()}".encode()

    cluster.replicas["r2"].serve("shout", shout)
    await cluster.until(cluster.leader)
    assert await cluster.replicas["r1"].call("r2", "shout", b"ahoy", timeout_ms=2_000) == b"r1:AHOY"
    assert await cluster.replicas["r2"].call("r2", "shout", b"ahoy", timeout_ms=2_000) == b"r2:AHOY"


async def test_a_single_replica_is_its_own_majority(tmp_path: Path) -> None:
    alone = Cluster(tmp_path, 1)
    await alone.start("r1")
    try:
        await alone.put("r1", b"hello")
        assert await alone.replicas["r1"].read_barrier(timeout_ms=1_000) >= 2
    finally:
        await alone.stop("r1")


async def test_a_peer_address_in_use_is_a_config_error_that_names_it(tmp_path: Path) -> None:
    alone = Cluster(tmp_path, 1)
    with socket.socket() as taken:
        host, _, port = alone.members[0].peer_address.partition(":")
        taken.bind((host, int(port)))
        taken.listen()
        with pytest.raises(ConfigError, match=alone.members[0].peer_address):
            await alone.start("r1")


async def test_the_log_is_read_behind_an_entry_as_it_was_written(cluster: Cluster) -> None:
    await cluster.until(cluster.leader)
    leader = cluster.leader()
    assert leader is not None
    replica = cluster.replicas[leader]
    await cluster.until(lambda: replica.leads)
    indexes = [(await cluster.put(leader, b"w%d" % n)).index for n in range(3)]
    await cluster.until(lambda: replica.durable_index >= indexes[-1])
    tail = replica.tail(indexes[0] - 1, entries_max=100, bytes_max=1 << 20)
    assert tail is not None
    written = [Batch.FromString(batch).proposals[0].payload for _, _, batch in tail.entries if batch is not None]
    assert written == [b"w0", b"w1", b"w2"]
    assert [index for index, _, _ in tail.entries] == list(range(indexes[0], replica.durable_index + 1))
    before = replica.tail(indexes[0], entries_max=1, bytes_max=0)
    assert before is not None
    assert (before.previous_term, len(before.entries)) == (tail.entries[0][1], 1)  # one at least
    assert replica.tail(indexes[-1] + 100, entries_max=1, bytes_max=1) is None  # not in this log
    assert not any(other.leads for name, other in cluster.replicas.items() if name != leader)


async def test_what_is_not_synced_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a replica alone, whose own sync is all that commits: a crash at this moment would take it back."""
    alone = Cluster(tmp_path, 1)
    replica = await alone.start("r1")
    syncing, gate = threading.Event(), threading.Event()
    sync = Wal.write_and_sync

    def held(wal: Wal, flush: Flush) -> None:
        syncing.set()
        gate.wait(10)
        sync(wal, flush)

    try:
        await alone.until(lambda: replica.leads)
        first = (await alone.put("r1", b"first")).index
        await alone.until(lambda: replica.durable_index >= first)
        monkeypatch.setattr(Wal, "write_and_sync", held)
        writing = asyncio.create_task(alone.put("r1", b"second"))
        await alone.until(syncing.is_set)
        tail = replica.tail(first, entries_max=10, bytes_max=1 << 20)
        assert tail is not None
        assert tail.entries == ()
        gate.set()
        second = (await writing).index
        await alone.until(lambda: replica.durable_index >= second)
    finally:
        gate.set()
        await alone.stop("r1")
