"""A new control plane for a local cluster, from a snapshot file: the recipe of ``recovery`` on every replica's folder.

Agents and pods are not touched: they run on, and find the restored replicas under the old addresses.
"""

from __future__ import annotations

from pathlib import Path

from controlplane.config import parse_initial_cluster
from controlplane.local.cluster import LocalCluster
from controlplane.recovery import Restored, restore_member, verify

__all__ = ["restore_replicas"]


def restore_replicas(cluster: LocalCluster, path: Path) -> Restored:
    """Seed every replica's directory anew, then start all of them; not waited for until they serve.

    Raises:
        ProcessError: a replica runs.
        CorruptStateError: the file is damaged; nothing was changed.
    """
    verify(path)
    cluster.renew_token()
    members = parse_initial_cluster(cluster.spec.initial_cluster)
    restored: Restored | None = None
    for replica in cluster.spec.replicas:
        cluster.destroy_replica_data(replica.name)
        restored = restore_member(
            path,
            cluster.replica_dir(replica.name),
            name=replica.name,
            members=members,
            cluster_token=cluster.spec.token,
        )
    assert restored is not None
    for replica in cluster.spec.replicas:
        cluster.start(replica.name)
    return restored
