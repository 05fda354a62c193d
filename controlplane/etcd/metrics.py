"""Metrics of the etcd API, under etcd's own names and types, so that etcd's dashboards and alerts work unchanged.

Counters count what this replica served. What the store and Raft know anyway is read by :class:`StateMetrics` when the
metrics port is scraped, so that no write pays for it. Disk and peer metrics are their owners'.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, UnknownMetricFamily

from controlplane.base.health import CheckOutcomes
from controlplane.raft.types import RaftHandle
from controlplane.store.store import Store

__all__ = [
    "CLIENT_REQUESTS",
    "DEFRAG_SECONDS",
    "DELETE",
    "HEALTH",
    "INTEGRITY_COMPARED",
    "INTEGRITY_DIFFERENCES",
    "LEASE_GRANTED",
    "LEASE_RENEWED",
    "LEASE_REVOKED",
    "PUT",
    "RANGE",
    "SNAPSHOT_SECONDS",
    "TXN",
    "WATCH_EVENTS",
    "WATCH_STREAMS",
    "ClientBytes",
    "StateMetrics",
    "client_version",
]

PUT: Final = Counter("etcd_mvcc_put_total", "Put requests served by this member.")
RANGE: Final = Counter("etcd_mvcc_range_total", "Range requests served by this member.")
DELETE: Final = Counter("etcd_mvcc_delete_total", "DeleteRange requests served by this member.")
TXN: Final = Counter("etcd_mvcc_txn_total", "Transactions served by this member.")

LEASE_GRANTED: Final = Counter("etcd_debugging_lease_granted_total", "Leases granted through this member.")
LEASE_REVOKED: Final = Counter("etcd_debugging_lease_revoked_total", "Leases revoked through this member.")
LEASE_RENEWED: Final = Counter("etcd_debugging_lease_renewed_total", "Lease renewals accepted while leading.")

INTEGRITY_COMPARED: Final = Counter(
    "quarterdeck_integrity_comparisons_total", "State hashes of other members compared with this leader's."
)
INTEGRITY_DIFFERENCES: Final = Counter(
    "quarterdeck_integrity_differences_total", "Comparisons in which members' states at one log entry differed."
)

DEFRAG_SECONDS: Final = Histogram(
    "etcd_disk_backend_defrag_duration_seconds", "Time it took to give memory back on request.",
    buckets=(0.001, 0.01, 0.1, 1, 10, 100),
)  # fmt: skip
SNAPSHOT_SECONDS: Final = Histogram(
    "etcd_disk_backend_snapshot_duration_seconds", "Time it took to make a database file of a snapshot.",
    buckets=(0.01, 0.1, 1, 10, 100, 1_000),
)  # fmt: skip

#: What the health endpoints were answered.
HEALTH: Final = CheckOutcomes("etcd_server")

CLIENT_REQUESTS: Final = Counter(
    "etcd_server_client_requests_total", "Requests by the client's version and by kind, unary or stream.",
    ["type", "client_api_version"],
)  # fmt: skip
#: What clients call themselves is theirs to choose: so many different names are shown.
_CLIENT_VERSIONS_MAX: Final = 32
_client_versions: set[str] = set()

WATCH_EVENTS: Final = Counter("etcd_debugging_mvcc_events_total", "Events sent to watchers by this member.")


def client_version(said: str | None) -> str:
    """The label of a client that said so of its version."""
    version = (said or "unknown")[:32]
    if version not in _client_versions:
        if len(_client_versions) >= _CLIENT_VERSIONS_MAX:
            return "other"
        _client_versions.add(version)
    return version


class _Open:
    """How many of something are open."""

    def __init__(self) -> None:
        self.count = 0

    def inc(self) -> None:
        self.count += 1

    def dec(self) -> None:
        self.count -= 1


#: Watch streams open on this member.
WATCH_STREAMS: Final = _Open()


class ClientBytes:
    """A collector: bytes that the gRPC port has received and sent, if its front counts them."""

    def __init__(self, server: object) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at each scrape."""
        for direction in ("received", "sent"):
            count = getattr(self._server, f"{direction}_bytes", None)
            if count is not None:
                name = f"etcd_network_client_grpc_{direction}_bytes"
                yield CounterMetricFamily(name, f"Bytes {direction} on the client port.", value=count)


class StateMetrics:
    """A collector: the state of one replica at the moment of the scrape.

    Args:
        store, raft: what is read.
        version: the etcd release whose API this is (label ``server_version``).
        quota_bytes: the quota, 0 for none.
    """

    def __init__(self, store: Store, raft: RaftHandle, *, version: str, quota_bytes: int = 0) -> None:
        self._store = store
        self._raft = raft
        self._version = version
        self._quota_bytes = quota_bytes
        self._leader: str | None = None
        self._leader_term = 0
        self._leader_changes = 0
        raft.on_leadership(self._on_leadership)

    def register(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Show these in a registry. ``registry.unregister(self)`` ends it."""
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at each scrape."""
        store, status = self._store, self._raft.status()
        self._note(status.leader, status.term)
        leads = status.leader == status.name
        learner = any(member.learner for member in status.members if member.id == status.member_id)
        for name, text, value in (
            ("etcd_server_has_leader", "1 if this member knows a leader.", status.leader is not None),
            ("etcd_server_is_leader", "1 if this member leads.", leads),
            ("etcd_server_is_learner", "1 if this member does not vote.", learner),
            ("etcd_server_proposals_pending", "Writes waiting on this member.", status.pending),
            ("etcd_mvcc_db_total_size_in_bytes", "Bytes of all retained versions.", store.size_bytes),
            ("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of all retained versions.", store.size_bytes),
            ("etcd_server_quota_backend_bytes", "Size at which writes that add are refused.", self._quota_bytes),
            ("etcd_debugging_mvcc_current_revision", "Revision applied.", store.revision),
            ("etcd_debugging_mvcc_compact_revision", "Revision of the last compaction.", store.compact_revision),
            ("etcd_debugging_auth_revision", "Revision of the auth store.", store.auth.revision),
            ("etcd_debugging_lease_active", "Leases that exist now.", len(store.leases)),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
        for name, text, count in (
            ("etcd_server_proposals_committed", "Log index up to which entries are committed.", status.commit_index),
            ("etcd_server_proposals_applied", "Log index up to which entries are applied.", status.applied_index),
        ):
            yield CounterMetricFamily(name, text, value=count)
        # etcd calls these gauges `_total`, which Prometheus' linter forbids for gauges: so without a type.
        for name, text, count in (
            ("etcd_debugging_mvcc_keys_total", "Keys that exist now.", store.key_count),
            ("etcd_debugging_mvcc_watcher_total", "Watches open on this member.", len(store.watches)),
            ("etcd_debugging_mvcc_slow_watcher_total", "Watches that have something to read.", store.watches.unsynced),
            ("etcd_debugging_mvcc_watch_stream_total", "Watch streams open on this member.", WATCH_STREAMS.count),
        ):
            yield UnknownMetricFamily(name, text, value=float(count))
        changes = CounterMetricFamily("etcd_server_leader_changes_seen_total", "Changes of leader seen by this member.")
        changes.add_metric([], self._leader_changes)
        yield changes
        for name, label, text, shown in (
            ("etcd_server_version", "server_version", "1, labelled with the etcd version of the API.", self._version),
            ("etcd_cluster_version", "cluster_version", "1, labelled with the cluster's version.", self._version[:3]),
            ("etcd_server_id", "server_id", "1, labelled with the member id in hex.", f"{status.member_id:x}"),
        ):
            family = GaugeMetricFamily(name, text, labels=[label])
            family.add_metric([shown], 1.0)
            yield family

    def _on_leadership(self, term: int, leading: bool) -> None:
        status = self._raft.status()
        self._note(status.name if leading else status.leader, term)

    def _note(self, leader: str | None, term: int) -> None:
        if leader is not None and (leader != self._leader or term != self._leader_term):
            if self._leader is not None:
                self._leader_changes += 1
            self._leader, self._leader_term = leader, term
