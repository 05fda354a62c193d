"""A local cluster's plan: ports, ranges, names, and what is refused."""

from __future__ import annotations

import ipaddress
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from controlplane.base.addresses import split_address
from controlplane.base.errors import ConfigError
from controlplane.local.spec import LINKS_NODES_MAX, NODES_MAX, ClusterSpec, plan


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


def test_on_hosts_of_their_own_every_process_has_an_address_that_outlives_the_others() -> None:
    spec = plan(replicas=3, nodes=2, port_base=7400, store="etcd", hosts="netns")
    hosts = [split_address(a)[0] for a in (*(r.peer for r in spec.replicas), *(n.listen for n in spec.nodes))]
    assert hosts == ["198.18.25.1", "198.18.25.2", "198.18.25.3", "198.18.25.21", "198.18.25.22"]
    assert spec.store[0].client.startswith("198.18.25.11:")
    assert (spec.network, spec.cluster_cidr, spec.fixtures) == (25, "240.25.0.0/16", ["edge"])
    fewer = spec.without_node("node-1")
    assert split_address(fewer.with_node()[1].listen)[0] == "198.18.25.21"


def test_behind_relays_no_two_ports_collide_and_replicas_that_may_join_have_their_place() -> None:
    spec = plan(replicas=3, nodes=LINKS_NODES_MAX, port_base=7400, hosts="links")
    relays = [listen for listen, _ in spec.relayed.values()]
    assert len(relays) == len(set(relays)) == 9 * 8 + 9 * LINKS_NODES_MAX
    assert not set(relays) & set(ports(plan(replicas=9, nodes=LINKS_NODES_MAX, port_base=7400)))
    assert spec.relayed["r1", "r9"][1] == spec.with_replica()[1].peer.replace("7442", "7492")
    assert ("r1", "node-1") not in spec.relayed


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"hosts": "cloud"}, "want loopback, links or netns"),
        ({"hosts": "links", "store": "etcd"}, "want HOSTS=netns"),
        ({"hosts": "links", "nodes": 21}, "wants at most 20"),
    ],
)
def test_hosts_that_cannot_be_are_refused(wanted: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan(**{"replicas": 3, "nodes": 3, "port_base": 7400, **wanted})


def test_a_file_of_before_there_were_hosts_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    plan(replicas=1, nodes=1, port_base=7400).save(path)
    raw = json.loads(path.read_text())
    del raw["hosts"]
    path.write_text(json.dumps({**raw, "version": 1}))
    assert ClusterSpec.load(path).hosts == "loopback"
