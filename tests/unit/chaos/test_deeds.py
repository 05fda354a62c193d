"""Whatever was done is undone, the newest first, also when a run is stopped in the middle."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from chaos.deeds import Faults, digest, read_everything
from controlplane.base.errors import Code
from controlplane.client import ApiClient, EtcdClient, NotFoundError
from controlplane.client.interface import ApiError
from controlplane.local.cluster import LocalCluster
from controlplane.local.spec import plan
from controlplane.pb.k8s.apps_v1_pb2 import Deployment
from tests.unit.chaos.fakes import FakeKeyValue


class FakeCluster:
    """Remembers what was asked of it. ``pause`` holds a kill until set."""

    def __init__(self) -> None:
        self.spec = plan(replicas=3, nodes=3, port_base=15_000)
        self.calls: list[str] = []
        self.pause: threading.Event | None = None
        self.dead: set[str] = set()

    @property
    def names(self) -> list[str]:
        return [replica.name for replica in self.spec.replicas] + [node.name for node in self.spec.nodes]

    def running(self) -> list[str]:
        return [name for name in self.names if name not in self.dead]

    def kill(self, name: str) -> bool:
        if self.pause is not None:
            self.pause.wait(5.0)
        self.calls.append(f"kill {name}")
        return True

    def kill_node(self, name: str) -> int:
        self.calls.append(f"kill node {name}")
        return 2

    def start(self, name: str) -> int:
        self.calls.append(f"start {name}")
        self.dead.discard(name)
        return 1

    def add_node(self) -> Any:
        self.spec, node = self.spec.with_node()
        self.calls.append(f"add {node.name}")
        return node

    def remove_node(self, name: str) -> None:
        self.spec = self.spec.without_node(name)
        self.calls.append(f"remove {name}")

    def destroy_replica_data(self, name: str) -> None:
        self.calls.append(f"destroy {name}")


class FakeApi:
    """One Deployment, and nodes that are not there to delete."""

    def __init__(self) -> None:
        self.deployment = Deployment()
        self.deployment.spec.replicas = 6
        self.refuse = False

    async def get(self, kind: Any, name: str, *, namespace: str = "") -> Deployment:
        return self.deployment

    async def patch(self, kind: Any, name: str, patch: Any, *, namespace: str = "") -> Deployment:
        if self.refuse:
            raise ApiError(Code.INTERNAL, "no")
        self.deployment.spec.replicas = patch["spec"]["replicas"]
        return self.deployment

    async def delete(self, kind: Any, name: str) -> None:
        raise NotFoundError(Code.NOT_FOUND, name)


class Rig:
    def __init__(self) -> None:
        self.cluster, self.api = FakeCluster(), FakeApi()
        self.faults = Faults(cast(LocalCluster, self.cluster), cast(ApiClient, self.api), ("default", "web"))


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_nothing_done_is_nothing_to_undo(rig: Rig) -> None:
    await rig.faults.heal()
    assert rig.cluster.calls == []


async def test_what_was_killed_is_started_the_newest_first(rig: Rig) -> None:
    await rig.faults.kill_replica("r2")
    assert await rig.faults.kill_node("node-1") == 2
    assert rig.faults.undone_by == ["start node-1", "start r2"]
    await rig.faults.heal()
    assert rig.cluster.calls == ["kill r2", "kill node node-1", "start node-1", "start r2"]
    assert rig.faults.undone_by == []


async def test_what_was_undone_in_the_act_is_not_undone_again(rig: Rig) -> None:
    await rig.faults.kill_replica("r2")
    await rig.faults.start("r2")
    await rig.faults.heal()
    assert rig.cluster.calls == ["kill r2", "start r2"]


async def test_what_was_started_again_and_ended_is_started_once_more(rig: Rig) -> None:
    await rig.faults.kill_replica("r2")
    await rig.faults.start("r2")
    rig.cluster.dead.add("r2")
    assert rig.faults.undone_by == ["start r2"]
    await rig.faults.heal()
    assert rig.cluster.calls == ["kill r2", "start r2", "start r2"]
    assert rig.faults.undone_by == []


async def test_growth_is_taken_back_pods_first(rig: Rig) -> None:
    names = [await rig.faults.add_node(), await rig.faults.add_node()]
    await rig.faults.scale(18)
    await rig.faults.scale(30)
    assert rig.api.deployment.spec.replicas == 30
    assert rig.faults.undone_by == ["scale web back", "remove node-5", "remove node-4"]
    await rig.faults.heal()
    assert rig.api.deployment.spec.replicas == 6
    assert names == ["node-4", "node-5"]
    assert rig.cluster.calls[2:] == ["remove node-5", "remove node-4"]


async def test_what_cannot_be_undone_stays_on_the_list(rig: Rig) -> None:
    await rig.faults.scale(30)
    rig.api.refuse = True
    with pytest.raises(ApiError):
        await rig.faults.heal()
    assert rig.faults.undone_by == ["scale web back"]


async def test_everything_is_killed_before_anything_is_destroyed(rig: Rig) -> None:
    await rig.faults.lose_control_plane(Path("x.qdsnap"))
    assert rig.cluster.calls == [f"kill {r}" for r in ("r1", "r2", "r3")] + [f"destroy {r}" for r in ("r1", "r2", "r3")]
    assert rig.faults.undone_by == ["restore the control plane"]


async def test_a_fault_half_done_is_finished_before_it_is_undone(rig: Rig) -> None:
    rig.cluster.pause = threading.Event()
    task = asyncio.create_task(rig.faults.kill_replica("r1"))
    await asyncio.sleep(0.01)
    task.cancel()
    asyncio.get_running_loop().call_later(0.01, rig.cluster.pause.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rig.cluster.calls == ["kill r1"]
    assert rig.faults.undone_by == ["start r1"]


async def test_a_digest_tells_any_difference() -> None:
    kv = FakeKeyValue()
    for n in range(5):
        await kv.put(f"/k{n}".encode(), b"v")
    kvs = await read_everything(cast(EtcdClient, kv), kv.revision)
    assert [pair.key for pair in kvs] == [f"/k{n}".encode() for n in range(5)]
    whole = digest(kvs)
    assert digest(kvs[1:]) != whole
    kvs[2].version = 2
    assert digest(kvs) != whole
