"""What an earlier release left on disk is read by this version, file by file: see tests/golden/make.py.

The files are what that release's own code wrote; ``expected.json`` is what it said was in them.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chaos import releases
from chaos.history import load
from controlplane import recovery
from controlplane.client import OperatorClient
from controlplane.local.cluster import LocalCluster
from controlplane.local.spec import ReplicaSpec
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.etcd import rpc_pb2_grpc
from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.transport.channel import new_channel
from node.layout import Layout, read_json
from node.podips import PodIPs
from node.runtime.record import ContainerRecord
from tests.integration.etcd_rig import free_port

GOLDEN = Path(__file__).parents[1] / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.iterdir() if (path / "expected.json").is_file())
assert VERSIONS, f"no release has files under {GOLDEN}: these tests would be skipped"

#: Release -> format of its snapshot files, and of the state in them.
FORMATS = {"0.1.0": (1, 1)}

pytestmark = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture
def root(version: str, tmp_path: Path) -> Path:
    """A copy of what the release left, as a local cluster's folder."""
    made = tmp_path / ".quarterdeck"
    shutil.copytree(GOLDEN / version, made)
    return made


def expected(root: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((root / "expected.json").read_text())
    return said


def test_every_release_has_its_files(version: str) -> None:
    assert set(VERSIONS) == set(releases.RELEASES), f"{version}: make the files of a new release with tests.golden.make"


def test_the_plan_of_a_local_cluster_and_the_records_of_its_processes(version: str, root: Path) -> None:
    cluster = LocalCluster.open(root)
    assert cluster.names == ["r1", "node-1"]
    assert cluster.processes.names() == ["gone"]
    assert cluster.processes.pid("gone") is None  # of another machine, long ago


def test_a_snapshot_file(version: str, root: Path) -> None:
    saved = root / "saved.snapshot"
    info, restored = recovery.verify(saved)
    assert restored.revision == info.header.revision
    assert (info.format_version, restored.state_format) == FORMATS[version]
    keys = {row.key.decode(): row for row in recovery.contents(saved) if row.key.startswith(b"g/")}
    assert {k: [r.value.decode(), r.create_revision, r.mod_revision, r.version, r.lease] for k, r in keys.items()} == (
        expected(root)["keys"]
    )


def test_the_state_of_a_node_agent(version: str, root: Path) -> None:
    layout = Layout(root / "nodes" / "node-1")
    layout.prepare()
    assert PodIPs(layout.root / "podips.json").cidr.endswith("/24")
    (uid,) = layout.pod_uids()
    pod = Pod.FromString(layout.pod_manifest(uid).read_bytes())
    assert (pod.metadata.name, pod.metadata.uid) == ("golden", uid)
    facts = read_json(layout.pod_facts(uid))
    assert facts is not None
    assert facts["ip"]
    (path,) = layout.records(uid).glob("*.json")
    record = ContainerRecord.from_json(read_json(path) or {})
    assert record is not None
    assert (record.name, record.attempt, record.pod_uid) == ("main", 0, uid)
    assert record.pid > 0


def test_the_history_of_a_chaos_run(version: str, root: Path) -> None:
    history = load(root / "history.jsonl")
    assert [(op.kind, op.outcome, op.key, op.value) for op in history.ops] == [
        ("put", "ok", "p/a", "v"),
        ("get", "ok", "p/a", "v"),
    ]
    assert [listing.reason for listing in history.listings] == ["start", "final"]
    assert (len(history.events), [mark.name for mark in history.marks]) == (1, ["begin"])


@pytest.fixture
async def replica(root: Path) -> AsyncIterator[ReplicaSpec]:
    """A replica of this version on the release's data directory."""
    cluster = LocalCluster.open(root)
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    me = ReplicaSpec("r1", *addresses)
    cluster.spec = replace(cluster.spec, replicas=(me,))
    cluster.start("r1")
    try:
        yield me
    finally:
        await asyncio.to_thread(cluster.down)


@pytest.mark.slow
async def test_the_log_and_the_snapshots_of_a_replica(version: str, root: Path, replica: ReplicaSpec) -> None:
    channel = new_channel(replica.client)
    try:
        kv, lease = rpc_pb2_grpc.KVStub(channel), rpc_pb2_grpc.LeaseStub(channel)
        whole = await kv.Range(e.RangeRequest(key=b"g/", range_end=b"g0"), timeout=60, wait_for_ready=True)
        assert {
            row.key.decode(): [row.value.decode(), row.create_revision, row.mod_revision, row.version, row.lease]
            for row in whole.kvs
        } == expected(root)["keys"]
        left = await lease.LeaseTimeToLive(e.LeaseTimeToLiveRequest(ID=77, keys=True), timeout=10)
        told = expected(root)["lease"]
        assert (left.grantedTTL, [key.decode() for key in left.keys]) == (told["ttl"], told["keys"])
        # It goes on from there, and what it writes now is this version's.
        put = await kv.Put(e.PutRequest(key=b"g/new", value=b"new"), timeout=10)
        assert put.header.revision > whole.header.revision - 1
        async with OperatorClient(replica.client) as operator:
            assert (await operator.status()).state_hash
    finally:
        await channel.close()
