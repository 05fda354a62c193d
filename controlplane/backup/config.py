"""The settings of a replica's backups: frozen, explicit, checked once at start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlplane.backup.retention import Keep
from controlplane.base.errors import ConfigError

__all__ = ["KEEP", "BackupConfig"]

#: What stays by default: two hours of every quarter, a day of hours, a week of days.
KEEP: Final = Keep(last=8, hourly=24, daily=7)


@dataclass(frozen=True, slots=True)
class BackupConfig:
    """Where and how a replica backs itself up.

    Attributes:
        url: a directory or fsspec URL; replicas may share it.
        interval_ms: what was acknowledged longer ago than this outlives the loss of all replicas. 0: the log is not
            archived, there are only snapshots.
        snapshot_every_s: between two snapshots; 0: none by the clock (the archive saves those that it needs).
        keep: what stays when a snapshot was saved.
        recipients: a file of public keys; everything is encrypted to them. None: nothing is.
    """

    url: str
    interval_ms: int = 1_000
    snapshot_every_s: int = 900
    keep: Keep = KEEP
    recipients: Path | None = None

    def validate(self) -> None:
        """Raises ConfigError, naming the setting."""
        if self.interval_ms and not 100 <= self.interval_ms <= 600_000:
            raise ConfigError(f"archive interval {self.interval_ms} ms: want 100 to 600000, or 0 for no archive")
        if self.snapshot_every_s and self.snapshot_every_s < 5:
            raise ConfigError(f"snapshots every {self.snapshot_every_s} s: want at least 5, or 0 for none")
        self.keep.validate()
