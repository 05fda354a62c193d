"""InProcessClient over a real API server and store: same words, same retries as over gRPC."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from controlplane.api.server import ApiServer
from controlplane.base.clock import ManualClock
from controlplane.base.rand import SeededRand
from controlplane.client.inprocess import InProcessClient
from controlplane.client.interface import (
    ConflictError,
    FencedError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    WatchType,
)
from controlplane.etcd.local import LocalKV
from controlplane.pb.k8s.core_v1_pb2 import ConfigMap, Pod
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.store.store import Store
from tests.fakes.raft import FakeRaft
from tests.unit.client.fakes import settle


@dataclass
class Rig:
    raft: FakeRaft
    client: InProcessClient
    clock: ManualClock


@pytest.fixture
async def rig() -> Rig:
    clock = ManualClock()
    store = Store(cluster_id=FakeRaft.CLUSTER_ID)
    raft = FakeRaft(store)
    api = ApiServer(LocalKV(raft, store, clock=clock, rand=SeededRand("kv")), clock=clock, rand=SeededRand("api"))
    await api.bootstrap()
    return Rig(raft, InProcessClient(api, clock=clock, rand=SeededRand("client"), timeout_ms=1_000), clock)


def config_map(name: str = "a", **data: str) -> ConfigMap:
    c = ConfigMap(data=data)
    c.metadata.name = name
    c.metadata.namespace = "default"
    return c


async def test_every_verb_takes_and_gives_the_kind(rig: Rig) -> None:
    client = rig.client
    created = await client.create(config_map(x="1"))
    assert (await client.get(ConfigMap, "a", namespace="default")) == created
    created.data["x"] = "2"
    updated = await client.update(created)
    assert (await client.list(ConfigMap, namespace="default")).items == [updated]
    patched = await client.patch(ConfigMap, "a", {"data": {"y": "3"}}, namespace="default")
    assert dict(patched.data) == {"x": "2", "y": "3"}
    patched = await client.patch(
        ConfigMap, "a", [{"op": "remove", "path": "/data/x"}], namespace="default", json_patch=True
    )
    assert dict(patched.data) == {"y": "3"}
    manifest: dict[str, object] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}}
    assert (await client.apply(manifest)).outcome == api_pb2.ApplyResponse.CREATED
    await client.delete(ConfigMap, "a", namespace="default")
    with pytest.raises(NotFoundError):
        await client.get(ConfigMap, "a", namespace="default")


async def test_errors_have_their_types(rig: Rig) -> None:
    created = await rig.client.create(config_map())
    created.metadata.resourceVersion = "1"
    created.data["x"] = "2"
    with pytest.raises(ConflictError):
        await rig.client.update(created)
    with pytest.raises(InvalidError):
        await rig.client.create(Pod(metadata=config_map("Bad Name").metadata))
    with pytest.raises(FencedError):
        await rig.client.create(config_map("b"), fence=api_pb2.Fence(key=b"/quarterdeck/leader", mod_revision=7))


async def test_a_dry_run_stores_nothing(rig: Rig) -> None:
    await rig.client.create(config_map(), dry_run=True)
    with pytest.raises(NotFoundError):
        await rig.client.get(ConfigMap, "a", namespace="default")


async def test_a_watch_yields_the_changes_after_a_revision(rig: Rig) -> None:
    first = await rig.client.create(config_map("a"))
    async with rig.client.watch(
        ConfigMap, namespace="default", resource_version=first.metadata.resourceVersion
    ) as events:
        await rig.client.create(config_map("b"))
        event = await anext(events)
        while event.type is WatchType.BOOKMARK:
            event = await anext(events)
    assert event.type is WatchType.ADDED
    assert event.object is not None
    assert event.object.metadata.name == "b"


async def test_a_write_the_replica_could_not_send_is_tried_again(rig: Rig) -> None:
    rig.raft.fail_next()
    task = asyncio.create_task(rig.client.create(config_map()))
    await settle()
    rig.clock.advance(0.1)
    assert (await task).metadata.name == "a"


async def test_a_write_of_unknown_fate_is_applied_once_and_answered_as_it_was(rig: Rig) -> None:
    rig.raft.lose_next(applied=True)
    task = asyncio.create_task(rig.client.create(config_map()))
    await settle()
    rig.clock.advance(0.1)
    created = await task
    stored = await rig.client.get(ConfigMap, "a", namespace="default")
    assert (stored.metadata.uid, stored.metadata.resourceVersion) == (
        created.metadata.uid,
        created.metadata.resourceVersion,
    )
    assert len({proposal.request_id for proposal in rig.raft.proposals[-2:]}) == 1


async def test_without_a_leader_the_call_ends_when_its_time_is_up(rig: Rig) -> None:
    rig.raft.set_leader(None)
    task = asyncio.create_task(rig.client.create(config_map()))
    for _ in range(20):
        await settle()
        rig.clock.advance(0.1)
    with pytest.raises(UnavailableError, match="no answer within 1 s") as caught:
        await task
    assert not caught.value.unknown_outcome
