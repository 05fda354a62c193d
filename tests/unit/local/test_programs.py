"""Command lines of our own programs: what each is told, and what it is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.local import programs
from controlplane.local.cluster import LocalCluster
from controlplane.local.spec import plan


def test_replicas_show_the_store_their_own_certificates(tmp_path: Path) -> None:
    spec = plan(replicas=3, nodes=1, port_base=20_000, store="etcd", tls=True)
    cluster = LocalCluster.create(tmp_path / "c", spec)
    argv = cluster.argv("r1")
    assert argv[argv.index("--store-cert") + 1] == argv[argv.index("--tls-cert") + 1]
    assert argv[argv.index("--store-ca") + 1] == str(cluster.pki.ca.absolute())


def test_a_replica_that_joined_later_is_told_so_and_a_founder_is_not() -> None:
    spec = replace(plan(replicas=3, nodes=0, port_base=20_000), joined=("r3",))
    founder, joined = (
        programs.replica_argv("python", spec.replicas[n], spec, data_dir=Path("/d"), archive="", tls=None)
        for n in (0, 2)
    )
    assert "--initial-cluster-state" not in founder
    assert joined[joined.index("--initial-cluster-state") + 1] == "existing"


def test_behind_a_relay_everybody_is_told_the_relays_addresses_of_its_own_links() -> None:
    spec = plan(replicas=3, nodes=1, port_base=20_000, hosts="links")
    replica = programs.replica_argv("python", spec.replicas[0], spec, data_dir=Path("/d"), archive="", tls=None)
    dials = [word for word in replica if word.startswith("--dial=")]
    assert sorted(dials) == sorted(
        f"--dial={target}={relay}" for (source, _), (relay, target) in spec.relayed.items() if source == "r1"
    )
    node = programs.node_argv("python", spec.nodes[0], spec, state_dir=Path("/n"), tls=None)
    endpoints = node[node.index("--endpoints") + 1].split(",")
    assert endpoints == [spec.relayed["node-1", name][0] for name in ("r1", "r2", "r3")]
    assert "--no-discover" in node


def test_of_this_programs_environment_only_what_is_named_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "shh")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-outside")
    monkeypatch.setenv("GRPC_VERBOSITY", "DEBUG")
    found = programs.environment()
    assert "SECRET_TOKEN" not in found
    assert (found["AWS_ACCESS_KEY_ID"], found["GRPC_VERBOSITY"]) == ("from-outside", "NONE")
