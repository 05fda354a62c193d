"""The scheduling queue: order, waiting, waking. In manual time."""

from __future__ import annotations

from controlplane.base.clock import ManualClock
from controlplane.base.rand import SeededRand
from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.scheduler.plan import Candidate
from controlplane.scheduler.queue import UNSCHEDULABLE_RETRY_S, SchedulingQueue
from tests.unit.scheduler.objects import pod


def queue_of(*pods: Pod) -> tuple[SchedulingQueue, ManualClock]:
    clock = ManualClock()
    made = SchedulingQueue(clock, SeededRand(1))
    for p in pods:
        made.add(Candidate.of(p))
    return made, clock


def take(queue: SchedulingQueue, limit: int = 10) -> list[str]:
    return [q.candidate.pod.metadata.name for q in queue.take(limit)]


def test_priority_goes_first_then_age_then_arrival() -> None:
    old = pod("old")
    old.metadata.creationTimestamp.seconds = 1
    young = pod("young")
    young.metadata.creationTimestamp.seconds = 2
    queue, _ = queue_of(young, pod("first"), pod("second"), old, pod("vip", priority=10))
    assert take(queue) == ["vip", "first", "second", "old", "young"]


def test_a_pod_in_flight_is_not_handed_out_again() -> None:
    queue, _ = queue_of(pod("a"))
    assert take(queue) == ["a"]
    queue.add(Candidate.of(pod("a")))
    assert take(queue) == []


def test_an_unschedulable_pod_waits_for_a_change_of_the_cluster() -> None:
    queue, _ = queue_of(pod("a"))
    take(queue)
    queue.put_back_unschedulable("uid-a")
    queue.flush()
    assert take(queue) == []
    queue.stir("NodeAdd")
    assert take(queue) == ["a"]


def test_an_unschedulable_pod_is_tried_again_after_a_while() -> None:
    queue, clock = queue_of(pod("a"))
    take(queue)
    queue.put_back_unschedulable("uid-a")
    assert queue.flush() == UNSCHEDULABLE_RETRY_S
    clock.advance(UNSCHEDULABLE_RETRY_S)
    queue.flush()
    assert take(queue) == ["a"]


def test_a_change_while_a_pod_is_tried_is_not_missed() -> None:
    queue, clock = queue_of(pod("a"))
    take(queue)
    queue.stir("NodeAdd")
    queue.put_back_unschedulable("uid-a")
    clock.advance(1)
    queue.flush()
    assert take(queue) == ["a"]


def test_back_off_grows_with_each_failure_up_to_a_bound() -> None:
    queue, clock = queue_of(pod("a"))
    waits: list[float] = []
    for _ in range(14):
        assert take(queue) == ["a"]
        queue.put_back_failed("uid-a")
        due = queue.flush()
        assert due is not None
        waits.append(due)
        clock.advance(due)
        queue.flush()
    assert waits[0] <= 0.1
    assert waits[3] > waits[0]
    assert 5.0 <= max(waits) <= 10.0


def test_a_pod_that_changed_in_what_it_asks_for_is_tried_anew_and_one_that_did_not_keeps_waiting() -> None:
    queue, _ = queue_of(pod("a", cpu="4"))
    take(queue)
    queue.put_back_unschedulable("uid-a")
    same = pod("a", cpu="4")
    same.metadata.resourceVersion = "7"
    queue.add(Candidate.of(same))
    assert take(queue) == []
    queue.add(Candidate.of(pod("a", cpu="1")))
    assert take(queue) == ["a"]


def test_a_removed_pod_is_forgotten_wherever_it_waits() -> None:
    queue, clock = queue_of(pod("a"), pod("b"), pod("c"))
    queue.remove("uid-a")
    assert take(queue) == ["b", "c"]
    queue.put_back_failed("uid-b")
    queue.remove("uid-b")
    queue.remove("uid-c")
    queue.put_back_failed("uid-c")
    clock.advance(60)
    assert queue.flush() is None
    assert take(queue) == []


def test_a_new_term_tries_what_the_old_one_had_in_flight() -> None:
    queue, _ = queue_of(pod("a"))
    take(queue)
    queue.put_back_now()
    assert take(queue) == ["a"]
