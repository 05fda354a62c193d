"""A new control plane for a local cluster, from a snapshot file: the recipe of ``recovery`` on every replica's folder.

Agents and pods are not touched: they run on, and find the restored replicas under the old addresses. What tells about a
snapshot file (``verify``, ``contents``) is handed on, for those who see local clusters only.
"""

from __future__ import annotations

from pathlib import Path

from controlplane.config import parse_initial_cluster
from controlplane.local.cluster import LocalCluster
from controlplane.recovery import Restored, contents, prepare, verify

__all__ = ["Restored", "contents", "restore_replicas", "verify"]


def restore_replicas(cluster: LocalCluster, path: Path) -> Restored:
    """Seed every replica's directory anew and start it; not waited for until they serve.

    Each is started as soon as its directory is seeded: a program takes longer to start than a directory to seed.

    Raises:
        ProcessError: a replica runs.
        CorruptStateError: the file is damaged; nothing was changed.
    """
    verify(path)
    cluster.renew_token()
    seed = prepare(path, members=parse_initial_cluster(cluster.spec.initial_cluster), cluster_token=cluster.spec.token)
    for replica in cluster.spec.replicas:
        cluster.destroy_replica_data(replica.name)
        seed.into(cluster.replica_dir(replica.name), replica.name)
        cluster.start(replica.name)
    return seed.restored
