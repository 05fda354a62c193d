"""Faults of links, planned: which links, who is out of service by it, and what is refused. On links that remember."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from chaos.fault import Strike
from chaos.faults import fault_named
from chaos.faults.network import cut_off, ring
from chaos.ground import Ground
from chaos.links import Link
from chaos.targets import Seen
from controlplane.base.errors import ConfigError
from controlplane.base.rand import SeededRand
from tests.unit.chaos.faults import rig


class FakeLinks:
    """Every link there could be; remembers what was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.figures: dict[str, float] = {}

    def missing(self, kind: str) -> str | None:
        return "no packets here" if kind == "loss" else None

    def exists(self, link: Link) -> bool:
        return link != ("node-1", "node-2")

    def strike(self, token: str, kind: str, links: Sequence[Link], figures: dict[str, float]) -> None:
        self.calls.append((kind, token))
        self.figures = figures

    def proof(self, token: str) -> dict[str, Any]:
        return {"bit": True, "packets_dropped": 3}

    def heal(self, token: str) -> None:
        self.calls.append(("heal", token))


def standing(tmp_path: Path, **seen: Any) -> tuple[Ground, FakeLinks]:
    ground, _ = rig.ground(tmp_path, **seen)
    links = FakeLinks()
    ground.links = links
    return ground, links


def planned(ground: Ground, fault: str, targets: Sequence[str], **params: Any) -> Strike:
    return fault_named(fault).plan(ground, targets, params, SeededRand(7))


def links_of(strike: Strike) -> set[Link]:
    return {(source, target) for source, target in strike.args["links"]}


def test_a_partition_of_the_leader_cuts_both_directions_to_everybody(tmp_path: Path) -> None:
    ground, _ = standing(tmp_path)
    strike = planned(ground, "partition", ["r2"])
    assert links_of(strike) == {
        pair for other in ("r1", "r3", "node-1", "node-2", "node-3") for pair in (("r2", other), (other, "r2"))
    }
    assert strike.args["down"] == ["r2"]
    assert not strike.quorum_lost
    assert strike.says == "partition between r2 and all"


@pytest.mark.parametrize(("direction", "expected"), [("to", {("r2", "r1")}), ("from", {("r1", "r2")})])
def test_one_direction_is_cut_alone(tmp_path: Path, direction: str, expected: set[Link]) -> None:
    ground, _ = standing(tmp_path)
    assert links_of(planned(ground, "partition", ["r2"], others="r1", direction=direction)) == expected


def test_a_cut_that_leaves_no_majority_costs_the_quorum(tmp_path: Path) -> None:
    ground, _ = standing(tmp_path)
    assert planned(ground, "partition", ["r1", "r2", "r3"], others="replicas,nodes").quorum_lost is False
    assert planned(ground, "partition", ["r2"], others="r1").quorum_lost is False
    ground, _ = standing(tmp_path, down=frozenset({"r3"}))
    assert planned(ground, "partition", ["r2"], others="r1").quorum_lost is True


def test_cuts_in_force_count_for_what_comes_after(tmp_path: Path) -> None:
    cut = frozenset({frozenset({"r1", "r2"})})
    ground, _ = standing(tmp_path, cut=cut)
    # r3 is all that joins the others.
    assert fault_named("kill").plan(ground, ["r3"], {}, SeededRand(1)).quorum_lost
    assert not fault_named("kill").plan(ground, ["r1"], {}, SeededRand(1)).quorum_lost
    second = planned(ground, "partition", ["r1"], others="r3")
    assert second.args["down"] == ["r1"]
    assert not second.quorum_lost
    ground, _ = standing(tmp_path, cut=cut | {frozenset({"r1", "r3"})})
    assert planned(ground, "partition", ["r2"], others="r3").quorum_lost


async def test_a_look_sees_which_links_are_cut(tmp_path: Path) -> None:
    ground, _ = standing(tmp_path)
    ground.replicas = cast(Any, Silent())
    ground.undo.add("a-run", planned(ground, "partition", ["r2"], others="r1", direction="to"))
    assert (await ground.look()).cut == {frozenset({"r1", "r2"})}


class Silent:
    """Replicas that do not answer."""

    names = ("r1", "r2", "r3")

    async def statuses(self) -> dict[str, Any]:
        return {}

    async def status(self, name: str) -> None:
        return None

    def leader_among(self, answers: Any) -> tuple[None, int]:
        return None, 0


def test_nodes_that_reach_no_replica_excuse_their_pods(tmp_path: Path) -> None:
    ground, _ = standing(tmp_path)
    assert planned(ground, "partition", ["node-1"], others="replicas").excused == ("node-1",)
    assert planned(ground, "partition", ["node-1"], others="r1").excused == ()


def test_a_ring_of_three_cuts_the_ends_apart_and_one_of_five_leaves_two_neighbours_each() -> None:
    assert set(ring(["a", "b", "c"])) == {("a", "c"), ("c", "a")}
    cut = set(ring(["a", "b", "c", "d", "e"]))
    for name in "abcde":
        assert sum(1 for source, _ in cut if source == name) == 2
    seen = Seen(("a", "b", "c", "d", "e"), ())
    assert cut_off(seen, sorted(cut)) == ((), ())


def test_a_ring_has_no_sides(tmp_path: Path) -> None:
    ground, _ = standing(tmp_path)
    assert len(links_of(planned(ground, "partition", [], shape="ring"))) == 2
    with pytest.raises(ConfigError, match="it has no direction"):
        planned(ground, "partition", [], shape="ring", direction="to")


def test_the_same_seed_plans_the_same(tmp_path: Path) -> None:
    ground, _ = standing(tmp_path)
    assert planned(ground, "flapping", ["r1"]) == planned(ground, "flapping", ["r1"])


@pytest.mark.parametrize(
    ("fault", "params", "says"),
    [
        ("latency", {"delay_ms": -1}, "delay_ms is -1: want a number from 0"),
        ("latency", {"delay": 5}, "did you mean 'delay_ms'"),
        ("partition", {"others": "r9"}, "others: 'r9': want all"),
        ("partition", {"direction": "up"}, "want one of both, to, from"),
        ("latency", {"others": "r2"}, "no link"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, fault: str, params: dict[str, Any], says: str) -> None:
    ground, _ = standing(tmp_path)
    with pytest.raises(ConfigError, match=says):
        planned(ground, fault, ["r2"], **params)


def test_a_link_that_cannot_be_broken_here_is_said(tmp_path: Path) -> None:
    ground, _ = standing(tmp_path)
    with pytest.raises(ConfigError, match="there is no link"):
        planned(ground, "partition", ["node-1"], others="node-2", direction="to")
    assert fault_named("loss").missing(ground) == "no packets here"
    ground.links = None
    assert "HOSTS=netns" in str(fault_named("partition").missing(ground))


async def test_striking_and_healing_use_the_same_token(tmp_path: Path) -> None:
    ground, links = standing(tmp_path)
    fault = fault_named("bandwidth")
    strike = planned(ground, "bandwidth", ["r2"], rate_kbit=80)
    assert await fault.strike(ground, strike) == {"links": 10}
    assert links.figures == {"rate_bytes_s": 10_000}
    assert (await fault.proof(ground, strike))["bit"] is True
    await fault.heal(ground, strike.undo[0])
    await fault.heal(ground, strike.undo[0])
    token = strike.args["token"]
    assert links.calls == [("bandwidth", token), ("heal", token), ("heal", token)]
    assert strike.undo[0].args == {"token": token}


async def test_a_flapping_link_is_up_when_healed_and_counts_what_it_lost(tmp_path: Path) -> None:
    ground, links = standing(tmp_path)
    fault = fault_named("flapping")
    strike = planned(ground, "flapping", ["r2"])
    await fault.strike(ground, strike)
    proof = await fault.proof(ground, strike)
    assert proof == {"bit": True, "packets_dropped": 3, "times_down": 1}
    await fault.heal(ground, strike.undo[0])
    assert links.calls[-1] == ("heal", strike.args["token"])
