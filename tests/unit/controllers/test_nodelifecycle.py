"""Node lifecycle on real replicas with real sessions, in virtual time: from a dead agent to an empty node, and all the
ways a live node must not get there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from controlplane.base.errors import Code
from controlplane.base.rand import SeededRand
from controlplane.client.fenced import LEADER_KEY, FencedClient
from controlplane.client.interface import FencedError, NotFoundError
from controlplane.client.shared import SharedInformers
from controlplane.controllers import nodelifecycle_metrics as metrics
from controlplane.controllers.base import Environment
from controlplane.controllers.nodelifecycle import NodeLifecycle
from controlplane.controllers.nodelifecycle_decide import LifecycleConfig
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod
from controlplane.pb.quarterdeck.v1 import api_pb2
from tests.unit.api.session_rig import Agent, Rig, running, settle


class RecordedEvents:
    """An EventSink that remembers reasons."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def event(self, regarding: Any, event_type: str, reason: str, message: str) -> None:
        self.reasons.append(reason)


class Ship:
    """A cluster with a lifecycle controller on every replica; the leader's is worked."""

    def __init__(self, rig: Rig, config: LifecycleConfig | None) -> None:
        self.rig = rig
        self.events = RecordedEvents()
        self.lifecycles: list[NodeLifecycle] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.leader = 0
        for replica in rig.replicas:
            client = FencedClient(replica.client)
            client.grant(api_pb2.Fence(key=LEADER_KEY, mod_revision=0))
            caches = SharedInformers(replica.client, clock=rig.clock, rand=SeededRand(f"caches {replica.raft.name}"))
            env = Environment(client, caches, self.events, rig.clock, SeededRand(f"env {replica.raft.name}"))
            self.lifecycles.append(NodeLifecycle(env, replica.sessions.table, config))
            self.tasks.append(asyncio.create_task(caches.run()))

    async def agents(self, count: int) -> list[Agent]:
        agents = [self.rig.agent(f"n{i}", replica=i % len(self.rig.replicas)) for i in range(count)]
        for agent in agents:
            await agent.hello()
        await self.pass_time(1.0, *agents)
        return agents

    async def lead(self, replica: int) -> None:
        self.rig.replicas[0].raft.set_leader(f"r{replica + 1}")
        self.leader = replica
        self.lifecycles[replica].on_lead()
        await settle()

    async def pass_time(self, seconds: float, *beating: Agent) -> None:
        for _ in range(round(seconds / 0.1)):
            await self.rig.pass_time(0.1, 0.1, *beating)
            work = asyncio.ensure_future(self.lifecycles[self.leader].reconcile("nodes"))
            await settle()
            await work

    async def node(self, name: str) -> tuple[str, str, list[str]]:
        """Ready, Suspect, taint keys."""
        node = await self.rig.replicas[self.leader].client.get(Node, name)
        conditions = {c.type: c.status for c in node.status.conditions}
        return conditions["Ready"], conditions.get("Suspect", ""), sorted(t.key.split("/")[1] for t in node.spec.taints)

    async def pods(self) -> set[str]:
        found = await self.rig.replicas[self.leader].client.list(Pod, namespace="default")
        return {pod.metadata.name for pod in found.items}


@asynccontextmanager
async def ship(replicas: int = 3, config: LifecycleConfig | None = None) -> AsyncIterator[Ship]:
    async with running(replicas) as rig:
        built = Ship(rig, config)
        await settle()
        yield built
        for task in built.tasks:
            task.cancel()
        await asyncio.gather(*built.tasks, return_exceptions=True)


ALIVE: tuple[str, str, list[str]] = ("True", "", [])
RECOVERED: tuple[str, str, list[str]] = ("True", "False", [])
SUSPECT = ("True", "True", ["suspect"])
DEAD = ("Unknown", "True", ["suspect", "unreachable"])


def evicted(reason: str) -> float:
    return float(metrics.EVICTIONS_BY_REASON.labels(reason)._value.get())


async def test_a_killed_node_is_suspect_then_dead_and_its_pods_are_gone_within_three_seconds() -> None:
    async with ship() as s:
        dying, *living = await s.agents(3)
        await s.rig.bound_pod("a", "n0")
        await s.rig.bound_pod("b", "n1")
        evictions, broken = metrics.EVICTIONS.labels("")._value.get(), evicted("session_broke")
        await dying.hang_up()
        await s.pass_time(0.8, *living)
        assert await s.node("n0") == SUSPECT
        assert await s.pods() == {"a", "b"}
        await s.pass_time(1.6, *living)
        assert await s.node("n0") == DEAD
        assert await s.pods() == {"b"}
        assert await s.node("n1") == ALIVE
        assert s.events.reasons == ["NodeSuspect", "NodeNotReady", "TaintManagerEviction"]
        assert metrics.EVICTIONS.labels("")._value.get() - evictions == 1
        assert evicted("session_broke") - broken == 1
        assert metrics.NODES_DOWN.labels("")._value.get() == 1


async def test_a_node_that_falls_silent_without_closing_is_found_too() -> None:
    async with ship() as s:
        _, *living = await s.agents(3)
        await s.rig.bound_pod("a", "n0")
        before = evicted("silent")
        await s.pass_time(3.2, *living)
        assert await s.node("n0") == SUSPECT
        assert evicted("silent") == before
        await s.pass_time(2.0, *living)
        assert await s.node("n0") == DEAD
        assert await s.pods() == set()
        assert evicted("silent") - before == 1


async def test_a_session_opened_again_on_another_replica_changes_nothing() -> None:
    async with ship() as s:
        moving, *living = await s.agents(3)
        await moving.hang_up()
        await s.pass_time(0.3, *living)
        again = s.rig.agent("n0", replica=1)
        await again.hello()
        await s.pass_time(5.0, again, *living)
        assert await s.node("n0") == ALIVE
        assert s.events.reasons == []


async def test_a_node_that_returns_is_cleared() -> None:
    async with ship() as s:
        dying, *living = await s.agents(3)
        await dying.hang_up()
        await s.pass_time(4.0, *living)
        assert await s.node("n0") == DEAD
        again = s.rig.agent("n0", replica=1, boot_id="b2")
        await again.hello()
        await s.pass_time(0.5, again, *living)
        assert await s.node("n0") == RECOVERED
        assert s.events.reasons[-1] == "NodeReady"


async def test_a_dead_replicas_nodes_are_never_suspect_when_they_move_within_a_second() -> None:
    async with ship() as s:
        agents = await s.agents(6)
        living = [agent for i, agent in enumerate(agents) if i % 3 != 1]
        await s.rig.kill(1)
        for i in (1, 4):
            await agents[i].hang_up()
        await s.pass_time(1.0, *living)
        moved = [s.rig.agent(name, replica=0) for name in ("n1", "n4")]
        for agent in moved:
            await agent.hello()
        await s.pass_time(8.0, *moved, *living)
        assert s.events.reasons == []


async def test_a_dead_leaders_nodes_are_never_suspect_either() -> None:
    async with ship() as s:
        agents = await s.agents(6)
        living = [agent for i, agent in enumerate(agents) if i % 3 != 0]
        await s.rig.kill(0)
        for i in (0, 3):
            await agents[i].hang_up()
        await s.lead(1)
        await s.pass_time(1.0, *living)
        moved = [s.rig.agent(name, replica=2) for name in ("n0", "n3")]
        for agent in moved:
            await agent.hello()
        await s.pass_time(8.0, *moved, *living)
        assert s.events.reasons == []
        assert [await s.node(f"n{i}") for i in range(6)] == [ALIVE] * 6


async def test_a_new_leader_finds_a_node_that_died_with_the_old_one() -> None:
    async with ship() as s:
        agents = await s.agents(6)
        living = [agent for i, agent in enumerate(agents) if i % 3 != 0]
        await s.rig.kill(0)
        await s.lead(1)
        moved = s.rig.agent("n3", replica=2)
        await moved.hello()
        await s.pass_time(7.0, moved, *living)
        assert await s.node("n0") == DEAD
        assert await s.node("n3") == ALIVE


async def test_an_agent_that_said_goodbye_has_time_to_restart() -> None:
    async with ship() as s:
        restarting, *living = await s.agents(3)
        await s.rig.bound_pod("a", "n0")
        await restarting.goodbye()
        await s.pass_time(10.0, *living)
        again = s.rig.agent("n0", replica=1, boot_id="b2")
        await again.hello()
        await s.pass_time(2.0, again, *living)
        assert s.events.reasons == []
        assert await s.pods() == {"a"}


async def test_a_drained_nodes_pods_are_replaced_at_once() -> None:
    async with ship() as s:
        leaving, *living = await s.agents(3)
        await s.rig.bound_pod("a", "n0")
        before = evicted("drained")
        await leaving.goodbye(drained=True)
        await s.pass_time(0.3, *living)
        assert await s.pods() == set()
        assert evicted("drained") - before == 1


async def test_when_most_nodes_are_lost_at_once_nobody_is_evicted_until_some_return() -> None:
    async with ship() as s:
        agents = await s.agents(5)
        for i in range(5):
            await s.rig.bound_pod(f"p{i}", f"n{i}")
        for agent in agents[:4]:
            await agent.hang_up()
        await s.pass_time(10.0, agents[4])
        assert await s.pods() == {"p0", "p1", "p2", "p3", "p4"}
        assert await s.node("n0") == ("Unknown", "True", ["suspect"])
        assert s.events.reasons.count("EvictionBrakeOn") == 1
        assert metrics.BRAKE._value.get() == 1
        back = [s.rig.agent(f"n{i}", replica=1, boot_id="b2") for i in (0, 1)]
        for agent in back:
            await agent.hello()
        await s.pass_time(2.0, agents[4], *back)
        assert await s.pods() == {"p0", "p1", "p4"}
        assert s.events.reasons.count("EvictionBrakeOff") == 1


async def test_evictions_are_rate_limited_per_node() -> None:
    async with ship(1, LifecycleConfig(evictions_burst=2, evictions_per_s=2.0)) as s:
        agents = await s.agents(10)
        for i in range(5):
            await s.rig.bound_pod(f"p{i}", f"n{i}")
        for agent in agents[:5]:
            await agent.hang_up()
        left = [5]
        for _ in range(10):
            await s.pass_time(0.5, *agents[5:])
            left.append(len(await s.pods()))
        assert left[-1] == 0
        # Two at once, then one every half second: nowhere more than three in one.
        assert max(before - after for before, after in pairwise(left)) <= 3


async def test_a_leader_that_did_not_run_condemns_nobody_for_it() -> None:
    async with ship() as s:
        agents = await s.agents(3)
        s.rig.clock.advance(30.0)
        work = asyncio.ensure_future(s.lifecycles[0].reconcile("nodes"))  # before a single heartbeat is read
        await settle()
        await work
        await s.pass_time(2.0, *agents)
        assert s.events.reasons == []


async def test_a_deposed_leaders_verdict_has_no_effect() -> None:
    async with ship() as s:
        dying, *living = await s.agents(3)
        await s.rig.bound_pod("a", "n0")
        await dying.hang_up()
        s.lifecycles[0].env.client.grant(api_pb2.Fence(key=LEADER_KEY, mod_revision=999))
        with pytest.raises(FencedError) as caught:
            await s.pass_time(5.0, *living)
        assert caught.value.code is Code.FAILED_PRECONDITION
        assert await s.node("n0") == ALIVE
        assert await s.pods() == {"a"}


async def test_a_cache_that_lags_does_not_cost_the_successor_of_a_pod_its_life() -> None:
    async with ship() as s:
        dying, *living = await s.agents(3)
        await s.rig.bound_pod("a", "n0")
        for task in s.tasks:
            task.cancel()  # the caches stand still: they know the first pod only
        await settle()
        await s.rig.client.delete(Pod, "a", namespace="default", grace_period_s=0)
        await s.rig.bound_pod("a", "n1")
        await dying.hang_up()
        await s.pass_time(4.0, *living)
        assert await s.pods() == {"a"}


async def test_pods_of_a_deleted_node_go() -> None:
    async with ship() as s:
        leaving, *living = await s.agents(3)
        await s.rig.bound_pod("a", "n0")
        before = evicted("node_deleted")
        await leaving.hang_up()
        await s.rig.client.delete(Node, "n0")
        await s.pass_time(11.0, *living)
        assert await s.pods() == set()
        assert evicted("node_deleted") - before == 1
        with pytest.raises(NotFoundError):
            await s.node("n0")
