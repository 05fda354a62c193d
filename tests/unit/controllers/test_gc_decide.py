"""Owner garbage collection and clean-up, rule by rule."""

from __future__ import annotations

import pytest

from controlplane.controllers.cleanup_decide import expired_events, finished_surplus
from controlplane.controllers.gc_decide import (
    FOREGROUND,
    ORPHAN,
    Delete,
    DropFinalizer,
    DropOwners,
    Keep,
    OwnerState,
    Verdict,
    decide_dependent,
    decide_owner,
)
from controlplane.pb.k8s.core_v1_pb2 import Event
from controlplane.pb.k8s.meta_v1_pb2 import ObjectMeta, OwnerReference
from tests.unit.controllers.objects import pod

PRESENT, WAITING, GONE = OwnerState.PRESENT, OwnerState.WAITING, OwnerState.GONE


@pytest.mark.parametrize(
    ("states", "finalizers", "has_dependents", "verdict"),
    [
        pytest.param([], [], False, Keep(), id="no owners"),
        pytest.param([PRESENT], [], False, Keep(), id="owner present"),
        pytest.param([GONE], [], False, Delete("Background"), id="owner gone"),
        pytest.param([GONE], [ORPHAN], True, Delete("Orphan"), id="its own wish to orphan is kept"),
        pytest.param([GONE], [FOREGROUND], True, Delete("Foreground"), id="its own wish to wait is kept"),
        pytest.param([PRESENT, GONE], [], False, DropOwners(frozenset({"u1"})), id="one of two gone"),
        pytest.param([WAITING], [], True, Delete("Foreground"), id="the wait is passed on"),
        pytest.param([WAITING], [], False, Delete("Background"), id="nothing to pass it on to"),
    ],
)
def test_a_dependent_goes_when_no_owner_is_left(
    states: list[OwnerState], finalizers: list[str], has_dependents: bool, verdict: Verdict
) -> None:
    meta = ObjectMeta(finalizers=finalizers)
    owners = [(OwnerReference(uid=f"u{i}"), state) for i, state in enumerate(states)]
    assert decide_dependent(meta, owners, has_dependents=has_dependents) == verdict


def test_what_is_going_already_is_left_to_go() -> None:
    meta = ObjectMeta()
    meta.deletionTimestamp.seconds = 1
    assert decide_dependent(meta, [(OwnerReference(uid="u"), GONE)], has_dependents=False) == Keep()


@pytest.mark.parametrize(
    ("finalizer", "dependents", "verdict"),
    [
        pytest.param(FOREGROUND, [True], Keep(), id="a blocking dependent"),
        pytest.param(FOREGROUND, [False], DropFinalizer(FOREGROUND), id="one that does not block"),
        pytest.param(FOREGROUND, [], DropFinalizer(FOREGROUND), id="none"),
        pytest.param(ORPHAN, [False], Keep(), id="still to be orphaned"),
        pytest.param(ORPHAN, [], DropFinalizer(ORPHAN), id="all orphaned"),
        pytest.param("other", [], Keep(), id="somebody else's finalizer"),
    ],
)
def test_an_owner_waits_for_its_dependents(finalizer: str, dependents: list[bool], verdict: Verdict) -> None:
    meta = ObjectMeta(uid="owner", finalizers=[finalizer])
    metas = [ObjectMeta(ownerReferences=[OwnerReference(uid="owner", blockOwnerDeletion=b)]) for b in dependents]
    assert decide_owner(meta, metas) == Keep()
    meta.deletionTimestamp.seconds = 1
    assert decide_owner(meta, metas) == verdict


def test_finished_pods_beyond_the_limit_go_oldest_first() -> None:
    pods = [pod(f"p{i}", phase="Succeeded" if i % 2 else "Failed", created_s=10 - i) for i in range(4)]
    pods.append(pod("running", created_s=0))
    assert [p.metadata.name for p in finished_surplus(pods, limit=2)] == ["p3", "p2"]
    assert finished_surplus(pods, limit=4) == []


def test_events_go_an_hour_after_they_last_happened() -> None:
    old, repeated = Event(), Event()
    old.metadata.creationTimestamp.seconds = repeated.metadata.creationTimestamp.seconds = 1_000
    repeated.lastTimestamp.seconds = 2_000
    assert expired_events([old, repeated], now_s=4_600) == [old]
    assert expired_events([old, repeated], now_s=4_599) == []
