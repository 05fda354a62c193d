"""PodCIDRs on a real store: one range per node, kept, and taken over only from nodes that are gone."""

from __future__ import annotations

import pytest

from controlplane.api.errors import ApiError
from controlplane.api.podcidr import PodCIDRs
from controlplane.base.errors import Code
from controlplane.etcd.local import LocalKV
from controlplane.store.store import Store
from tests.fakes.raft import FakeRaft


def cidrs(cluster_cidr: str) -> PodCIDRs:
    store = Store(cluster_id=FakeRaft.CLUSTER_ID)
    return PodCIDRs(LocalKV(FakeRaft(store), store), cluster_cidr)


async def everybody(name: str) -> bool:
    return True


async def nobody(name: str) -> bool:
    return False


async def test_a_claim_outlives_the_node_object() -> None:
    pool = cidrs("127.128.0.0/16")
    assert await pool.claim("n1", everybody) == "127.128.1.0/24"
    assert await pool.claim("n2", everybody) == "127.128.2.0/24"
    assert await pool.claim("n1", nobody) == "127.128.1.0/24"


async def test_when_all_are_claimed_those_of_nodes_that_are_gone_are_taken_over() -> None:
    pool = cidrs("127.128.0.0/22")
    for name in ("n1", "n2", "n3"):
        await pool.claim(name, everybody)

    async def all_but_n2(name: str) -> bool:
        return name != "n2"

    assert await pool.claim("n4", all_but_n2) == "127.128.2.0/24"
    with pytest.raises(ApiError, match="no pod range is left for node 'n5': all 3 /24 ranges") as caught:
        await pool.claim("n5", everybody)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


async def test_a_cluster_range_of_one_node_is_that_nodes() -> None:
    assert await cidrs("127.128.7.0/24").claim("n1", everybody) == "127.128.7.0/24"
