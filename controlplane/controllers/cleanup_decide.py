"""What is only in the way: finished pods beyond a limit, old Events. Pure.

The present time is handed in; nothing here reads a clock. Pods of nodes that are gone are node lifecycle's.
"""

from __future__ import annotations

from collections.abc import Iterable

from controlplane.client.objects import pod_is_finished
from controlplane.pb.k8s.core_v1_pb2 import Event, Pod

__all__ = [
    "EVENT_TTL_S",
    "FINISHED_PODS_MAX",
    "expired_events",
    "finished_surplus",
]

#: Finished pods kept for people to look at, over the whole cluster.
FINISHED_PODS_MAX = 1_000
#: How long an Event is kept after it was last seen (kube-apiserver's --event-ttl).
EVENT_TTL_S = 3_600


def finished_surplus(pods: Iterable[Pod], limit: int = FINISHED_PODS_MAX) -> list[Pod]:
    """The oldest finished pods beyond the limit."""
    finished = [p for p in pods if pod_is_finished(p) and not p.metadata.HasField("deletionTimestamp")]
    finished.sort(key=lambda p: (p.metadata.creationTimestamp.seconds, p.metadata.namespace, p.metadata.name))
    return finished[: max(0, len(finished) - limit)]


def last_seen_s(event: Event) -> int:
    """When the Event last happened, seconds since 1970."""
    return max(
        event.lastTimestamp.seconds,
        event.eventTime.seconds,
        event.series.lastObservedTime.seconds,
        event.metadata.creationTimestamp.seconds,
    )


def expired_events(events: Iterable[Event], now_s: int, ttl_s: int = EVENT_TTL_S) -> list[Event]:
    """Events last seen at least ``ttl_s`` ago."""
    return [e for e in events if now_s - last_seen_s(e) >= ttl_s]
