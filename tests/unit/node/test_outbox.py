"""Statuses reach the control plane at least once, newest first to count, however often the session moves."""

from __future__ import annotations

from controlplane.pb.k8s.core_v1_pb2 import PodStatus
from controlplane.pb.quarterdeck.v1.node_pb2 import PodStatusReport
from node.outbox import BATCH_REPORTS_MAX, StatusOutbox


def report(uid: str, phase: str, *, terminated: bool = False) -> PodStatusReport:
    return PodStatusReport(uid=uid, status=PodStatus(phase=phase), terminated=terminated)


def phases(outbox: StatusOutbox) -> list[str]:
    batch = outbox.next_batch()
    return [] if batch is None else [f"{r.uid}={r.status.phase}" for r in batch.reports]


def test_only_the_newest_report_of_a_pod_is_sent() -> None:
    outbox = StatusOutbox()
    outbox.put(report("a", "Pending"))
    outbox.put(report("a", "Running"))
    assert phases(outbox) == ["a=Running"]
    assert outbox.put(report("a", "Running")) is False


def test_one_batch_is_in_flight_at_a_time() -> None:
    outbox = StatusOutbox()
    outbox.put(report("a", "Pending"))
    assert phases(outbox) == ["a=Pending"]
    outbox.put(report("a", "Running"))
    assert phases(outbox) == []
    assert outbox.ack(1)
    assert phases(outbox) == ["a=Running"]


def test_a_new_session_is_told_everything_again_even_what_was_stored() -> None:
    outbox = StatusOutbox()
    outbox.put(report("a", "Running"))
    outbox.next_batch()
    outbox.ack(1)
    assert outbox.settled
    outbox.resend_all()
    assert phases(outbox) == ["a=Running"]


def test_an_answer_to_an_older_batch_counts_for_nothing() -> None:
    outbox = StatusOutbox()
    outbox.put(report("a", "Running"))
    outbox.next_batch()
    outbox.resend_all()
    outbox.next_batch()
    assert not outbox.ack(1)
    assert not outbox.settled
    assert outbox.ack(2)
    assert outbox.settled


def test_a_terminated_pod_is_said_until_stored_and_then_no_more() -> None:
    outbox = StatusOutbox()
    outbox.put(report("a", "Failed", terminated=True))
    outbox.next_batch()
    outbox.resend_all()
    assert phases(outbox) == ["a=Failed"]
    outbox.ack(2)
    outbox.resend_all()
    assert outbox.next_batch() is None


def test_a_batch_is_bounded() -> None:
    outbox = StatusOutbox()
    for number in range(BATCH_REPORTS_MAX + 1):
        outbox.put(report(f"{number}", "Running"))
    first = outbox.next_batch()
    assert first is not None
    assert len(first.reports) == BATCH_REPORTS_MAX
    outbox.ack(first.sequence)
    assert phases(outbox) == [f"{BATCH_REPORTS_MAX}=Running"]
