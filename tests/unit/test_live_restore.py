"""The client's part of a live restore, over real gRPC: the file to all replicas, also when one of them goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from controlplane import live_restore
from controlplane.api.operator import OperatorService
from controlplane.base.clock import SystemClock
from controlplane.base.errors import ConfigError, CorruptStateError
from controlplane.base.rand import SeededRand
from controlplane.client.fenced import LEADER_KEY
from controlplane.client.interface import ApiError, UnavailableError
from controlplane.etcd.local import LocalKV
from controlplane.etcd.restoring import LiveRestore
from controlplane.live_restore import plan_of, restore_live
from controlplane.pb.etcd.auth_pb2 import Permission
from controlplane.pb.etcd.rpc_pb2 import AuthRoleAddRequest, AuthRoleGrantPermissionRequest, PutRequest, RangeRequest
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, Proposal
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader
from controlplane.pb.quarterdeck.v1 import operator_pb2_grpc
from controlplane.raft.snapshot_format import encode_snapshot_file
from controlplane.store import staging
from controlplane.store.store import Store
from controlplane.transport.server import listen, new_server
from tests.fakes.raft import FakeRaft

KEYS = 60
EVERYTHING = RangeRequest(key=b"\0", range_end=b"\0")


@dataclass
class Cluster:
    endpoints: list[str]
    servers: list[grpc.aio.Server]
    stores: list[Store]
    kv: LocalKV
    cluster_id: int

    def save(self, path: Path) -> Path:
        store = self.stores[0]
        header = SnapshotHeader(cluster_id=self.cluster_id, index=store.applied_index, term=1, revision=store.revision)
        path.write_bytes(b"".join(encode_snapshot_file(header, store.snapshot())))
        return path

    def values(self, n: int) -> dict[bytes, bytes]:
        return {kv.key: kv.value for kv in self.stores[n].range(EVERYTHING).kvs}


@pytest.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setattr(staging, "PIECE_BYTES", 60)
    monkeypatch.setattr("controlplane.live_restore._AGREE_S", 1.0)
    clock, rand = SystemClock(), SeededRand(1)
    stores: list[Store] = []
    servers: list[grpc.aio.Server] = []
    endpoints: list[str] = []
    rafts: list[FakeRaft] = []
    kvs: list[LocalKV] = []
    for number in (1, 2, 3):
        server = new_server()
        endpoint = f"127.0.0.1:{listen(server, '127.0.0.1:0')}"
        store = Store()
        raft = FakeRaft(store, name=f"r{number}", join=rafts[0] if rafts else None, client_endpoint=endpoint)
        kv = LocalKV(raft, store, clock=clock, rand=rand)
        restoring = LiveRestore(kv, raft, store, clock, rand, lambda: 1 << 40)
        operator_pb2_grpc.add_OperatorServicer_to_server(OperatorService(raft, store, clock, restoring), server)
        await server.start()
        stores.append(store)
        servers.append(server)
        endpoints.append(endpoint)
        rafts.append(raft)
        kvs.append(kv)
    made = Cluster(endpoints, servers, stores, kvs[0], rafts[0].status().cluster_id)
    for n in range(KEYS):
        await made.kv.put(PutRequest(key=b"k%02d" % n, value=b"saved"))
    await made.kv.put(PutRequest(key=LEADER_KEY, value=b"r1 1"))
    yield made
    for server in servers:
        await server.stop(None)


async def changed(cluster: Cluster) -> None:
    await cluster.kv.put(PutRequest(key=b"k00", value=b"changed"))
    await cluster.kv.put(PutRequest(key=b"new", value=b"unknown"))


async def test_the_state_of_the_file_is_on_all_replicas_but_for_the_key_of_the_leader(
    cluster: Cluster, tmp_path: Path
) -> None:
    plan = plan_of(cluster.save(tmp_path / "a.qdsnap"))
    await changed(cluster)
    said: list[tuple[int, int]] = []
    restored = await restore_live(
        plan, cluster.endpoints, credentials=None, say=lambda sent, total: said.append((sent, total))
    )
    assert (restored.keys, plan.keys, restored.replicas, restored.behind) == (KEYS, KEYS, ["r1", "r2", "r3"], [])
    assert said[-1] == (len(plan.pieces), len(plan.pieces))
    assert len(said) > 2
    for n, store in enumerate(cluster.stores):
        assert cluster.values(n) == {b"k%02d" % k: b"saved" for k in range(KEYS)}
        assert store.state_hash(restored.hash_revision) == restored.state_hash
        assert store.revision >= restored.revision > 1_000_000_000


async def test_it_goes_on_with_another_replica_when_one_goes_away(cluster: Cluster, tmp_path: Path) -> None:
    plan = plan_of(cluster.save(tmp_path / "a.qdsnap"))
    await changed(cluster)
    stopped: list[int] = []

    def stop_the_first(sent: int, total: int) -> None:
        if not stopped and sent > 8:
            stopped.append(sent)
            going.append(asyncio.ensure_future(cluster.servers[0].stop(None)))

    going: list[object] = []
    restored = await restore_live(plan, cluster.endpoints, credentials=None, say=stop_the_first)
    assert stopped
    assert cluster.values(1) == cluster.values(2) == {b"k%02d" % k: b"saved" for k in range(KEYS)}
    assert restored.behind == ["r1"], "it was not seen to have it"


def test_a_role_too_big_to_travel_is_refused_before_anything_begins(tmp_path: Path) -> None:
    store = Store()
    grants = [
        AuthRoleGrantPermissionRequest(name="big", perm=Permission(key=b"%04d" % n + bytes(2_000))) for n in range(900)
    ]
    commands = [
        Command(auth_role_add=AuthRoleAddRequest(name="small")),
        Command(auth_role_add=AuthRoleAddRequest(name="big")),
        *(Command(auth_role_grant_permission=grant) for grant in grants),
    ]
    for index, command in enumerate(commands, 1):
        store.apply(index, 1, [Proposal(payload=command.SerializeToString())])
    path = tmp_path / "a.qdsnap"
    header = SnapshotHeader(cluster_id=1, index=store.applied_index, term=1, revision=store.revision)
    path.write_bytes(b"".join(encode_snapshot_file(header, store.snapshot())))
    with pytest.raises(ConfigError, match=r"role 'big' has 900 permissions\. Make a new cluster of the file"):
        plan_of(path)


def test_a_record_too_big_that_is_no_users_is_refused_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_restore, "PIECE_BYTES_MAX", 1_000)
    store = Store()
    put = Command(put=PutRequest(key=b"k", value=bytes(2_000)))
    store.apply(1, 1, [Proposal(payload=put.SerializeToString())])
    path = tmp_path / "a.qdsnap"
    header = SnapshotHeader(cluster_id=1, index=store.applied_index, term=1, revision=store.revision)
    path.write_bytes(b"".join(encode_snapshot_file(header, store.snapshot())))
    with pytest.raises(ConfigError, match=r"at most 1000: it is no user's and no role's"):
        plan_of(path)


async def test_another_clusters_file_is_refused_and_nothing_changes(cluster: Cluster, tmp_path: Path) -> None:
    cluster.cluster_id += 1
    plan = plan_of(cluster.save(tmp_path / "a.qdsnap"))
    await changed(cluster)
    with pytest.raises(ApiError, match="--force"):
        await restore_live(plan, cluster.endpoints, credentials=None)
    assert cluster.values(0)[b"k00"] == b"changed"
    assert cluster.stores[0].restoring is None
    await restore_live(plan, cluster.endpoints, credentials=None, force=True)
    assert cluster.values(0)[b"k00"] == b"saved"


async def test_one_that_is_interrupted_leaves_no_stage(cluster: Cluster, tmp_path: Path) -> None:
    plan = plan_of(cluster.save(tmp_path / "a.qdsnap"))

    def interrupt(sent: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await restore_live(plan, cluster.endpoints, credentials=None, say=interrupt)
    assert [store.restoring for store in cluster.stores] == [None, None, None]


async def test_without_any_replica_it_gives_up(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.live_restore._PATIENCE_S", 0.3)
    plan = plan_of(cluster.save(tmp_path / "a.qdsnap"))
    for server in cluster.servers:
        await server.stop(None)
    with pytest.raises(UnavailableError):
        await restore_live(plan, cluster.endpoints, credentials=None)


def test_a_damaged_file_and_what_is_none_are_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    none = tmp_path / "none"
    none.write_bytes(b"QDSNAP\r\n" + b"x" * 100)
    with pytest.raises(CorruptStateError):
        plan_of(none)
    with pytest.raises(ConfigError):
        plan_of(tmp_path / "missing")
