"""``qd local restore``."""

from __future__ import annotations

from pathlib import Path

from controlplane.local.cluster import LocalCluster
from tests.unit.cli.commands import qd


def test_local_restore_asks_first(cluster: LocalCluster, snapshot_file: Path) -> None:
    token = cluster.spec.token
    result = qd("local", "restore", str(snapshot_file), stdin="n\n")
    assert result.exit_code == 1
    assert "Replace the data of 1 replicas" in result.stderr
    assert LocalCluster.open(cluster.root).spec.token == token
