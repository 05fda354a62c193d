"""Metrics of the etcd API, under etcd's own names and types, so that etcd's dashboards and alerts work unchanged.

Counters count what this replica served. Gauges of the store and of Raft are set by :class:`StateMetrics`, which reads
both when the metrics port is scraped, so that no write pays for them.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge

__all__ = [
    "DELETE",
    "LEASE_GRANTED",
    "LEASE_RENEWED",
    "LEASE_REVOKED",
    "PROPOSALS_FAILED",
    "PUT",
    "RANGE",
    "TXN",
    "WATCH_EVENTS",
    "WATCH_STREAMS",
]

PUT: Final = Counter("etcd_mvcc_put_total", "Put requests served by this member.")
RANGE: Final = Counter("etcd_mvcc_range_total", "Range requests served by this member.")
DELETE: Final = Counter("etcd_mvcc_delete_total", "DeleteRange requests served by this member.")
TXN: Final = Counter("etcd_mvcc_txn_total", "Transactions served by this member.")

LEASE_GRANTED: Final = Counter("etcd_debugging_lease_granted_total", "Leases granted through this member.")
LEASE_REVOKED: Final = Counter("etcd_debugging_lease_revoked_total", "Leases revoked through this member.")
LEASE_RENEWED: Final = Counter("etcd_debugging_lease_renewed_total", "Lease renewals accepted while leading.")

PROPOSALS_FAILED: Final = Counter(
    "etcd_server_proposals_failed_total", "Writes that were not seen to be applied, by this member."
)

WATCH_STREAMS: Final = Gauge("etcd_debugging_mvcc_watch_stream_total", "Watch streams open on this member.")
WATCH_EVENTS: Final = Counter("etcd_debugging_mvcc_events_total", "Events sent to watchers by this member.")
