"""Metrics of clients, under client-go's names where it has one (dashboards expect them)."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "EVENTS_DROPPED",
    "INFORMER_RELISTS",
    "INFORMER_WATCHES",
    "QUEUE_ADDS",
    "QUEUE_DEPTH",
    "QUEUE_LONGEST",
    "QUEUE_RETRIES",
    "QUEUE_UNFINISHED",
    "QUEUE_WAIT",
    "QUEUE_WORK",
    "REQUESTS",
    "REQUEST_SECONDS",
]

_QUEUE_BUCKETS = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

REQUESTS = Counter(
    "rest_client_requests_total", "API requests by gRPC code, method and replica.", ["code", "method", "host"]
)
REQUEST_SECONDS = Histogram(
    "rest_client_request_duration_seconds", "Duration of one attempt of an API request.", ["verb", "host"]
)

QUEUE_DEPTH = Gauge("workqueue_depth", "Keys waiting in the queue.", ["name"])
QUEUE_ADDS = Counter("workqueue_adds_total", "Keys added to the queue.", ["name"])
QUEUE_RETRIES = Counter("workqueue_retries_total", "Keys put back with back-off.", ["name"])
QUEUE_WAIT = Histogram(
    "workqueue_queue_duration_seconds", "How long a key waits before it is worked.", ["name"], buckets=_QUEUE_BUCKETS
)
QUEUE_WORK = Histogram(
    "workqueue_work_duration_seconds", "How long working a key takes.", ["name"], buckets=_QUEUE_BUCKETS
)
QUEUE_UNFINISHED = Gauge("workqueue_unfinished_work_seconds", "Seconds of work in progress, all workers.", ["name"])
QUEUE_LONGEST = Gauge(
    "workqueue_longest_running_processor_seconds", "Seconds the longest running worker has been at its key.", ["name"]
)

INFORMER_RELISTS = Counter("quarterdeck_informer_lists_total", "Full lists made by informers.", ["resource"])
INFORMER_WATCHES = Counter("quarterdeck_informer_watches_total", "Watches opened by informers.", ["resource"])
EVENTS_DROPPED = Counter("quarterdeck_events_dropped_total", "Events not recorded because too many were waiting.")
