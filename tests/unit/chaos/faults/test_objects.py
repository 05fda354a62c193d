"""What is asked of the API is asked back, the newest first; the disaster destroys nothing before all are dead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

import pytest

from chaos.fault import DeviationError, FaultError, ImpossibleError, Strike
from chaos.faults import fault_named, members
from chaos.ground import Ground
from chaos.observe import PodView
from controlplane.base.clock import SystemClock
from controlplane.base.errors import Code, ConfigError, StatusError
from controlplane.base.rand import SeededRand
from controlplane.client import NotFoundError
from controlplane.pb.k8s.apps_v1_pb2 import Deployment
from tests.unit.chaos.faults.rig import PODS, ground

RAND = SeededRand(1)


class FakeApi:
    """One Deployment and nodes; remembers what was asked."""

    def __init__(self) -> None:
        self.replicas = 6
        self.asked: list[str] = []

    async def patch(self, kind: Any, name: str, patch: Any, *, namespace: str = "") -> Any:
        if kind is Deployment:
            self.replicas = patch["spec"]["replicas"]
            self.asked.append(f"{self.replicas} pods")
        else:
            self.asked.append(f"{name} unschedulable: {patch['spec']['unschedulable']}")
        return None

    async def delete(self, kind: Any, name: str) -> None:
        raise NotFoundError(Code.NOT_FOUND, name)


def rig(folder: Path, **seen: Any) -> tuple[Ground, Any, FakeApi]:
    api = FakeApi()
    on, cluster = ground(folder, client=api, wanted=6, **seen)
    return on, cluster, api


async def undo(on: Ground, strike: Strike) -> None:
    for step in reversed(strike.undo):
        await fault_named(step.fault).heal(on, step)


async def test_growth_is_taken_back_to_what_was_wanted_at_the_beginning(tmp_path: Path) -> None:
    on, _, api = rig(tmp_path)
    grown = [fault_named("scale").plan(on, (), {"times": times}, RAND) for times in (3, 5)]
    for strike in grown:
        await fault_named("scale").strike(on, strike)
    for strike in reversed(grown):
        await undo(on, strike)
    assert api.asked == ["18 pods", "30 pods", "6 pods", "6 pods"]
    assert fault_named("scale").plan(on, (), {"replicas": 2}, RAND).excused == ("*",)
    assert fault_named("scale").plan(on, (), {"replicas": 9}, RAND).excused == ()


async def test_nodes_that_joined_leave_again_also_if_they_never_did_join(tmp_path: Path) -> None:
    on, cluster, _ = rig(tmp_path)
    strike = fault_named("node-add").plan(on, (), {"count": 2}, RAND)
    assert strike.victims == ("node-4", "node-5")
    await undo(on, strike)
    assert cluster.calls == []
    await fault_named("node-add").strike(on, strike)
    await undo(on, strike)
    assert cluster.calls == ["add node-4", "add node-5", "remove node-5", "remove node-4"]


async def test_a_drained_node_is_uncordoned(tmp_path: Path) -> None:
    on, _, api = rig(tmp_path)
    strike = fault_named("drain").plan(on, ["node-1"], {}, RAND)
    assert strike.excused == ("node-1",)
    assert "its 2 pods" in strike.says
    await undo(on, strike)
    assert api.asked == ["node-1 unschedulable: None"]


async def test_the_disaster_wants_a_snapshot_and_kills_all_before_it_destroys_any(tmp_path: Path) -> None:
    on, cluster, _ = rig(tmp_path)
    names = ["r1", "r2", "r3"]
    with pytest.raises(ConfigError, match="snapshot_save"):
        fault_named("lose-control-plane").plan(on, names, {}, RAND)
    on.snapshot = tmp_path / "x.qdsnap"
    strike = fault_named("lose-control-plane").plan(on, names, {}, RAND)
    assert strike.quorum_lost
    await fault_named("lose-control-plane").strike(on, strike)
    assert cluster.calls == [f"SIGKILL {name}" for name in names] + [f"destroy {name}" for name in names]
    with pytest.raises(FaultError, match="is gone"):
        await undo(on, strike)


async def test_a_lost_disk_is_undone_by_the_member_that_was(tmp_path: Path) -> None:
    on, cluster, _ = rig(tmp_path, member_ids={"r1": 11, "r2": 22, "r3": 33})
    strike = fault_named("member-replace").plan(on, ["r3"], {}, RAND)
    assert strike.undo[0].args == {"replace": "r3", "old_id": 33}
    await fault_named("member-replace").strike(on, strike)
    assert cluster.calls == ["SIGKILL r3", "destroy r3"]
    with pytest.raises(ConfigError, match="want one replica"):
        fault_named("member-replace").plan(on, ["r1", "r3"], {}, RAND)


async def test_leadership_is_moved_by_who_leads_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on, cluster, _ = rig(tmp_path, member_ids={"r1": 11, "r2": 22, "r3": 33})
    fault = fault_named("move-leader")

    class Members:
        async def move_leader(self, member_id: int) -> None:
            cluster.calls.append(f"move to {member_id}")
            if member_id == 11:
                raise StatusError(Code.UNAVAILABLE, "etcdserver: request timed out")

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *exc_info: object) -> None:
            pass

    monkeypatch.setattr(members, "_members", lambda ground: Members())
    strike = fault.plan(on, ["r2"], {}, RAND)
    assert (strike.undo, strike.says) == ((), "r2, the leader of term 4, hands over")
    await fault.strike(on, strike)
    await fault.strike(on, fault.plan(on, ["r2"], {"to": "r3"}, RAND))
    assert cluster.calls == ["move to 0", "move to 33"]
    with pytest.raises(FaultError, match="r2 does not hand over: etcdserver: request timed out"):
        await fault.strike(on, fault.plan(on, ["r2"], {"to": "r1"}, RAND))
    for targets, params, why in (
        (["r1"], {}, "r1 does not lead; r2 does"),
        (["r2"], {"to": "r2"}, "leads already"),
        (["r2"], {"to": "r9"}, "'r9' is no replica"),
        (["r2", "r3"], {}, "want one replica"),
    ):
        with pytest.raises(ConfigError, match=why):
            fault.plan(on, targets, params, RAND)


async def test_a_rolling_restart_waits_while_another_fault_has_the_quorum_at_its_edge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on, cluster, _ = rig(tmp_path)
    on.replicas = cast(Any, Serving())
    strike = fault_named("rolling-restart").plan(on, ["r1", "r3"], {}, RAND)
    down = iter(["", "r2", "r2", ""])
    whole = on.seen

    async def look(self: Ground) -> Any:
        struck = next(down)
        cluster.calls.append(f"down: {struck}")
        return replace(whole, down=frozenset({struck} - {""}))

    monkeypatch.setattr(Ground, "look", look)
    on.clock = QuickClock()
    await fault_named("rolling-restart").strike(on, strike)
    assert cluster.calls == [
        "down: ", "stop r1", "start r1", "down: r2", "down: r2", "down: ", "stop r3", "start r3",
    ]  # fmt: skip


async def test_a_rolling_restart_of_agents_waits_for_the_pods_that_went_with_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on, cluster, _ = rig(tmp_path)
    strike = fault_named("rolling-restart").plan(on, ["node-1", "node-2"], {}, RAND)
    ready = iter([6, 3, 5, 6])

    class Replaced:
        def ready(self) -> list[PodView]:
            count = next(ready)
            cluster.calls.append(f"{count} Ready")
            return list(PODS[:count])

        async def until(self, done: Callable[[], bool], timeout_s: float) -> float | None:
            while not done():
                pass
            return 0.0

    async def serves(ground: Ground, name: str) -> bool:
        return True

    monkeypatch.setattr("chaos.faults.members._agent_serves", serves)
    on.pods = cast(Any, Replaced())
    await fault_named("rolling-restart").strike(on, strike)
    assert cluster.calls == [
        "6 Ready", "SIGKILL node-1", "start node-1", "3 Ready", "5 Ready", "6 Ready", "SIGKILL node-2", "start node-2",
    ]  # fmt: skip


async def test_a_rolling_restart_of_agents_ends_if_the_pods_do_not_come_back(tmp_path: Path) -> None:
    on, cluster, _ = rig(tmp_path)

    class Never:
        async def until(self, done: Callable[[], bool], timeout_s: float) -> float | None:
            return None

    on.pods = cast(Any, Never())
    strike = fault_named("rolling-restart").plan(on, ["node-1"], {}, RAND)
    with pytest.raises(DeviationError, match=r"node-1 is not restarted: .* not 6 pods were Ready"):
        await fault_named("rolling-restart").strike(on, strike)
    assert cluster.calls == []


class Serving:
    """Replicas that serve."""

    async def status(self, name: str) -> Any:
        return SimpleNamespace(ready=True, leader="r2")


class QuickClock(SystemClock):
    """Nobody waits."""

    async def sleep(self, seconds: float) -> None:
        return


def test_through_agents_replicas_are_restarted_in_turn_and_nodes_are_not(tmp_path: Path) -> None:
    on, cluster, _ = rig(tmp_path)
    cluster.remote = True
    assert fault_named("rolling-restart").plan(on, ["r1"], {}, RAND).victims == ("r1",)
    with pytest.raises(ImpossibleError, match="rolling-restart of node-1"):
        fault_named("rolling-restart").plan(on, ["r1", "node-1"], {}, RAND)


def test_a_rolling_restart_takes_the_leader_last(tmp_path: Path) -> None:
    on, _, _ = rig(tmp_path)
    assert fault_named("rolling-restart").plan(on, ["r1", "r2", "r3"], {}, RAND).victims == ("r1", "r3", "r2")
