"""Metrics of the replica's Raft part, under the names etcd's dashboards and alerts look for."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

#: etcd's buckets: 1 ms doubling to 8 s.
_DISK_BUCKETS_S = tuple(0.001 * 2**n for n in range(14))

WAL_FSYNC_SECONDS = Histogram(
    "etcd_disk_wal_fsync_duration_seconds", "One write and sync of the log, seconds.", buckets=_DISK_BUCKETS_S
)
WAL_TORN_TAILS = Counter("quarterdeck_wal_torn_tails_total", "Torn log tails cut at start after a crash.")
WAL_TRUNCATED_ENTRIES = Counter(
    "quarterdeck_raft_log_truncated_entries_total", "Uncommitted log entries given up because they conflicted."
)
LOG_BYTES = Gauge("quarterdeck_raft_log_bytes", "Bytes of log entries held in memory.")
SNAPSHOT_SAVE_SECONDS = Histogram(
    "etcd_snap_db_save_total_duration_seconds", "Cutting and saving one snapshot, seconds.", buckets=_DISK_BUCKETS_S
)
