"""Selectors mean who they say, a seed picks the same again, and what fits nobody is refused with its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos.observe import PodView
from chaos.targets import Seen, TargetError, quorum_lost, resolve, zones
from controlplane.base.errors import ConfigError
from controlplane.base.rand import SeededRand

PODS = tuple(PodView(f"u{n}", f"web-{n}", f"node-{1 + n % 2}", 0, n != 5, False) for n in range(6))
SEEN = Seen(("r1", "r2", "r3", "r4", "r5"), ("node-1", "node-2", "node-3"), leader="r2", term=4, pods=PODS)


@pytest.mark.parametrize(
    ("selector", "want"),
    [
        ("leader", {"r2"}),
        ("scheduler", {"r2"}),
        ("controllers", {"r2"}),
        ("r4", {"r4"}),
        ("node-3", {"node-3"}),
        ("all-replicas", {"r1", "r2", "r3", "r4", "r5"}),
        ("busiest-node", {"node-1"}),
        ("zone-2", {"r2", "node-2"}),
        ("pod/web-3", {"pod/web-3"}),
        ("all-pods", {f"pod/web-{n}" for n in range(5)}),
        ("cluster", set()),
    ],
)
def test_a_selector_means(selector: str, want: set[str]) -> None:
    assert set(resolve(SEEN, selector, SeededRand(1))) == want


def test_members_of_a_store_apart_are_named() -> None:
    seen = Seen(("r1",), (), store=("etcd-1", "etcd-2"))
    assert resolve(seen, "etcd-2", SeededRand(1)) == ("etcd-2",)


def test_a_majority_and_a_minority_have_their_sizes() -> None:
    for seed in range(20):
        assert len(set(resolve(SEEN, "majority", SeededRand(seed)))) == 3
        assert len(set(resolve(SEEN, "minority", SeededRand(seed)))) == 2


def test_a_follower_is_up_and_does_not_lead() -> None:
    seen = Seen(SEEN.replicas, SEEN.nodes, leader="r2", down=frozenset({"r1", "r5"}))
    assert {resolve(seen, "follower", SeededRand(seed)) for seed in range(30)} == {("r3",), ("r4",)}


def test_a_zone_of_a_pod_has_pods_to_lose_while_any_zone_may_have_none() -> None:
    def drawn(selector: str) -> set[tuple[str, ...]]:
        return {resolve(SEEN, selector, SeededRand(seed)) for seed in range(40)}

    assert drawn("zone-of-pod") == {("r1", "node-1"), ("r2", "node-2")}
    assert drawn("zone") == {("r1", "node-1"), ("r2", "node-2"), ("r3", "node-3"), ("r4",), ("r5",)}


def test_there_is_no_zone_of_a_pod_without_pods() -> None:
    with pytest.raises(TargetError, match="zone-of-pod"):
        resolve(replace(SEEN, pods=()), "zone-of-pod", SeededRand(1))


def test_the_same_seed_picks_the_same() -> None:
    for selector in ("follower", "majority", "node", "zone", "pod"):
        assert resolve(SEEN, selector, SeededRand(7)) == resolve(SEEN, selector, SeededRand(7))
    assert len({resolve(SEEN, "node", SeededRand(seed)) for seed in range(30)}) == 3


@pytest.mark.parametrize(
    ("mode", "value", "sizes"),
    [
        ("one", 0, {1}),
        ("all", 0, {3}),
        ("fixed", 2, {2}),
        ("fixed-percent", 67, {2}),
        ("random-max-percent", 67, {1, 2}),
    ],
)
def test_modes_narrow(mode: str, value: int, sizes: set[int]) -> None:
    found = {len(set(resolve(SEEN, "all-nodes", SeededRand(seed), mode=mode, value=value))) for seed in range(30)}
    assert found == sizes


@pytest.mark.parametrize(("mode", "value"), [("fixed", 0), ("fixed", 4), ("fixed-percent", 0), ("half", 1)])
def test_a_mode_out_of_range_is_refused(mode: str, value: int) -> None:
    with pytest.raises(ConfigError, match="mode"):
        resolve(SEEN, "all-nodes", SeededRand(1), mode=mode, value=value)


def test_nobody_is_said_with_what_is_there() -> None:
    with pytest.raises(TargetError, match=r"nobody fits now \(leader: none"):
        resolve(Seen(("r1",), ()), "leader", SeededRand(1))
    with pytest.raises(TargetError):
        resolve(SEEN, "r9", SeededRand(1))


def test_an_unknown_selector_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'follower'"):
        resolve(SEEN, "folower", SeededRand(1))


def test_a_quorum_is_lost_with_what_is_down_already() -> None:
    assert not quorum_lost(SEEN, ["r1", "r2"])
    assert quorum_lost(SEEN, ["r1", "r2", "r3"])
    down = Seen(SEEN.replicas, SEEN.nodes, down=frozenset({"r5"}))
    assert not quorum_lost(down, ["r1"])
    assert quorum_lost(down, ["r1", "r2"])
    assert not quorum_lost(down, ["r5", "node-1", "r1"])


def test_every_process_is_in_one_zone() -> None:
    names = [name for zone in zones(SEEN).values() for name in zone]
    assert sorted(names) == sorted([*SEEN.replicas, *SEEN.nodes])


def test_one_container_of_a_pod_is_named_or_any_of_the_workload() -> None:
    pods = (replace(PODS[0], containers=(("web", 0), ("beside", 0))), PODS[5])
    seen = replace(SEEN, pods=pods)
    assert resolve(seen, "container/web-0/beside", SeededRand(1)) == ("container/web-0/beside",)
    found = {resolve(seen, "container", SeededRand(seed)) for seed in range(20)}
    assert found == {("container/web-0/web",), ("container/web-0/beside",)}
    with pytest.raises(TargetError, match="web-0 has no container 'bside'; it has: web, beside"):
        resolve(seen, "container/web-0/bside", SeededRand(1))
    with pytest.raises(TargetError, match="nobody fits"):
        resolve(seen, "container/web-9/web", SeededRand(1))
    with pytest.raises(ConfigError, match="want container/POD/NAME"):
        resolve(seen, "container/web-0", SeededRand(1))
