"""The replicas of a local cluster from a snapshot, for the commands that do it: asked, done, waited for, told.

Owns the question and what is said at the end. Must not know how data directories are made (``local.restore``,
``local.etcd_restore``).
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from controlplane.cli.common import err
from controlplane.cli.waiting import Waiter, wait_replicas
from controlplane.local.cluster import LocalCluster
from controlplane.local.restore import restore_replicas

__all__ = ["restore_local"]


async def restore_local(
    cluster: LocalCluster, path: Path, *, said: str, yes: bool, force: bool = True, timeout_s: float = 60.0
) -> None:
    """What ``qd local restore`` does, and ``qd snapshot restore`` where no replica runs. ``said``: the snapshot as it
    was named, for the question; the file itself may be a temporary one."""
    if not yes:
        click.confirm(f"Replace the data of {len(cluster.spec.replicas)} replicas by {said}?", abort=True, err=True)
    began = time.monotonic()
    # etcd's restore drives a member of its own: it has its own loop.
    if cluster.spec.store:
        from controlplane.local.etcd_restore import restore_store

        restored = await asyncio.to_thread(restore_store, cluster, path)
    else:
        restored = await asyncio.to_thread(restore_replicas, cluster, path, force=force)
    with Waiter(cluster, timeout_s, [r.name for r in cluster.spec.replicas]) as waiter:
        await wait_replicas(cluster, waiter)
    point = f"revision {restored.snapshot_revision}"
    if restored.created_at_ms:
        taken = datetime.fromtimestamp(restored.created_at_ms / 1000, UTC)
        point += f", {taken.isoformat(timespec='milliseconds')} ({time.time() - taken.timestamp():.0f} s ago)"
    err.print(
        f"restored {restored.keys} keys; recovery point: {point}; serving at revision {restored.revision} after "
        f"{time.monotonic() - began:.2f} s; state hash {restored.state_hash}"
    )
