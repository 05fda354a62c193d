"""What the agent does about pods, as a function of what is assigned and what is here."""

from __future__ import annotations

from controlplane.pb.k8s.core_v1_pb2 import Pod
from node.reconcile import REMOVED_GRACE_S, Desired, Forget, Observed, Start, Stop, Update, reconcile
from tests.unit.node.support import make_pod


def desired(*pods: Pod, complete: bool = True) -> Desired:
    return Desired({pod.metadata.uid: pod for pod in pods}, complete)


def deleted(pod: Pod, grace_s: int) -> Pod:
    copy = Pod()
    copy.CopyFrom(pod)
    copy.metadata.deletionTimestamp.seconds = 1
    copy.metadata.deletionGracePeriodSeconds = grace_s
    return copy


A, B = make_pod("a"), make_pod("b")


def test_assigned_pods_that_are_not_here_are_started() -> None:
    assert reconcile(desired(B, A), {}) == [Start(A), Start(B)]


def test_nothing_is_stopped_before_a_full_list_came() -> None:
    assert reconcile(desired(complete=False), {"uid-a": Observed(A)}) == []


def test_a_pod_that_a_full_list_lacks_is_stopped_then_forgotten() -> None:
    assert reconcile(desired(), {"uid-a": Observed(A)}) == [Stop("uid-a", REMOVED_GRACE_S, removed=True)]
    assert reconcile(desired(), {"uid-a": Observed(A, stopping=True, grace_s=REMOVED_GRACE_S)}) == []
    assert reconcile(desired(), {"uid-a": Observed(A, stopping=True, stopped=True)}) == [Forget("uid-a")]


def test_a_deleted_pod_is_stopped_with_its_grace_and_hurried_when_the_grace_shrinks() -> None:
    gone = deleted(A, 30)
    assert reconcile(desired(gone), {"uid-a": Observed(A)}) == [Update(gone), Stop("uid-a", 30.0, removed=False)]
    assert reconcile(desired(gone), {"uid-a": Observed(gone, stopping=True, grace_s=30.0)}) == []
    sooner = deleted(A, 0)
    assert reconcile(desired(sooner), {"uid-a": Observed(sooner, stopping=True, grace_s=30.0)}) == [
        Stop("uid-a", 0.0, removed=False)
    ]


def test_a_stopped_pod_whose_object_is_still_there_waits_for_the_object_to_go() -> None:
    gone = deleted(A, 5)
    assert reconcile(desired(gone), {"uid-a": Observed(gone, stopping=True, grace_s=5.0, stopped=True)}) == []


def test_a_finished_pod_is_not_run_again_by_a_node_that_forgot_it() -> None:
    finished = make_pod("a")
    finished.status.phase = "Succeeded"
    assert reconcile(desired(finished), {}) == []
    # Unless it is to be removed: somebody must say that nothing of it is left.
    assert reconcile(desired(deleted(finished, 5)), {}) == [Start(deleted(finished, 5))]


def test_a_full_list_replaces_and_a_delta_adds() -> None:
    state = Desired()
    state.apply([A], [], full=True)
    state.apply([B], [], full=False)
    assert set(state.pods) == {"uid-a", "uid-b"}
    state.apply([], ["uid-a"], full=False)
    assert set(state.pods) == {"uid-b"}
    state.apply([A], [], full=True)
    assert set(state.pods) == {"uid-a"}
