"""Metrics of the links between replicas, under etcd's names. ``To`` and ``From`` are member ids in hex, as in etcd."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import Counter, Histogram

__all__ = [
    "RECEIVED_BYTES",
    "REFUSED",
    "ROUND_TRIP_SECONDS",
    "SENT_BYTES",
    "SENT_FAILURES",
    "PeerCounts",
]

SENT_BYTES = Counter("etcd_network_peer_sent_bytes_total", "Bytes sent to peers.", ["To"])
RECEIVED_BYTES = Counter("etcd_network_peer_received_bytes_total", "Bytes received from peers.", ["From"])
SENT_FAILURES = Counter(
    "etcd_network_peer_sent_failures_total", "Frames not sent: no link, or its queue is full.", ["To"]
)
ROUND_TRIP_SECONDS = Histogram(
    "etcd_network_peer_round_trip_time_seconds",
    "Round trip of a ping on a peer link, seconds.",
    ["To"],
    buckets=tuple(0.0001 * 2**n for n in range(16)),
)
REFUSED = Counter(
    "quarterdeck_peer_connections_refused_total", "Connections to the peer port that were refused.", ["reason"]
)


@dataclass(frozen=True, slots=True)
class PeerCounts:
    """The children of one peer that every frame moves, looked up once: labels cost more than the counting."""

    sent: Counter
    received: Counter

    @classmethod
    def of(cls, peer_id: int) -> PeerCounts:
        label = f"{peer_id:x}"
        return cls(SENT_BYTES.labels(label), RECEIVED_BYTES.labels(label))
