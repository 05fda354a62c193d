"""What is only in the way: pods of nodes that are gone, finished pods beyond a limit, old Events. Pure.

Ages are handed in as numbers; nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from controlplane.client.objects import pod_is_finished
from controlplane.pb.k8s.core_v1_pb2 import Event, Pod

__all__ = [
    "EVENT_TTL_S",
    "FINISHED_PODS_MAX",
    "NODE_GONE_QUARANTINE_S",
    "expired_events",
    "finished_surplus",
    "orphaned_pods",
]

#: Finished pods kept for people to look at, over the whole cluster.
FINISHED_PODS_MAX = 1_000
#: How long a node must be gone before its pods are: a node that is renamed or re-registers is not mourned at once.
NODE_GONE_QUARANTINE_S = 5.0
#: How long an Event is kept after it was last seen (kube-apiserver's --event-ttl).
EVENT_TTL_S = 3_600


def orphaned_pods(pods: Iterable[Pod], nodes: Collection[str], gone_for_s: Callable[[str], float]) -> list[Pod]:
    """Pods bound to a node that has been gone for NODE_GONE_QUARANTINE_S."""
    return [
        pod
        for pod in pods
        if pod.spec.nodeName
        and pod.spec.nodeName not in nodes
        and gone_for_s(pod.spec.nodeName) >= NODE_GONE_QUARANTINE_S
    ]


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
