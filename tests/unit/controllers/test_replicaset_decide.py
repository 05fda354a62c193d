"""What a ReplicaSet needs done: whose pods are whose, how many, which go first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.base.clock import ManualClock
from controlplane.controllers.expectations import EXPECTATION_TIMEOUT_S, Expectations
from controlplane.controllers.replicaset_decide import (
    BURST_REPLICAS,
    claim_pods,
    decide_scale,
    decide_status,
    deletion_order,
    new_pod,
    slow_start_batches,
)
from controlplane.pb.k8s.core_v1_pb2 import Pod
from tests.unit.controllers.objects import pod, replica_set


def everywhere(name: str) -> bool:
    return name != "suspect"


def names(pods: tuple[Pod, ...] | list[Pod]) -> list[str]:
    return [p.metadata.name for p in pods]


def test_pods_are_owned_adopted_released_or_left_alone() -> None:
    claim = claim_pods(
        replica_set(),
        [
            pod("mine", owner_uid="uid-rs"),
            pod("strayed", owner_uid="uid-rs", labels={"app": "other"}),
            pod("orphan"),
            pod("foreign", owner_uid="uid-else"),
            pod("unrelated", labels={"app": "other"}),
            pod("orphan-going", deleting=True),
            pod("orphan-done", phase="Succeeded"),
        ],
    )
    assert (names(claim.owned), names(claim.adopt), names(claim.release)) == (["mine"], ["orphan"], ["strayed"])


def test_a_set_being_deleted_takes_and_lets_go_of_nothing() -> None:
    rs = replica_set()
    rs.metadata.deletionTimestamp.seconds = 1
    claim = claim_pods(rs, [pod("orphan"), pod("strayed", owner_uid="uid-rs", labels={})])
    assert (claim.adopt, claim.release) == ((), ())


@pytest.mark.parametrize(
    ("wanted", "pods", "create", "delete"),
    [
        pytest.param(3, [pod("a")], 2, 0, id="missing"),
        pytest.param(1, [pod("a"), pod("b")], 0, 1, id="surplus"),
        pytest.param(1, [pod("a")], 0, 0, id="right"),
        pytest.param(1, [pod("a", phase="Failed")], 1, 0, id="a failed pod is replaced"),
        pytest.param(1, [pod("a", deleting=True)], 1, 0, id="a terminating pod is replaced at once"),
        pytest.param(10_000, [], BURST_REPLICAS, 0, id="a burst has a bound"),
    ],
)
def test_the_number_of_active_pods_is_brought_to_what_is_wanted(
    wanted: int, pods: list[Pod], create: int, delete: int
) -> None:
    scale = decide_scale(replica_set(wanted), pods, everywhere)
    assert (scale.create, len(scale.delete)) == (create, delete)


def test_what_costs_least_goes_first() -> None:
    cheap = pod("6-cheap")
    cheap.metadata.annotations["controller.kubernetes.io/pod-deletion-cost"] = "-5"
    restarted = pod("9-restarted", node="n4")
    restarted.status.containerStatuses.add(restartCount=3)
    ordered = [
        pod("1-unassigned", node="", phase="Pending", ready=False),
        pod("2-pending", phase="Pending", ready=False),
        pod("3-suspect-not-ready", node="suspect", ready=False),
        pod("4-suspect", node="suspect"),
        pod("5-not-ready", ready=False),
        cheap,
        pod("7-crowded", node="n2", created_s=2),
        pod("8-crowded-older", node="n2", created_s=1),
        restarted,
        pod("A-young", node="n5", created_s=9),
        pod("B-old", node="n6", created_s=1),
    ]
    assert names(deletion_order(ordered[::-1], everywhere)) == names(ordered)


@given(order=st.permutations(range(8)))
def test_the_order_of_deletion_does_not_depend_on_the_order_of_the_cache(order: list[int]) -> None:
    pods = [pod(f"p{i}", node=f"n{i % 3}", ready=i % 2 == 0, created_s=i % 4) for i in range(8)]
    assert names(deletion_order([pods[i] for i in order], everywhere)) == names(deletion_order(pods, everywhere))


def test_slow_start_doubles() -> None:
    assert slow_start_batches(10) == [1, 2, 4, 3]
    assert slow_start_batches(0) == []


def test_status_counts_what_is_there() -> None:
    rs = replica_set()
    rs.spec.minReadySeconds = 10
    pods = [
        pod("available"),
        pod("young"),
        pod("not-ready", ready=False),
        pod("going", deleting=True),
        pod("done", phase="Succeeded"),
        pod("relabelled", labels={}),
    ]
    plan = decide_status(rs, pods, lambda p: 4.0 if p.metadata.name == "young" else 60.0)
    status = plan.status
    assert (status.replicas, status.readyReplicas, status.availableReplicas) == (4, 3, 2)
    assert (status.fullyLabeledReplicas, status.terminatingReplicas) == (3, 1)
    assert plan.recheck_s == pytest.approx(6.0)


def test_a_failure_is_a_condition_that_goes_when_it_is_over() -> None:
    rs = replica_set()
    failed = decide_status(rs, [], lambda p: 0.0, failure="quota", now_s=5).status
    assert [(c.type, c.status, c.message) for c in failed.conditions] == [("ReplicaFailure", "True", "quota")]
    rs.status.CopyFrom(failed)
    again = decide_status(rs, [], lambda p: 0.0, failure="quota", now_s=9).status
    assert again.conditions[0].lastTransitionTime.seconds == 5
    assert not decide_status(rs, [], lambda p: 0.0).status.conditions


def test_a_new_pod_is_the_template_owned_by_the_set() -> None:
    made = new_pod(replica_set(), "rs-abc")
    assert (made.metadata.name, made.metadata.labels["app"]) == ("rs-abc", "web")
    owner = made.metadata.ownerReferences[0]
    assert (owner.kind, owner.uid, owner.controller, owner.blockOwnerDeletion) == ("ReplicaSet", "uid-rs", True, True)


def test_expectations_hold_until_seen_failed_or_too_old() -> None:
    clock = ManualClock()
    expected = Expectations(clock)
    expected.expect_creation("k", "a")
    expected.expect_deletion("k", "b")
    assert expected.wait_s("k") == EXPECTATION_TIMEOUT_S
    expected.creation_settled("k", "a")
    expected.creation_settled("k", "never expected")
    assert expected.wait_s("k") is not None
    assert expected.wait_s("other") is None
    expected.deletion_settled("k", "b")
    assert expected.wait_s("k") is None
    expected.expect_creation("k", "lost")
    clock.advance(EXPECTATION_TIMEOUT_S)
    assert expected.wait_s("k") is None
