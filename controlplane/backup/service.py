"""The backups of one running replica: archive and schedule, wired over one place.

Owns the settings and the wiring. The archive and the schedule each have a thread and a folder of their own: a big
snapshot does not keep the log waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlplane.backup.archiver import Archiver
from controlplane.backup.keys import read_recipients
from controlplane.backup.notes import Note
from controlplane.backup.objects import open_objects
from controlplane.backup.repository import Keys, Repository
from controlplane.backup.retention import Keep
from controlplane.backup.saving import Saver
from controlplane.backup.schedule import Schedule
from controlplane.backup.worker import Worker
from controlplane.base.aio import run_until_first
from controlplane.base.clock import Clock
from controlplane.base.errors import ConfigError
from controlplane.base.rand import Rand
from controlplane.raft.types import LogReader

__all__ = ["BackupConfig", "Backups"]

#: Below the replica's data directory.
_SCRATCH: Final = "backup.tmp"


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
    keep: Keep = Keep(last=8, hourly=24, daily=7)
    recipients: Path | None = None

    def validate(self) -> None:
        """Raises ConfigError, naming the setting."""
        if self.interval_ms and not 100 <= self.interval_ms <= 600_000:
            raise ConfigError(f"archive interval {self.interval_ms} ms: want 100 to 600000, or 0 for no archive")
        if self.snapshot_every_s and self.snapshot_every_s < 5:
            raise ConfigError(f"snapshots every {self.snapshot_every_s} s: want at least 5, or 0 for none")
        self.keep.validate()


class Backups:
    """See the module. ``run`` for as long as the replica runs, then ``close``.

    Raises:
        ConfigError: the URL, or the file of recipients, is no good.
    """

    def __init__(
        self,
        config: BackupConfig,
        reader: LogReader,
        note: Callable[[int], Note | None],
        *,
        cluster_id: int,
        name: str,
        data_dir: Path,
        clock: Clock,
        rand: Rand,
    ) -> None:
        keys = Keys(recipients=read_recipients(config.recipients) if config.recipients is not None else ())
        self._workers: list[Worker] = []
        self._parts: list[Archiver | Schedule] = []

        def tools(part: str) -> tuple[Repository, Saver, Worker]:
            scratch = data_dir / _SCRATCH / part
            repository = Repository(open_objects(config.url, scratch=scratch), cluster_id, keys)
            worker = Worker(part)
            self._workers.append(worker)
            saver = Saver(reader, repository, worker, scratch=scratch, name=name, clock=clock)
            return repository, saver, worker

        if config.interval_ms:
            self._parts.append(
                Archiver(reader, note, *tools("archive"), name=name, interval_s=config.interval_ms / 1000, clock=clock)
            )
        if config.snapshot_every_s:
            self._parts.append(
                Schedule(*tools("schedule"), every_s=config.snapshot_every_s, keep=config.keep, clock=clock, rand=rand)
            )

    async def run(self) -> None:
        """Until cancelled."""
        await run_until_first(*(part.run() for part in self._parts))

    def close(self) -> None:
        """A job that hangs is left behind."""
        for worker in self._workers:
            worker.close()
