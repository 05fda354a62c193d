"""Snapshots by the clock, on every replica, and the removal of old ones.

Owns when. Replicas that share a place share the work: whoever's turn comes looks first, and saves nothing if another
has saved one not long ago. Turns are spread by chance, so that not all save at once. Nothing here can stop the replica.
"""

from __future__ import annotations

import logging
from typing import Final

from controlplane.backup import metrics
from controlplane.backup.repository import Repository
from controlplane.backup.retention import Keep, prune
from controlplane.backup.saving import Saver
from controlplane.backup.worker import LONG_S, Worker
from controlplane.base.clock import Clock
from controlplane.base.errors import QuarterdeckError
from controlplane.base.rand import Rand

__all__ = ["Schedule"]

log = logging.getLogger("quarterdeck.backup")

#: A turn comes between so much before and after its time.
_JITTER: Final = 0.1
#: After a failure, but never later than the next turn.
_RETRY_S: Final = 30.0
#: The first look after the start of a process, at random up to here.
_FIRST_S: Final = 10.0


class Schedule:
    """See the module. Run :meth:`run` for as long as the replica runs.

    Args:
        every_s: between two snapshots.
        keep: what stays after each.
    """

    def __init__(
        self,
        repository: Repository,
        saver: Saver,
        worker: Worker,
        *,
        every_s: float,
        keep: Keep,
        clock: Clock,
        rand: Rand,
    ) -> None:
        self._repository = repository
        self._saver = saver
        self._worker = worker
        self._every_s = every_s
        self._keep = keep
        self._clock = clock
        self._rand = rand

    async def run(self) -> None:
        """Until cancelled."""
        await self._clock.sleep(min(_FIRST_S, self._every_s) * self._rand.random())
        while True:
            try:
                wait_s = await self.turn()
            except Exception as error:  # a defect too: whatever becomes of the backup, the replica goes on
                metrics.SNAPSHOT_FAILURES.inc()
                log.error(
                    "event=backup-failed url=%s error=%r", self._repository.url, str(error),
                    exc_info=None if isinstance(error, QuarterdeckError) else error,
                )  # fmt: skip
                wait_s = min(_RETRY_S, self._every_s)
            await self._clock.sleep(wait_s * (1 - _JITTER + 2 * _JITTER * self._rand.random()))

    async def turn(self) -> float:
        """Save a snapshot if it is time, and remove what is not kept; how long until the next turn, seconds.

        Raises:
            StorageError, CorruptStateError: it could not be saved.
        """
        snapshots = await self._worker.run(self._repository.snapshots)
        newest_ms = max((name.created_at_ms for name in snapshots), default=0)
        age_s = (self._clock.wall_ms() - newest_ms) / 1000
        if 0 <= age_s < self._every_s / 2:
            metrics.SNAPSHOT_LAST_SUCCESS.set(newest_ms / 1000)
            return self._every_s - age_s
        began_s = self._clock.monotonic()
        name, manifest = await self._saver.save()
        metrics.SNAPSHOT_LAST_SUCCESS.set(self._clock.wall_ms() / 1000)
        metrics.SNAPSHOT_BYTES.set(manifest.file_bytes)
        metrics.SNAPSHOT_SECONDS.set(self._clock.monotonic() - began_s)
        log.info(
            "event=backup-saved url=%s revision=%d bytes=%d seconds=%.2f",
            self._repository.url, name.revision, manifest.file_bytes, self._clock.monotonic() - began_s,
        )  # fmt: skip
        now_ms = self._clock.wall_ms()
        removal = await self._worker.run(lambda: prune(self._repository, self._keep, now_ms), patience_s=LONG_S)
        if removal.snapshots or removal.segments:
            log.info("event=backup-pruned snapshots=%d segments=%d", len(removal.snapshots), len(removal.segments))
        return self._every_s
