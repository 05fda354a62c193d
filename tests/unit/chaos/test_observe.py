"""What counts as a restart, and who counts as leading."""

from __future__ import annotations

from dataclasses import replace

from chaos.observe import PodChanges, PodView, compare, view
from controlplane.client.operator_client import leader_of
from controlplane.pb.k8s.core_v1_pb2 import ContainerStatus, Pod, PodCondition
from controlplane.pb.quarterdeck.v1.operator_pb2 import StatusResponse

A = PodView("uid-a", "web-a", "node-1", 0, ready=True, deleting=False)
B = PodView("uid-b", "web-b", "node-2", 3, ready=True, deleting=False)


def test_a_pod_object_is_seen_with_all_its_containers_restarts() -> None:
    pod = Pod()
    pod.metadata.uid, pod.metadata.name, pod.spec.nodeName = "u", "web-1", "node-1"
    pod.status.containerStatuses.extend([ContainerStatus(restartCount=1), ContainerStatus(restartCount=2)])
    pod.status.conditions.append(PodCondition(type="Ready", status="True"))
    names = (("", 1), ("", 2))
    assert view(pod) == PodView("u", "web-1", "node-1", 3, ready=True, deleting=False, containers=names)
    pod.metadata.deletionTimestamp.seconds = 1
    assert view(pod).deleting


def test_pods_that_stay_are_no_change_and_new_ones_do_not_count() -> None:
    new = replace(A, uid="uid-c", restarts=7)
    assert compare([A, B], [B, A, new]) == PodChanges(watched=2, restarted=0, replaced=0)


def test_a_container_started_again_is_a_restart() -> None:
    assert compare([A, B], [A, replace(B, restarts=5)]) == PodChanges(watched=2, restarted=2, replaced=0)


def test_of_a_container_that_was_killed_so_many_restarts_are_expected_and_no_other() -> None:
    pair = replace(A, containers=(("main", 0), ("beside", 4)), restarts=4)
    killed = {("web-a", "beside"): 2}

    def after(main: int, beside: int) -> PodChanges:
        return compare(
            [pair],
            [replace(pair, containers=(("main", main), ("beside", beside)), restarts=main + beside)],
            killed=killed,
        )

    assert after(0, 6) == PodChanges(watched=1, restarted=0, replaced=0, expected=2, seen=2)
    assert after(0, 5) == PodChanges(watched=1, restarted=0, replaced=0, expected=2, seen=1)
    assert after(0, 7) == PodChanges(watched=1, restarted=1, replaced=0, expected=2, seen=2), "once more than killed"
    assert after(1, 6) == PodChanges(watched=1, restarted=1, replaced=0, expected=2, seen=2), "the other container"
    never = replace(pair, starts_again=False)
    assert compare([never], [never], killed=killed).expected == 0


def test_a_pod_gone_or_going_without_need_is_replaced() -> None:
    assert compare([A, B], [A]).replaced == 1
    assert compare([A, B], [A, replace(B, deleting=True)]).replaced == 1
    assert compare([A, B], [A, replace(B, uid="another, of the same name")]).replaced == 1


def test_pods_of_a_dead_node_and_pods_already_going_are_excused() -> None:
    assert compare([A, B], [A], excused={"uid-b"}) == PodChanges(watched=1, restarted=0, replaced=0)
    assert compare([A, replace(B, deleting=True)], [A]) == PodChanges(watched=1, restarted=0, replaced=0)


def says(leader: str, term: int) -> StatusResponse:
    return StatusResponse(leader=leader, term=term)


def test_the_leader_is_whom_a_majority_of_all_replicas_names_in_the_newest_term() -> None:
    assert leader_of([says("r1", 2), says("r1", 2), says("r1", 2)], 3) == ("r1", 2)
    assert leader_of([says("r2", 3), says("r2", 3), says("r1", 2)], 3) == ("r2", 3)
    assert leader_of([says("r2", 3), says("r1", 2), says("r1", 2)], 3) == (None, 3)
    assert leader_of([says("r1", 2)], 3) == (None, 2)
    assert leader_of([says("", 4), says("", 4), says("", 4)], 3) == (None, 4)
    assert leader_of([], 3) == (None, 0)
