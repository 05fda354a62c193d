"""A local cluster's plan: ports, ranges, names, and what is refused."""

from __future__ import annotations

import ipaddress
from itertools import pairwise
from pathlib import Path

import pytest

from controlplane.base.errors import ConfigError
from controlplane.local.spec import NODES_MAX, ClusterSpec, plan


def ports(spec: ClusterSpec) -> list[str]:
    of_replicas = [address for r in spec.replicas for address in (r.client, r.metrics, r.peer)]
    return of_replicas + [address for n in spec.nodes for address in (n.listen, n.metrics)]


def test_no_two_addresses_of_the_largest_cluster_collide() -> None:
    addresses = ports(plan(replicas=9, nodes=NODES_MAX, port_base=7400))
    assert len(addresses) == len(set(addresses))


def test_clusters_with_other_bases_share_no_range() -> None:
    specs = [plan(replicas=3, nodes=3, port_base=base) for base in [*range(1024, 32_266, 250), 32_266]]
    networks = [ipaddress.ip_network(cidr) for spec in specs for cidr in (spec.service_cidr, spec.cluster_cidr)]
    ordered = sorted(set(networks))
    assert len(ordered) == len(networks) - 2  # the last two bases are less than 250 apart
    assert not any(a.overlaps(b) for a, b in pairwise(ordered))
    assert all(network.is_loopback for network in ordered)


def test_a_spec_survives_its_file(tmp_path: Path) -> None:
    spec = plan(replicas=3, nodes=2, port_base=7400)
    spec.save(tmp_path / "cluster.json")
    assert ClusterSpec.load(tmp_path / "cluster.json") == spec


def test_a_new_node_takes_the_lowest_free_number() -> None:
    spec = plan(replicas=1, nodes=3, port_base=7400).without_node("node-2")
    grown, node = spec.with_node()
    assert node.name == "node-2"
    assert node in grown.nodes


@pytest.mark.parametrize(
    ("replicas", "nodes", "port_base", "named"),
    [(0, 3, 7400, "REPLICAS=0"), (10, 3, 7400, "REPLICAS=10"), (3, -1, 7400, "NODES=-1"), (3, 3, 80, "PORT_BASE=80")],
)
def test_a_size_out_of_range_is_named(replicas: int, nodes: int, port_base: int, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        plan(replicas=replicas, nodes=nodes, port_base=port_base)


def test_a_missing_file_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make cluster"):
        ClusterSpec.load(tmp_path / "cluster.json")


@pytest.mark.parametrize("text", ["", "{}", '{"version": 1}', '{"version": 99}'])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.json").write_text(text)
    with pytest.raises(ConfigError, match=r"cluster\.json"):
        ClusterSpec.load(tmp_path / "cluster.json")
