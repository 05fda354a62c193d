"""The scheduler's loop on a fake API: binding, being refused, explaining, terms. What fits where is test_plan's."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from controlplane.base.errors import Code
from controlplane.client.interface import UnavailableError
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod
from controlplane.pb.quarterdeck.v1 import api_pb2
from tests.fakes.api import FakeApi
from tests.fakes.world import World, world
from tests.unit.scheduler.objects import pod


class Rejecting(FakeApi):
    """Refuses every binding, for the reason it is told; counts."""

    def __init__(self) -> None:
        super().__init__()
        self.reason = ""
        self.refused = 0

    async def bind(
        self, bindings: Sequence[api_pb2.Binding], *, fence: api_pb2.Fence | None = None
    ) -> Sequence[api_pb2.BindResult]:
        if not self.reason:
            return await super().bind(bindings, fence=fence)
        self.refused += len(bindings)
        return [api_pb2.BindResult(reason=self.reason) for _ in bindings]


def submit(w: World, *pods: Pod) -> None:
    for p in pods:
        w.api.put(p)


def bound(w: World) -> dict[str, str]:
    return {p.metadata.name: p.spec.nodeName for p in w.api.all(Pod) if p.spec.nodeName}


async def test_pods_are_bound_and_it_is_said() -> None:
    async with world([], nodes=2) as w:
        await w.lead()
        submit(w, pod("a"), pod("b"))
        await w.settle()
        assert set(bound(w)) == {"a", "b"}
        assert ("Normal", "Scheduled", f"Successfully assigned default/a to {bound(w)['a']}") in w.events.said


async def test_pods_that_came_before_the_term_are_bound_when_it_begins() -> None:
    async with world([], nodes=2) as w:
        submit(w, pod("a"))
        await w.settle()
        assert bound(w) == {}
        await w.lead()
        assert set(bound(w)) == {"a"}


async def test_gated_pods_and_those_of_other_schedulers_are_left_alone() -> None:
    async with world([], nodes=1) as w:
        await w.lead()
        gated, foreign = pod("gated"), pod("foreign")
        gated.spec.schedulingGates.add(name="wait")
        foreign.spec.schedulerName = "mine"
        submit(w, gated, foreign)
        await w.settle()
        assert bound(w) == {}
        del gated.spec.schedulingGates[:]
        submit(w, gated)
        await w.settle()
        assert set(bound(w)) == {"gated"}


async def test_a_pod_that_fits_nowhere_is_explained_and_bound_when_a_node_comes() -> None:
    async with world([], nodes=3) as w:
        await w.lead()
        submit(w, pod("huge", cpu="64"))
        await w.settle()
        message = "0/3 nodes are available: 3 Insufficient cpu."
        assert ("Warning", "FailedScheduling", message) in w.events.said
        stored = w.api.peek(Pod, "huge", "default")
        assert stored is not None
        condition = next(c for c in stored.status.conditions if c.type == "PodScheduled")
        assert (condition.status, condition.reason, condition.message) == ("False", "Unschedulable", message)
        w.add_node("giant", cpu="128")
        await w.settle()
        assert bound(w) == {"huge": "giant"}


async def test_a_pod_that_goes_makes_room() -> None:
    async with world([], nodes=1) as w:
        await w.lead()
        submit(w, pod("first", cpu="3"))
        await w.settle()
        submit(w, pod("second", cpu="3"))
        await w.settle()
        assert set(bound(w)) == {"first"}
        w.api.remove(Pod, "first", "default")
        await w.settle()
        assert set(bound(w)) == {"second"}


async def test_a_cordoned_or_silent_node_gets_nothing_until_it_is_back() -> None:
    async with world([], nodes=1) as w:
        await w.lead()
        stored = w.api.peek(Node, "node-0")
        assert stored is not None
        stored.spec.unschedulable = True
        w.api.put(stored)
        await w.settle()
        submit(w, pod("p"))
        await w.settle()
        assert bound(w) == {}
        stored.spec.unschedulable = False
        w.api.put(stored)
        await w.settle()
        assert set(bound(w)) == {"p"}


@pytest.mark.parametrize("reason", ["Conflict", "AlreadyBound", "Deleted", "NotFound"])
async def test_a_store_that_refuses_everything_is_asked_ever_more_slowly_and_nothing_leaks(reason: str) -> None:
    api = Rejecting()
    async with world([], nodes=0, api=api) as w:
        w.add_node("node-0", cpu="1")
        api.reason = reason
        await w.lead()
        submit(w, *(pod(f"p{i}", cpu="100m") for i in range(10)))
        await w.settle()
        assert bound(w) == {}
        await w.pass_time(40, step_s=1)
        assert 10 < api.refused < 10 * 20
        api.reason = ""
        await w.pass_time(12, step_s=1)
        assert len(bound(w)) == 10  # exactly what the node has room for: no refused try still counts


async def test_an_outcome_nobody_learned_binds_once_and_never_overcommits() -> None:
    async with world([], nodes=1) as w:
        await w.lead()
        w.api.fail_next("bind", UnavailableError(Code.UNAVAILABLE, "no quorum", unknown_outcome=True))
        submit(w, pod("a", cpu="3"), pod("b", cpu="3"))
        await w.settle()
        await w.pass_time(40, step_s=1)
        assert len(bound(w)) == 1


async def test_a_deposed_leader_binds_nothing_and_a_new_term_goes_on() -> None:
    async with world([], nodes=1) as w:
        await w.lead(term=1)
        w.api.fence_revision = 2
        submit(w, pod("a"))
        await w.settle()
        assert bound(w) == {}
        assert not w.scheduler.leading
        await w.lead(term=3)
        assert set(bound(w)) == {"a"}


async def test_many_pods_fill_the_nodes_exactly() -> None:
    async with world([], nodes=5) as w:
        await w.lead()
        submit(w, *(pod(f"p{i:03}", cpu="100m", owner="rs") for i in range(230)))
        await w.settle()
        per_node = {n: list(bound(w).values()).count(n) for n in sorted(set(bound(w).values()))}
        assert per_node == {f"node-{i}": 40 for i in range(5)}
