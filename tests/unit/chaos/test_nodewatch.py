"""Who was heard, who was given up, which pods went: as it is written down, each change once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from chaos.history import Recorder, load
from chaos.nodewatch import Attendance, NodeWatch, given_up
from chaos.records import Header, History, NodeSeen
from controlplane.pb.k8s.core_v1_pb2 import Node, Taint
from tests.fakes.api import FakeApi
from tests.unit.chaos.fakes import JumpingClock
from tests.unit.chaos.faults.rig import FakePods, ground

S = 1_000_000_000


def test_each_change_is_one_record_and_an_absence_begins_when_it_was_last_heard() -> None:
    known = Attendance("node-1", 0)
    assert known.asked(1 * S, 1 * S + 5, heard=True) == [NodeSeen(1 * S + 5, "node-1", heard=True)]
    assert known.asked(2 * S, 2 * S + 5, heard=True) == []
    assert known.asked(2 * S + 250, 3 * S, heard=False) == [NodeSeen(3 * S, "node-1", since_ns=2 * S)]
    assert known.asked(4 * S, 5 * S, heard=False) == []
    assert known.told(6 * S, condemned=True) == [NodeSeen(6 * S, "node-1", since_ns=2 * S, condemned=True)]
    assert known.told(7 * S, condemned=True) == []
    assert known.asked(8 * S, 8 * S + 5, heard=True) == [NodeSeen(8 * S + 5, "node-1", heard=True, condemned=True)]
    assert known.told(9 * S, condemned=False) == [NodeSeen(9 * S, "node-1", heard=True)]


def test_when_nobody_asked_for_a_while_the_node_counts_as_away() -> None:
    """This program stood still: the agent may have, too."""
    known = Attendance("node-1", 0)
    known.asked(1 * S, 1 * S, heard=True)
    away, back = known.asked(4 * S, 4 * S + 5, heard=True)
    assert (away.heard, away.since_ns, back.heard, back.at_ns) == (False, 1 * S, True, 4 * S + 5)


def test_of_a_node_that_was_never_asked_nothing_is_written() -> None:
    assert Attendance("node-1", 0).told(S, condemned=True) == []


class GoingPods(FakePods):
    """Those that are left."""

    def __init__(self) -> None:
        self.left = super().views()

    def views(self) -> Any:
        return self.left


async def test_agents_nodes_and_pods_are_watched(tmp_path: Path) -> None:
    api, clock, pods = FakeApi(), JumpingClock(), GoingPods()
    on, _ = ground(tmp_path, client=api)
    on.clock, on.pods = clock, cast(Any, pods)
    node = Node()
    node.metadata.name = "node-2"
    api.put(node)
    heard: dict[str, bool] = {}

    async def ask(address: str) -> bool:
        return heard.get(address, True)

    path = tmp_path / "history.jsonl"
    with Recorder(path, Header("t", "/t/", "now", []), clock) as recorder:
        async with NodeWatch(on, recorder, ask):

            async def until(holds: Callable[[History], bool]) -> None:
                for _ in range(2_000):
                    if holds(load(path)):
                        return
                    await asyncio.sleep(0)
                raise AssertionError(load(path).nodes)

            await until(lambda found: len(found.nodes) == 3 and len(found.pods) == 6)
            heard[on.cluster.spec.nodes[1].metrics] = False
            await until(lambda found: any(not seen.heard for seen in found.nodes))
            node.spec.taints.append(Taint(key="node.kubernetes.io/unreachable", effect="NoExecute"))
            assert given_up(api.put(node))
            gone = pods.left.pop()
            await until(lambda found: any(seen.condemned for seen in found.nodes) and any(p.gone for p in found.pods))
    found = load(path)
    assert [(seen.node, seen.heard, seen.condemned) for seen in found.nodes[3:]] == [
        ("node-2", False, False), ("node-2", False, True),
    ]  # fmt: skip
    assert [(seen.uid, seen.node) for seen in found.pods if seen.gone] == [(gone.uid, gone.node)]
