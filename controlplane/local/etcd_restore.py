"""A new etcd cluster for a local control plane, from a snapshot that ``etcdctl`` took.

etcd's own restore goes back to the snapshot's revision, and revisions that clients have seen come again with other
contents: a watcher would wait through them and be told a mixture. So the snapshot is first brought up in one member
that nobody else can find, moved on by :data:`REVISIONS_SKIPPED` revisions and compacted there, and saved again; that is
what the new members are seeded from. Whoever watched the lost cluster is told to list anew (etcd 3.6 can do the same by
itself: ``--bump-revision --mark-compacted``).

Leases are ended on the way: they speak for processes of the lost cluster.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import grpc

from controlplane.base import identity
from controlplane.base.clock import SystemClock
from controlplane.base.errors import StatusError
from controlplane.base.rand import SystemRand
from controlplane.external.config import StoreConfig
from controlplane.external.connection import Connection
from controlplane.external.kv import RemoteKV
from controlplane.local import etcd, etcdctl
from controlplane.local.cluster import LocalCluster
from controlplane.local.etcd import initial_cluster, peer_url, program, tls_flags
from controlplane.local.ports import free_port
from controlplane.local.processes import ProcessError
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.pb.etcd.rpc_pb2_grpc import LeaseStub
from controlplane.recovery import Restored
from controlplane.transport.channel import new_channel
from controlplane.transport.tls import Reloader, TlsFiles

__all__ = ["REVISIONS_SKIPPED", "restore_store", "save_store", "snapshot_revision"]

#: More than is written between a snapshot and the loss of what came after.
REVISIONS_SKIPPED: Final = 5_000
_AT_ONCE: Final = 250
_START_TIMEOUT_S: Final = 15.0
_SKIP_KEY: Final = b"/quarterdeck/restored"


def save_store(cluster: LocalCluster, path: Path) -> None:
    """``etcdctl snapshot save``, of a member that runs. Raises ProcessError."""
    member = next((m for m in cluster.spec.store if cluster.processes.pid(m.name) is not None), None)
    if member is None:
        raise ProcessError("no member of the store runs: there is nothing to take a snapshot of")
    tls = cluster.pki.admin if cluster.spec.tls else None
    etcdctl.run(*etcdctl.flags(member.client, tls=tls), "snapshot", "save", str(path))


def snapshot_revision(path: Path) -> int:
    """The revision of a snapshot file, which is checked on the way. Raises ProcessError."""
    return int(json.loads(etcdctl.run("--write-out", "json", "snapshot", "status", str(path)))["revision"])


def restore_store(cluster: LocalCluster, path: Path) -> Restored:
    """New data for every member of the store, then everything of the control plane started; not waited for until it
    serves. Runs its own loop: call it from a thread.

    Raises:
        ProcessError: something of the control plane runs, or etcd's tools refuse.
    """
    cluster.renew_token()
    running = [m.name for m in cluster.spec.store if cluster.processes.pid(m.name) is not None]
    if running:
        raise ProcessError(f"still running: {', '.join(running)}; stop or kill them first")
    with tempfile.TemporaryDirectory(dir=cluster.root) as work:
        moved_on = Path(work) / "moved-on.db"
        # What a snapshot holds is as secret on its way as it was where it comes from.
        first = cluster.spec.store[0]
        tls = cluster.certificate(identity.member(first.name), first.client, first.peer)
        restored = _move_on(path, moved_on, Path(work) / "alone", tls)
        for member in cluster.spec.store:
            shutil.rmtree(cluster.store_dir(member.name), ignore_errors=True)
            etcdctl.run(
                "snapshot", "restore", str(moved_on),
                "--name", member.name,
                "--data-dir", str(cluster.store_dir(member.name)),
                "--initial-cluster", initial_cluster(cluster.spec),
                "--initial-cluster-token", cluster.spec.token,
                "--initial-advertise-peer-urls", peer_url(member, cluster.spec),
            )  # fmt: skip
    for member in cluster.spec.store:
        cluster.start(member.name)
    for replica in cluster.spec.replicas:
        cluster.start(replica.name)
    return restored


def _move_on(path: Path, to: Path, data_dir: Path, tls: TlsFiles | None) -> Restored:
    port, peer = free_port(), f"127.0.0.1:{free_port()}"
    client = f"localhost:{port}"  # a name of every certificate
    scheme = "http" if tls is None else "https"
    etcdctl.run(
        "snapshot", "restore", str(path), "--name", "alone", "--data-dir", str(data_dir),
        "--initial-cluster", f"alone={scheme}://{peer}", "--initial-advertise-peer-urls", f"{scheme}://{peer}",
    )  # fmt: skip
    with _alone(data_dir, f"{scheme}://127.0.0.1:{port}", f"{scheme}://{peer}", tls):
        restored = asyncio.run(_skip_revisions(client, tls))
        etcdctl.run(*etcdctl.flags(client, tls=tls), "snapshot", "save", str(to))
    return restored


@contextmanager
def _alone(data_dir: Path, client: str, peer: str, tls: TlsFiles | None) -> Iterator[None]:
    """The restored member, on ports that no client knows."""
    process = subprocess.Popen(
        [
            program("etcd"), "--name", "alone", "--data-dir", str(data_dir),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"alone={peer}",
            "--heartbeat-interval", "10", "--election-timeout", "100", "--log-level", "error",
            *([] if tls is None else tls_flags(tls)),
        ],
        env=etcd.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def _skip_revisions(endpoint: str, tls: TlsFiles | None) -> Restored:
    """End all leases, move on, and forget what was before; what the store then is."""
    there = StoreConfig((endpoint,)) if tls is None else StoreConfig((endpoint,), tls.ca, tls.cert, tls.key)
    connection = Connection(there, clock=SystemClock(), rand=SystemRand())
    kv = RemoteKV(connection, clock=SystemClock(), rand=SystemRand())
    try:
        began = await kv.range(e.RangeRequest(key=_SKIP_KEY, count_only=True), timeout_ms=int(_START_TIMEOUT_S * 1000))
        snapshot_revision = began.header.revision
        credentials = None if tls is None else Reloader(tls)
        async with new_channel(endpoint, credentials=credentials) as channel:
            leases = await cast(Any, LeaseStub(channel)).LeaseLeases(e.LeaseLeasesRequest())
        for lease in leases.leases:
            await kv.lease_revoke(e.LeaseRevokeRequest(ID=lease.ID))
        skip = e.PutRequest(key=_SKIP_KEY)
        for _ in range(REVISIONS_SKIPPED // _AT_ONCE):
            await asyncio.gather(*(kv.put(skip) for _ in range(_AT_ONCE)))
        ended = await kv.delete_range(e.DeleteRangeRequest(key=_SKIP_KEY))
        revision = ended.header.revision
        await kv.compact(e.CompactionRequest(revision=revision, physical=True))
        everything = await kv.range(e.RangeRequest(key=b"\0", range_end=b"\0"))
    except (StatusError, grpc.aio.AioRpcError) as error:
        raise ProcessError(f"the snapshot could not be brought up: {error}") from error
    finally:
        await connection.close()
    hasher = hashlib.sha256()
    for found in everything.kvs:
        hasher.update(found.SerializeToString(deterministic=True))
    return Restored(snapshot_revision, revision, len(everything.kvs), hasher.hexdigest(), index=0, term=0)
