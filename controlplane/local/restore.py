"""A new control plane for a local cluster, from a snapshot file: the recipe of ``recovery`` on every replica's folder.

Agents and pods are not touched: they run on, and find the restored replicas under the old addresses.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.backup.checks import check_cluster, check_room
from controlplane.config import parse_initial_cluster
from controlplane.local.cluster import LocalCluster
from controlplane.local.spec import ClusterSpec
from controlplane.raft.config import cluster_id_of

if TYPE_CHECKING:
    from controlplane.recovery import Restored, Seed

__all__ = ["restore_replicas"]


def restore_replicas(cluster: LocalCluster, path: Path, *, force: bool = True) -> Restored:
    """Seed every replica's directory anew and start it; not waited for until they serve.

    The programs are started first, and loaded while the directories are seeded: that takes them longer.

    Args:
        force: also from the snapshot of another cluster than the one that was here.

    Raises:
        ProcessError: a replica runs.
        CorruptStateError: the file is damaged.
        ConfigError: it is another cluster's.
        StorageError: there is no room. In all these cases nothing was changed.
    """
    names = [replica.name for replica in cluster.spec.replicas]
    former = cluster.spec
    cluster.renew_token()
    try:
        seed = _prepare(cluster, path, names, former, force=force)
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(lambda name: _seed(cluster, seed, name), names))
    except BaseException:
        for name in names:
            cluster.kill(name)
        raise
    return seed.restored


def _prepare(cluster: LocalCluster, path: Path, names: list[str], former: ClusterSpec, *, force: bool) -> Seed:
    """Until here nothing of the replicas' data is touched: who fails leaves the cluster the one it was."""
    members = parse_initial_cluster(cluster.spec.initial_cluster)
    try:
        for name in names:
            cluster.start_held(name)
        # The store and more: imported while the replicas, which are waited for, import theirs.
        from controlplane.recovery import prepare

        seed = prepare(path, members=members, cluster_token=cluster.spec.token)
        check_cluster(seed.source_cluster_id, cluster_id_of(former.token, names), force=force)
        check_room(cluster.root, len(names) * seed.file_bytes, what="the replicas' new data")
        return seed
    except BaseException:
        cluster.become(former)
        raise


def _seed(cluster: LocalCluster, seed: Seed, name: str) -> None:
    shutil.rmtree(cluster.replica_dir(name), ignore_errors=True)
    seed.into(cluster.replica_dir(name), name)
    cluster.release(name)
