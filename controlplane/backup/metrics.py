"""Metrics of backups: is the archive behind, when was the last snapshot saved, what failed."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

__all__ = [
    "ARCHIVED_BYTES",
    "ARCHIVED_ENTRIES",
    "ARCHIVED_INDEX",
    "ARCHIVE_FAILURES",
    "ARCHIVE_GAPS",
    "ARCHIVE_LAG_S",
    "SNAPSHOT_BYTES",
    "SNAPSHOT_FAILURES",
    "SNAPSHOT_LAST_SUCCESS",
    "SNAPSHOT_SECONDS",
]

ARCHIVE_LAG_S = Gauge(
    "quarterdeck_archive_lag_seconds",
    "As leader: age of the oldest applied log entry that is not archived; what losing every replica now would lose.",
)
ARCHIVED_INDEX = Gauge("quarterdeck_archive_index", "As leader: the last log entry that is archived.")
ARCHIVED_ENTRIES = Counter("quarterdeck_archive_entries_total", "Log entries archived by this process.")
ARCHIVED_BYTES = Counter("quarterdeck_archive_bytes_total", "Bytes of their batches, before compression.")
ARCHIVE_FAILURES = Counter("quarterdeck_archive_failures_total", "Times that the archive refused a segment.")
ARCHIVE_GAPS = Counter(
    "quarterdeck_archive_gaps_total", "Times that the log no longer held what was to be archived: states are missing."
)
SNAPSHOT_LAST_SUCCESS = Gauge(
    "quarterdeck_backup_last_success_timestamp_seconds",
    "When a snapshot of this cluster was last saved, or seen to be saved, seconds since 1970; 0: not yet.",
)
SNAPSHOT_BYTES = Gauge("quarterdeck_backup_last_bytes", "Size of the last snapshot that this process saved.")
SNAPSHOT_SECONDS = Gauge("quarterdeck_backup_last_duration_seconds", "How long saving it took.")
SNAPSHOT_FAILURES = Counter("quarterdeck_backup_failures_total", "Scheduled snapshots that could not be saved.")
