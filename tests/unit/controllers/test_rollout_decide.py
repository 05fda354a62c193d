"""The arithmetic of rolling updates, by table and by random walk. What objects it is applied to is tested elsewhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.controllers.rollout_decide import (
    Bounds,
    SetSize,
    bounds_of,
    resolve_count,
    scale_in_proportion,
    step_new,
    step_old,
)
from controlplane.pb.k8s.apps_v1_pb2 import DeploymentSpec
from controlplane.pb.k8s.intstr_pb2 import IntOrString


def percent(text: str) -> IntOrString:
    return IntOrString(type=1, strVal=text)


def count(value: int) -> IntOrString:
    return IntOrString(type=0, intVal=value)


@pytest.mark.parametrize(
    ("value", "total", "round_up", "expected"),
    [
        pytest.param(count(3), 10, True, 3, id="a count is itself"),
        pytest.param(percent("25%"), 10, True, 3, id="surge rounds up"),
        pytest.param(percent("25%"), 10, False, 2, id="unavailable rounds down"),
        pytest.param(percent("100%"), 7, False, 7, id="all"),
        pytest.param(percent("0%"), 7, True, 0, id="none"),
        pytest.param(percent("x%"), 7, True, 0, id="unreadable is none"),
    ],
)
def test_a_count_or_percentage_resolves_as_kubernetes_rounds(
    value: IntOrString, total: int, round_up: bool, expected: int
) -> None:
    assert resolve_count(value, total, round_up=round_up) == expected


def test_without_settings_a_quarter_surges_and_a_quarter_may_be_missing() -> None:
    assert bounds_of(DeploymentSpec(replicas=6)) == Bounds(6, 2, 1)


def test_unset_replicas_is_one() -> None:
    assert bounds_of(DeploymentSpec()).desired == 1


def test_zero_surge_and_zero_unavailable_still_moves() -> None:
    spec = DeploymentSpec(replicas=4)
    spec.strategy.rollingUpdate.maxSurge.CopyFrom(count(0))
    spec.strategy.rollingUpdate.maxUnavailable.CopyFrom(percent("10%"))
    assert bounds_of(spec) == Bounds(4, 0, 1)


def test_recreate_never_surges() -> None:
    spec = DeploymentSpec(replicas=4)
    spec.strategy.type = "Recreate"
    assert bounds_of(spec) == Bounds(4, 0, 4)


@pytest.mark.parametrize(
    ("bounds", "new", "old", "new_wanted", "old_wanted"),
    [
        pytest.param(Bounds(10, 3, 2), (0, 0), [(10, 10)], 3, [8], id="first step uses both allowances"),
        pytest.param(Bounds(10, 3, 2), (3, 0), [(10, 10)], 3, [8], id="pods not ready yet are waited for"),
        pytest.param(Bounds(10, 3, 2), (3, 3), [(8, 8)], 5, [5], id="ready new pods free old ones"),
        pytest.param(Bounds(10, 3, 2), (10, 10), [(0, 0)], 10, [0], id="done"),
        pytest.param(Bounds(10, 3, 2), (12, 12), [], 10, [], id="a new set that is too large shrinks"),
        pytest.param(Bounds(4, 1, 0), (1, 0), [(4, 2)], 1, [4], id="at zero unavailable even broken ones wait"),
        pytest.param(Bounds(4, 1, 1), (0, 0), [(2, 0), (2, 2)], 1, [1, 2], id="broken old pods go first"),
        pytest.param(Bounds(10, 0, 2), (0, 0), [(8, 10)], 2, [8], id="a stale report does not free pods twice"),
    ],
)
def test_one_step(
    bounds: Bounds,
    new: tuple[int, int],
    old: list[tuple[int, int]],
    new_wanted: int,
    old_wanted: list[int],
) -> None:
    new_size, old_sizes = SetSize(*new), [SetSize(*o) for o in old]
    assert step_new(bounds, new_size, old_sizes) == new_wanted
    assert step_old(bounds, new_size, old_sizes) == old_wanted


@settings(max_examples=50, deadline=None)
@given(data=st.data(), desired=st.integers(0, 30), surge=st.integers(0, 10), unavailable=st.integers(0, 10))
def test_a_rollout_keeps_both_promises_and_ends(
    data: st.DataObject, desired: int, surge: int, unavailable: int
) -> None:
    if surge == 0 and unavailable == 0:
        unavailable = 1
    bounds = Bounds(desired, surge, min(unavailable, desired))
    # Pods of a set: wanted by it, alive, available. Reports lag: they show the availability of an earlier moment.
    wanted = [desired, 0]
    available = [desired, 0]
    reported = [desired, 0]
    for step in range(160):
        old, new = SetSize(wanted[0], reported[0]), SetSize(wanted[1], reported[1])
        if step % 2:
            wanted[1] = step_new(bounds, new, [old])
        else:
            wanted[0] = step_old(bounds, new, [old])[0]
        assert sum(wanted) <= max(bounds.ceiling, desired)
        for i in range(2):  # shrinking takes unavailable pods first
            available[i] = min(available[i], wanted[i])
        assert sum(available) >= bounds.floor
        busy = step < 60 and data.draw(st.booleans())
        for i in range(2):
            if not busy:
                available[i] = wanted[i]
            elif available[i] < wanted[i]:
                available[i] += data.draw(st.integers(0, wanted[i] - available[i]))
        if not busy:
            reported = list(available)
        if step >= 60 and wanted == [0, desired]:
            break
    assert wanted == [0, desired]


@given(sizes=st.lists(st.integers(0, 50), max_size=6), total=st.integers(0, 300))
def test_proportional_scaling_hits_the_total_and_keeps_the_order(sizes: list[int], total: int) -> None:
    scaled = scale_in_proportion(sizes, total)
    if sum(sizes) == 0:
        assert scaled == sizes
        return
    assert sum(scaled) == total
    assert all(s == 0 for s, before in zip(scaled, sizes, strict=True) if before == 0)
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    assert all(scaled[a] <= scaled[b] for a, b in pairwise(order) if sizes[a] < sizes[b])
