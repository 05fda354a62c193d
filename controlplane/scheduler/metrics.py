"""Metrics of the scheduler, under kube-scheduler's names (dashboards expect them)."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

__all__ = ["ALGORITHM", "ATTEMPTS", "ATTEMPT_DURATION", "INCOMING", "PENDING", "SLI_DURATION"]

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0)

ATTEMPTS = Counter("scheduler_schedule_attempts_total", "Attempts to schedule pods, by result.", ["result", "profile"])
ATTEMPT_DURATION = Histogram(
    "scheduler_scheduling_attempt_duration_seconds",
    "From taking a pod off the queue to its binding, by result.",
    ["result", "profile"],
    buckets=_BUCKETS,
)
ALGORITHM = Histogram(
    "scheduler_scheduling_algorithm_duration_seconds", "Planning of one batch of pods.", buckets=_BUCKETS
)
SLI_DURATION = Histogram(
    "scheduler_pod_scheduling_sli_duration_seconds",
    "From a pod's first appearance in the queue to its binding, by number of attempts.",
    ["attempts"],
    buckets=(*_BUCKETS, 60.0, 300.0),
)
PENDING = Gauge("scheduler_pending_pods", "Pods waiting to be scheduled, by queue.", ["queue"])
INCOMING = Counter(
    "scheduler_queue_incoming_pods_total", "Pods that entered a queue, by queue and cause.", ["queue", "event"]
)
