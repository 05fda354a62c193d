"""Service addresses: one each, from the range, given back at the end."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv4Network

import pytest

from controlplane.api.errors import ApiError, InvalidError
from controlplane.base.errors import ConfigError
from controlplane.pb.etcd import rpc_pb2 as etcd
from tests.unit.api.support import Cluster, service


@pytest.fixture
async def cluster() -> Cluster:
    return await Cluster(service_cidr="127.96.0.0/29").start()


async def taken(cluster: Cluster) -> set[str]:
    prefix = b"/quarterdeck/ips/"
    response = await cluster.kv.range(etcd.RangeRequest(key=prefix, range_end=b"/quarterdeck/ips0"))
    return {kv.key[len(prefix) :].decode() for kv in response.kvs}


async def test_every_service_gets_an_address_of_its_own(cluster: Cluster) -> None:
    made = await asyncio.gather(*(cluster.create(service(f"s{i}")) for i in range(6)))
    addresses = {s.spec.clusterIP for s in made}
    assert len(addresses) == 6
    assert all(IPv4Address(a) in IPv4Network("127.96.0.0/29") for a in addresses)
    assert addresses.isdisjoint({"127.96.0.0", "127.96.0.7"})
    assert all(list(s.spec.clusterIPs) == [s.spec.clusterIP] for s in made)


async def test_two_replicas_never_give_the_same(cluster: Cluster) -> None:
    other = Cluster(join=cluster, service_cidr="127.96.0.0/29", name="r2", seed=1)
    other.store.restore(cluster.store.snapshot())
    made = await asyncio.gather(
        *(replica.create(service(f"s{i}")) for i, replica in enumerate((cluster, other, cluster, other)))
    )
    assert len({s.spec.clusterIP for s in made}) == 4


async def test_a_full_range_is_an_error_and_a_deleted_services_address_is_free_again(cluster: Cluster) -> None:
    for index in range(6):
        await cluster.create(service(f"s{index}"))
    with pytest.raises(ApiError, match=r"the range 127.96.0.0/29 is full \(6 in use\)"):
        await cluster.create(service("more"))
    gone = await cluster.delete("services", "s3")
    assert (await cluster.create(service("more"))).spec.clusterIP == gone.spec.clusterIP


async def test_an_address_asked_for_is_given_once(cluster: Cluster) -> None:
    assert (await cluster.create(service("a", cluster_ip="127.96.0.5"))).spec.clusterIP == "127.96.0.5"
    with pytest.raises(InvalidError, match=r"spec.clusterIP: .*the provided IP is already allocated"):
        await cluster.create(service("b", cluster_ip="127.96.0.5"))
    with pytest.raises(InvalidError, match=r"not in the service range, which is 127.96.0.0/29"):
        await cluster.create(service("b", cluster_ip="10.0.0.1"))
    with pytest.raises(InvalidError, match=r"must be a valid IPv4 address"):
        await cluster.create(service("b", cluster_ip="localhost"))


async def test_headless_and_external_services_have_none(cluster: Cluster) -> None:
    assert (await cluster.create(service("a", cluster_ip="None"))).spec.clusterIP == "None"
    external = service("b")
    external.spec.type, external.spec.externalName = "ExternalName", "example.com"
    assert not (await cluster.create(external)).spec.clusterIP
    assert await taken(cluster) == set()


async def test_an_update_keeps_the_address_and_cannot_change_it(cluster: Cluster) -> None:
    made = await cluster.create(service("a", cluster_ip="127.96.0.5"))
    silent = service("a")
    silent.spec.ports[0].port = 81
    updated = await cluster.update(silent)
    assert (updated.spec.clusterIP, updated.spec.ports[0].port) == ("127.96.0.5", 81)
    made.metadata.resourceVersion = ""
    made.spec.clusterIP = "127.96.0.6"
    with pytest.raises(InvalidError, match=r"spec.clusterIP: .*field is immutable"):
        await cluster.update(made)


async def test_the_address_goes_and_comes_with_the_type(cluster: Cluster) -> None:
    made = await cluster.create(service("a"))
    first = made.spec.clusterIP
    made.spec.type, made.spec.externalName = "ExternalName", "example.com"
    external = await cluster.update(made)
    assert not external.spec.clusterIP
    assert await taken(cluster) == set()
    external.spec.type = "ClusterIP"
    external.spec.ClearField("externalName")
    back = await cluster.update(external)
    assert await taken(cluster) == {back.spec.clusterIP}
    assert first


@pytest.mark.parametrize("cidr", ["nonsense", "127.96.0.1/16", "::/64", "10.0.0.0/31"])
def test_a_range_that_is_none_is_a_config_error(cidr: str) -> None:
    with pytest.raises(ConfigError, match="service_cidr: "):
        Cluster(service_cidr=cidr)
