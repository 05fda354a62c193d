"""A restore under open sessions: nodes that live are there again, pods run on or stop, and no session breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from controlplane.client.interface import NotFoundError
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Command, RestoreBegin, RestoreChunk, RestoreCommit
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader
from controlplane.store.snapshot import load
from controlplane.store.staging import NO_DIGEST, chained, pieces_of
from tests.unit.api.session_rig import Rig, running

ID = b"0123456789abcdef"


class Saved:
    """The state of the rig at some moment."""

    def __init__(self, rig: Rig) -> None:
        store = rig.replicas[0].store
        loaded = load(store.snapshot())
        self.pieces = list(pieces_of(loaded.keyspace, loaded.auth, loaded.leases.values()))
        self.revision = store.revision

    async def put_back(self, rig: Rig) -> None:
        kv = rig.replicas[0].kv
        header = SnapshotHeader(revision=self.revision)
        begin = RestoreBegin(id=ID, snapshot=header, total_bytes=sum(map(len, self.pieces)))
        await kv.restore(Command(restore_begin=begin))
        digest = NO_DIGEST
        for n, piece in enumerate(self.pieces):
            digest = chained(digest, piece)
            await kv.restore(Command(restore_chunk=RestoreChunk(id=ID, number=n, records=piece)))
        commit = RestoreCommit(id=ID, digest=digest, revision_bump=1_000)
        await kv.restore(Command(restore_commit=commit))


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with running() as rig:
        yield rig


async def test_agents_are_told_the_restored_pods_and_asked_for_all_they_know(rig: Rig) -> None:
    agent = rig.agent("n1")
    await agent.hello()
    kept = await rig.bound_pod("kept", "n1")
    gone = await rig.bound_pod("deleted-since", "n1")
    saved = Saved(rig)
    await rig.client.delete(Pod, "deleted-since", namespace="default", grace_period_s=0)
    await rig.bound_pod("made-since", "n1")
    await rig.pass_time(0.3)
    assert agent.pods == {"kept", "made-since"}

    await saved.put_back(rig)
    await rig.pass_time(1.5, 0.1, agent)
    assert agent.pods == {"kept", "deleted-since"}
    newest = agent.all("assignments")[-1]
    assert newest.full
    assert {pod.metadata.uid for pod in newest.upserts} == {kept.metadata.uid, gone.metadata.uid}
    assert len(agent.all("welcome")) == 2, "a welcome makes the agent say everything again"
    assert not agent.task.done(), "the session goes on"


async def test_a_node_that_the_snapshot_does_not_know_registers_again(rig: Rig) -> None:
    saved = Saved(rig)
    agent = rig.agent("n1")
    await agent.hello(zone="a")
    await saved.put_back(rig)
    with pytest.raises(NotFoundError):
        await rig.client.get(Node, "n1")
    await rig.pass_time(1.5, 0.1, agent)
    node = await rig.client.get(Node, "n1")
    assert node.metadata.labels["zone"] == "a"
    assert agent.all("welcome")[-1].pod_cidr == node.spec.podCIDR
    assert not agent.task.done()
