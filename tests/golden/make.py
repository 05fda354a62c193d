"""Have a release write its durable files, and keep them as fixtures: ``python -m tests.golden.make VERSION``.

The release's own code runs: one replica and one agent as processes, and a script in its source tree for what the local
cluster's programs write. What is kept is everything a later version must read, in ``tests/golden/VERSION/``, with
``expected.json`` saying what is in it. Run once per release, on its tag; what is there is never made anew, since what
was released cannot change.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc

from chaos import releases
from controlplane.client import OperatorClient
from controlplane.local.cluster import FOLDER, LocalCluster
from controlplane.local.spec import ClusterSpec
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.etcd import rpc_pb2_grpc
from controlplane.transport.channel import new_channel

FOLDER_HERE = Path(__file__).parent
#: Absolute paths are in some records; these stand for the folder and the interpreter that were used.
ROOT, PYTHON = "/var/lib/quarterdeck-golden", "/usr/bin/python3"
PORT_BASE = 13_000
_TIMEOUT_S = 60.0

#: Run with the release's own tree first on the path: the folder's plan, a pid record, a history of a chaos run.
_SCRIPT = """
import sys
from pathlib import Path
from chaos.history import Recorder
from chaos.records import Event, Header, Listing, Mark, Op, Row
from controlplane.base.clock import SystemClock
from controlplane.local.cluster import LocalCluster
from controlplane.local.spec import plan

root = Path(sys.argv[1])
cluster = LocalCluster.create(root, plan(replicas=1, nodes=1, port_base=int(sys.argv[2])))
cluster.processes.start("gone", ["true"], env={}, cwd=root)
header = Header("golden", "p/", "2026-11-22T00:00:00Z", ["127.0.0.1:1"])
with Recorder(root / "history.jsonl", header, SystemClock()) as r:
    r.listing(Listing("start", 1, 1, 1, []))
    r.op(Op(1, "w1", "put", "127.0.0.1:1", "p/a", 1, 2, "ok", "v", revision=2))
    r.op(Op(2, "r1", "get", "127.0.0.1:1", "p/a", 3, 4, "ok", "v", revision=2, mod_revision=2, version=1))
    r.event(Event(1, "p/a", "v", 2, 1, 3))
    r.mark("leader-kill", 1, "begin")
    r.listing(Listing("final", 0, 2, 9, [Row("p/a", "v", 2, 2, 1)]))
"""

_POD = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: green}
---
apiVersion: v1
kind: Pod
metadata: {name: golden, labels: {app: golden}}
spec:
  containers:
    - name: main
      image: host
      command: ["sleep", "600"]
"""


async def make(version: str, into: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="quarterdeck-golden-") as folder:
        source = releases.source_of(version, Path(folder) / "source")
        root = Path(folder) / FOLDER
        # From a folder without a source tree, or that one would come first.
        environment = {**os.environ, "PYTHONPATH": str(source)}
        command = [sys.executable, "-c", _SCRIPT, str(root), str(PORT_BASE)]
        await asyncio.to_thread(subprocess.run, command, env=environment, cwd=folder, check=True)
        written = (root / "cluster.json").read_bytes()
        cluster = LocalCluster(root, ClusterSpec.load(root / "cluster.json"))
        # Small, so that the data directory holds a snapshot and a log behind it.
        object.__setattr__(cluster.spec, "extra_replica_args", ("--snapshot-entries", "100"))
        for name in cluster.names:
            cluster.sources[name] = source
            cluster.start(name)
        try:
            expected = await _fill(cluster)
            cluster.kill("node-1")
            cluster.kill("r1", signal.SIGKILL)
        finally:
            cluster.down()
        (root / "cluster.json").write_bytes(written)
        _keep(root, into, folder)
        (into / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


async def _fill(cluster: LocalCluster) -> dict[str, Any]:
    """Everything a log and a snapshot can hold: versions, deletions, several keys in one revision, leases, a
    compaction; then what was told of it."""
    endpoint = cluster.spec.endpoints[0]
    channel = new_channel(endpoint)
    kv, lease = rpc_pb2_grpc.KVStub(channel), rpc_pb2_grpc.LeaseStub(channel)
    try:
        await _served(kv)
        manifest = cluster.root / "pod.yaml"
        manifest.write_text(_POD)
        qd = [sys.executable, "-c", "from controlplane.cli.main import main; main()", "--endpoints", endpoint]
        await asyncio.to_thread(subprocess.run, [*qd, "apply", "-f", str(manifest)], check=True)
        for n in range(40):
            await kv.Put(e.PutRequest(key=b"g/%02d" % (n % 20), value=b"value %d" % n))
        granted = await lease.LeaseGrant(e.LeaseGrantRequest(ID=77, TTL=6_000))
        await kv.Put(e.PutRequest(key=b"g/leased", value=b"x", lease=granted.ID))
        await kv.DeleteRange(e.DeleteRangeRequest(key=b"g/03"))
        # Not in the order of their keys.
        both = [e.RequestOp(request_put=e.PutRequest(key=key, value=b"together")) for key in (b"g/z", b"g/a", b"g/m")]
        txn = await kv.Txn(e.TxnRequest(success=both))
        await kv.Compact(e.CompactionRequest(revision=txn.header.revision - 5))
        async with asyncio.timeout(_TIMEOUT_S):
            while not list((cluster.replica_dir("r1") / "snapshots").glob("*")):
                await kv.Put(e.PutRequest(key=b"g/until", value=b"a snapshot is cut"))
        for n in range(10):
            await kv.Put(e.PutRequest(key=b"g/behind", value=b"%d" % n))
        records = cluster.node_dir("node-1") / "pods"
        async with asyncio.timeout(_TIMEOUT_S):
            while not any(  # noqa: ASYNC110 - until another process has started one
                json.loads(path.read_text())["pid"] for path in records.glob("*/.agent/containers/*.json")
            ):
                await asyncio.sleep(0.2)
        async with OperatorClient(endpoint) as operator:
            with (cluster.root / "saved.snapshot").open("wb") as file:
                async for chunk in operator.snapshot():
                    file.write(chunk.data)
        whole = await kv.Range(e.RangeRequest(key=b"g/", range_end=b"g0"))
        left = await lease.LeaseTimeToLive(e.LeaseTimeToLiveRequest(ID=77, keys=True))
        return {
            "keys": {
                row.key.decode(): [row.value.decode(), row.create_revision, row.mod_revision, row.version, row.lease]
                for row in whole.kvs
            },
            "txn_revision": txn.header.revision,
            "lease": {"id": 77, "ttl": left.grantedTTL, "keys": [key.decode() for key in left.keys]},
        }
    finally:
        await channel.close()


async def _served(kv: Any) -> None:
    async with asyncio.timeout(_TIMEOUT_S):
        while True:
            try:
                await kv.Range(e.RangeRequest(key=b"x"), timeout=2)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.1)
            else:
                return


def _keep(root: Path, into: Path, folder: str) -> None:
    """Copy what later versions read, without this machine's paths."""
    shutil.rmtree(into, ignore_errors=True)
    kept = ["cluster.json", "history.jsonl", "saved.snapshot", "run/gone.json", "replicas/r1", "nodes/node-1"]
    for name in kept:
        source, target = root / name, into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("lock", "LOCK", "*.log"))
        else:
            shutil.copy(source, target)
    for path in into.rglob("*.json"):
        path.write_text(path.read_text().replace(folder, ROOT).replace(sys.executable, PYTHON))


if __name__ == "__main__":
    target = FOLDER_HERE / sys.argv[1]
    if target.exists():
        sys.exit(f"{target} is there: a release's files are made once")
    asyncio.run(make(sys.argv[1], target))
