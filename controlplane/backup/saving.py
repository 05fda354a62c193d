"""A snapshot of a running replica into its repository: cut, gathered in a file, verified, published.

Owns that way, which the archive and the schedule share. The loop only hands pieces over; files and the store are worked
on in the worker's thread.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from controlplane.backup.checks import check_reserve
from controlplane.backup.manifest import Manifest
from controlplane.backup.names import SnapshotName
from controlplane.backup.repository import Repository, describe_file
from controlplane.backup.worker import LONG_S, Worker
from controlplane.base.clock import Clock
from controlplane.base.errors import StorageError
from controlplane.raft.snapshot_format import SnapshotInfo
from controlplane.raft.types import LogReader

__all__ = ["Saver"]

_DURABLE_POLL_S = 0.01


class Saver:
    """Saves snapshots of one replica.

    Args:
        scratch: a folder of its own on this replica's disk; emptied here.
        name: this replica's.
    """

    def __init__(
        self, log: LogReader, repository: Repository, worker: Worker, *, scratch: Path, name: str, clock: Clock
    ) -> None:
        self._log = log
        self._repository = repository
        self._worker = worker
        self._scratch = scratch
        self._name = name
        self._clock = clock

    async def save(self) -> tuple[SnapshotName, Manifest]:
        """Cut a snapshot of the state now and publish it.

        Raises:
            StorageError: this disk or the store refused; nothing is published.
            CorruptStateError: what was written is not what was read back.
        """
        path = self._scratch / "cut.qdsnap"
        file = await self._worker.run(lambda: _begin(self._scratch, path))
        try:
            async for piece in self._log.snapshot_file():
                await self._worker.run(partial(_write, file, path, piece))
            described = await self._worker.run(lambda: _end(file, path), patience_s=LONG_S)
            # What was applied at the cut may not have been durable here then. It is not published before it is: no
            # archive may hold a state that a crash at this very moment takes back.
            while self._log.durable_index < described[0].header.index:
                await self._clock.sleep(_DURABLE_POLL_S)
            return await self._worker.run(
                lambda: self._repository.publish(path, *described, saved_by=self._name), patience_s=LONG_S
            )
        finally:
            # Not waited for: this may be the replica stopping, and the job before it hanging in a store.
            self._worker.post(lambda: _discard(file, path))


def _begin(scratch: Path, path: Path) -> BinaryIO:
    with _refusals(path):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _write(file: BinaryIO, path: Path, piece: bytes) -> None:
    check_reserve(path.parent)
    with _refusals(path):
        file.write(piece)


def _end(file: BinaryIO, path: Path) -> tuple[SnapshotInfo, str]:
    with _refusals(path):
        file.close()
    return describe_file(path)


def _discard(file: BinaryIO, path: Path) -> None:
    with contextlib.suppress(OSError):  # a full disk refuses what the buffer still holds; it is thrown away anyhow
        file.close()
    path.unlink(missing_ok=True)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}", errno=error.errno or 0) from error
