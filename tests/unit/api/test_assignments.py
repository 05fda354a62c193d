"""AssignmentLog: an agent is told everything, in an order that never takes back what is newer."""

from __future__ import annotations

from controlplane.api.assignments import ASSIGNMENTS_PODS_MAX, AssignmentLog
from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.pb.quarterdeck.v1 import node_pb2


def pod(name: str, version: int, *, image: str = "host", phase: str = "", deleting: bool = False) -> Pod:
    p = Pod()
    p.metadata.name = name
    p.metadata.uid = f"uid-{name}"
    p.metadata.resourceVersion = str(version)
    p.spec.containers.add(name="main", image=image)
    if phase:
        p.status.phase = phase
    if deleting:
        p.metadata.deletionTimestamp.seconds = 1
    return p


def told(message: node_pb2.Assignments | None) -> tuple[list[str], list[str]]:
    """Names upserted (with versions) and uids removed."""
    assert message is not None
    upserts = [f"{p.metadata.name}@{p.metadata.resourceVersion}" for p in message.upserts]
    return upserts, list(message.removed_uids)


def started(*pods: Pod, revision: int = 100) -> AssignmentLog:
    log = AssignmentLog()
    log.start(pods, revision)
    return log


def test_the_full_list_is_told_as_read() -> None:
    message = AssignmentLog().start([pod("a", 5)], 100)
    assert (message.full, message.revision, told(message)) == (True, 100, (["a@5"], []))


def test_nothing_is_told_before_the_full_list() -> None:
    log = AssignmentLog()
    assert not log.changed(None, pod("a", 5))
    assert log.take() is None


def test_a_cache_behind_the_list_takes_nothing_back() -> None:
    log = started(pod("a", 50))
    assert not log.changed(None, pod("a", 40))
    assert not log.changed(pod("a", 40), pod("a", 45, image="older"))
    assert not log.changed(None, pod("gone-before-the-list", 60))
    assert log.take() is None


def test_changes_after_the_list_are_told_newest_state_only() -> None:
    log = started(pod("a", 50))
    assert log.changed(pod("a", 50), pod("a", 110, image="x"))
    assert log.changed(pod("a", 110, image="x"), pod("a", 111, image="y"))
    assert log.changed(None, pod("b", 112))
    message = log.take()
    assert told(message) == (["a@111", "b@112"], [])
    assert message is not None
    assert (message.full, message.revision) == (False, 112)
    assert log.take() is None


def test_pods_added_out_of_order_by_a_list_of_the_cache_are_all_told() -> None:
    log = started()
    log.changed(None, pod("b", 120))
    assert told(log.take()) == (["b@120"], [])
    log.changed(None, pod("a", 110))
    assert told(log.take()) == (["a@110"], [])


def test_a_status_is_no_news_but_a_deletion_stamp_a_label_or_the_spec_is() -> None:
    log = started(pod("a", 50))
    assert not log.changed(pod("a", 50), pod("a", 110, phase="Running"))
    assert log.take() is None
    assert log.changed(pod("a", 110, phase="Running"), pod("a", 111, phase="Running", deleting=True))
    labelled = pod("a", 112, phase="Running", deleting=True)
    labelled.metadata.labels["x"] = "y"
    assert log.changed(pod("a", 111, phase="Running", deleting=True), labelled)
    assert told(log.take()) == (["a@112"], [])


def test_a_status_on_top_of_untold_news_is_told_with_it() -> None:
    log = started(pod("a", 50))
    log.changed(pod("a", 50), pod("a", 110, deleting=True))
    log.changed(pod("a", 110, deleting=True), pod("a", 111, deleting=True, phase="Running"))
    assert told(log.take()) == (["a@111"], [])


def test_a_pod_that_is_gone_is_removed_once() -> None:
    log = started(pod("a", 50))
    assert log.changed(pod("a", 50), None)
    assert not log.changed(pod("a", 50), None)
    assert told(log.take()) == ([], ["uid-a"])


def test_a_pod_that_came_and_went_untold_is_removed_all_the_same() -> None:
    """The agent may know it from another replica."""
    log = started()
    log.changed(None, pod("a", 110))
    log.changed(pod("a", 110), None)
    assert told(log.take()) == ([], ["uid-a"])


def test_what_happened_between_read_and_start_is_not_lost() -> None:
    log = AssignmentLog()
    log.changed(None, pod("new", 105))
    log.changed(pod("gone", 60), None)
    log.start([pod("gone", 60), pod("a", 50)], 100)
    assert told(log.take()) == (["new@105"], ["uid-gone"])


def test_messages_are_bounded() -> None:
    log = started()
    for i in range(ASSIGNMENTS_PODS_MAX + 1):
        log.changed(None, pod(f"p{i}", 200 + i))
    sizes = []
    while (message := log.take()) is not None:
        sizes.append(len(message.upserts))
    assert sizes == [ASSIGNMENTS_PODS_MAX, 1]
