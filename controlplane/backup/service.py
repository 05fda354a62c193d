"""The backups of one running replica: archive and schedule, wired over one place.

Owns the wiring. The archive and the schedule each have a thread and a folder of their own: a big
snapshot does not keep the log waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from controlplane.backup.archiver import Archiver
from controlplane.backup.config import BackupConfig
from controlplane.backup.keys import read_recipients
from controlplane.backup.notes import Note
from controlplane.backup.objects import open_objects
from controlplane.backup.repository import Keys, Repository
from controlplane.backup.saving import Saver
from controlplane.backup.schedule import Schedule
from controlplane.backup.worker import Worker
from controlplane.base.aio import run_until_first
from controlplane.base.clock import Clock
from controlplane.base.rand import Rand
from controlplane.raft.types import LogReader

__all__ = ["Backups"]

#: Below the replica's data directory.
_SCRATCH: Final = "backup.tmp"


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
