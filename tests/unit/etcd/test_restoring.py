"""The proposer's side of a restore: what is refused before anything changes, and who may ask."""

from __future__ import annotations

import pytest

from controlplane.base.clock import SystemClock
from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import SeededRand
from controlplane.etcd.local import LocalKV
from controlplane.etcd.restoring import LiveRestore
from controlplane.pb.etcd.rpc_pb2 import NOSPACE, AlarmRequest, PutRequest, RangeRequest
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import RestoreBegin
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader
from controlplane.store.snapshot import load
from controlplane.store.staging import NO_DIGEST, chained, pieces_of
from controlplane.store.store import Store
from tests.fakes.raft import FakeRaft

ID = b"0123456789abcdef"
EVERYTHING = RangeRequest(key=b"\0", range_end=b"\0")


class Rig:
    """Three replicas that share a log; the snapshot to restore is taken with :meth:`save`."""

    def __init__(self, *, quota_bytes: int = 1 << 30) -> None:
        rand = SeededRand(1)
        self.stores = [Store() for _ in range(3)]
        self.free = [1 << 40] * 3
        rafts: list[FakeRaft] = []
        self.kvs: list[LocalKV] = []
        self.restores: list[LiveRestore] = []
        for n, store in enumerate(self.stores):
            raft = FakeRaft(store, name=f"r{n + 1}", join=rafts[0] if rafts else None)
            kv = LocalKV(raft, store, rand=rand, quota_bytes=quota_bytes)
            rafts.append(raft)
            self.kvs.append(kv)
            self.restores.append(LiveRestore(kv, raft, store, SystemClock(), rand, lambda n=n: self.free[n]))  # type: ignore[misc]
        self.cluster_id = rafts[0].status().cluster_id
        self.rafts = rafts
        self.pieces: list[bytes] = []
        self.digest = NO_DIGEST
        self.revision = 0

    def save(self) -> None:
        loaded = load(self.stores[0].snapshot())
        self.pieces = list(pieces_of(loaded.keyspace, loaded.auth, loaded.leases.values()))
        self.digest = NO_DIGEST
        for piece in self.pieces:
            self.digest = chained(self.digest, piece)
        self.revision = self.stores[0].revision

    def begin(self, *, cluster_id: int | None = None, force: bool = False) -> RestoreBegin:
        header = SnapshotHeader(
            cluster_id=self.cluster_id if cluster_id is None else cluster_id, revision=self.revision
        )
        return RestoreBegin(id=ID, snapshot=header, total_bytes=sum(map(len, self.pieces)), force=force)

    async def put(self, key: bytes, value: bytes = b"v") -> None:
        await self.kvs[0].put(PutRequest(key=key, value=value))

    def values(self, n: int = 0) -> dict[bytes, bytes]:
        return {kv.key: kv.value for kv in self.stores[n].range(EVERYTHING).kvs}


@pytest.fixture
async def rig() -> Rig:
    made = Rig()
    for n in range(20):
        await made.put(b"k%02d" % n)
    made.save()
    await made.put(b"k00", b"changed")
    await made.put(b"new")
    return made


async def test_every_step_may_go_through_another_replica(rig: Rig) -> None:
    opened = await rig.restores[0].begin(rig.begin(), state_bytes=1)
    assert (opened.progress.next, list(opened.absent)) == (0, [])
    for n, piece in enumerate(rig.pieces):
        assert (await rig.restores[n % 3].chunk(ID, n, piece)).next == n + 1
    done = await rig.restores[1].commit(ID, rig.digest)
    again = await rig.restores[2].commit(ID, rig.digest)
    assert again.header.revision == done.header.revision > 1_000_000_000, "a commit asked for twice happens once"
    for n in range(3):
        assert rig.values(n) == {b"k%02d" % k: b"v" for k in range(20)}
        assert rig.stores[n].state_hash() == rig.stores[0].state_hash()


async def test_another_clusters_snapshot_needs_force(rig: Rig) -> None:
    with pytest.raises(StatusError, match="of cluster 5, this is") as refused:
        await rig.restores[0].begin(rig.begin(cluster_id=5), state_bytes=1)
    assert refused.value.code is Code.FAILED_PRECONDITION
    assert rig.stores[0].restoring is None
    await rig.restores[0].begin(rig.begin(cluster_id=5, force=True), state_bytes=1)


async def test_a_member_without_room_is_named_and_nothing_begins(rig: Rig) -> None:
    rig.free[2] = 1_000
    with pytest.raises(StatusError, match="r3: its disk has 1000 bytes free, and the restore needs"):
        await rig.restores[0].begin(rig.begin(), state_bytes=1)
    rig.free[2] = 1 << 40
    await rig.restores[0].begin(rig.begin(), state_bytes=1)
    rig.free[2] = 1_000
    assert (await rig.restores[0].begin(rig.begin(), state_bytes=1)).progress.next == 0, "who has begun may go on"
    await rig.restores[0].abort(ID)
    rig.free[2] = 1 << 40
    with pytest.raises(StatusError, match="is over its quota"):
        await rig.restores[0].begin(rig.begin(), state_bytes=2 << 30)
    assert rig.stores[0].restoring is None


async def test_who_begins_again_through_a_replica_that_is_behind_is_not_asked_for_room_again(rig: Rig) -> None:
    """The first answer was lost, and what was staged has taken the room."""
    rig.rafts[1].lags = True
    await rig.restores[0].begin(rig.begin(), state_bytes=1)
    await rig.restores[0].chunk(ID, 0, rig.pieces[0])
    rig.free[2] = 1_000
    assert rig.stores[1].restoring is None
    assert (await rig.restores[1].begin(rig.begin(), state_bytes=1)).progress.next == 1


async def test_a_full_store_may_be_restored_and_the_alarm_stays_until_it_is_cleared(rig: Rig) -> None:
    await rig.kvs[0].alarm(AlarmRequest.ACTIVATE, 7, NOSPACE)
    await rig.restores[0].begin(rig.begin(), state_bytes=1)
    for n, piece in enumerate(rig.pieces):
        await rig.restores[0].chunk(ID, n, piece)
    await rig.restores[0].commit(ID, rig.digest)
    assert rig.stores[0].alarms.no_space
    with pytest.raises(StatusError, match="database space exceeded"):
        await rig.put(b"x")


async def test_a_damaged_piece_ends_the_restore(rig: Rig) -> None:
    await rig.restores[0].begin(rig.begin(), state_bytes=1)
    with pytest.raises(StatusError, match="nothing was changed"):
        await rig.restores[0].chunk(ID, 0, rig.pieces[0][:-1])
    with pytest.raises(StatusError, match="given up") as gone:
        await rig.restores[0].chunk(ID, 0, rig.pieces[0])
    assert gone.value.code is Code.NOT_FOUND
    assert rig.values()[b"k00"] == b"changed"
