"""Metrics of the replica's Raft part, under the names etcd's dashboards and alerts look for: counters and durations.

What is a reading of the present state (leader, indexes, pending writes) is read at the scrape by ``etcd.metrics``.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "DISK_FAILED",
    "DISK_FAILURES",
    "HEARTBEAT_SEND_FAILURES",
    "INBOX_DROPPED",
    "LOG_BYTES",
    "PROPOSALS_FAILED",
    "READ_INDEXES_FAILED",
    "SLOW_APPLY",
    "SLOW_READ_INDEXES",
    "SNAPSHOTS_INSTALLED",
    "SNAPSHOT_SAVE_SECONDS",
    "TERM",
    "TURN_WRITES",
    "WAL_FSYNC_SECONDS",
    "WAL_TORN_TAILS",
    "WAL_TRUNCATED_ENTRIES",
]

#: etcd's buckets: 1 ms doubling to 8 s.
_DISK_BUCKETS_S = tuple(0.001 * 2**n for n in range(14))

WAL_FSYNC_SECONDS = Histogram(
    "etcd_disk_wal_fsync_duration_seconds", "One write and sync of the log, seconds.", buckets=_DISK_BUCKETS_S
)
WAL_TORN_TAILS = Counter("quarterdeck_wal_torn_tails_total", "Torn log tails cut at start after a crash.")
WAL_TRUNCATED_ENTRIES = Counter(
    "quarterdeck_raft_log_truncated_entries_total", "Uncommitted log entries given up because they conflicted."
)
DISK_FAILURES = Counter("quarterdeck_disk_failures_total", "Times this replica was closed because its disk refused.")
DISK_FAILED = Gauge("quarterdeck_disk_failed", "1 while this replica is closed because its disk refuses.")
LOG_BYTES = Gauge("quarterdeck_raft_log_bytes", "Bytes of log entries held in memory.")
SNAPSHOT_SAVE_SECONDS = Histogram(
    "etcd_snap_db_save_total_duration_seconds", "Cutting and saving one snapshot, seconds.", buckets=_DISK_BUCKETS_S
)

# -- consensus ----------------------------------------------------------------------------------------------------

PROPOSALS_FAILED = Counter(
    "etcd_server_proposals_failed_total", "Writes that ended without being applied here in time."
)
HEARTBEAT_SEND_FAILURES = Counter(
    "etcd_server_heartbeat_send_failures_total", "Leader's messages to a peer that could not be sent."
)
INBOX_DROPPED = Counter(
    "quarterdeck_raft_inbox_dropped_total", "Peers' messages dropped because too many waited for a turn."
)
APPLY_SECONDS = Histogram(
    "etcd_disk_backend_commit_duration_seconds", "Bringing committed entries into the state, seconds a turn.",
    buckets=_DISK_BUCKETS_S,
)  # fmt: skip
SLOW_APPLY = Counter("etcd_server_slow_apply_total", "Turns whose step took longer than 100 ms.")
SLOW_READ_INDEXES = Counter("etcd_server_slow_read_indexes_total", "Linearizable reads that took longer than a second.")
READ_INDEXES_FAILED = Counter("etcd_server_read_indexes_failed_total", "Linearizable reads that failed.")
TURN_WRITES = Histogram(
    "quarterdeck_raft_entry_writes", "Writes in one log entry.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
TERM = Gauge("quarterdeck_raft_term", "Raft term.")
SNAPSHOTS_INSTALLED = Counter("quarterdeck_raft_snapshots_installed_total", "Snapshots taken over from the leader.")
