"""Where a command's snapshot comes from: a file, encrypted or not, or backups as of some moment."""

from __future__ import annotations

import asyncio
import shlex
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from controlplane.base.errors import ConfigError
from controlplane.cli.common import err

__all__ = ["Source", "parse_time_ms", "snapshot_file", "source_options"]

F = TypeVar("F", bound=Callable[..., Any])
_PLAIN = b"QDSNAP\r\n"


@dataclass(frozen=True, slots=True)
class Source:
    """What a command line said. ``url``: a snapshot file, or a repository of backups (folder or URL)."""

    url: str
    to_revision: int | None = None
    to_time: str | None = None
    key_file: Path | None = None
    cluster: str | None = None

    def words(self) -> str:
        """As a command line says it, for a shell. What is made of it lies in a temporary file, which is no name to
        give to people."""
        options = (
            ("--to-revision", self.to_revision),
            ("--to-time", self.to_time),
            ("--key-file", self.key_file),
            ("--cluster", self.cluster),
        )
        said = [word for name, value in options if value is not None for word in (name, str(value))]
        return shlex.join([self.url, *said])


def source_options(function: F) -> F:
    """The options that choose a state of a repository, and open it."""
    for option in (
        click.option("--cluster", metavar="ID", help="Whose, if several have backups there; else the newest."),
        click.option(
            "--key-file",
            type=click.Path(dir_okay=False, path_type=Path),
            envvar="QUARTERDECK_KEY_FILE",
            help="Opens encrypted backups.",
        ),
        click.option(
            "--to-time", metavar="TIME", help="The state at that moment: 2026-01-31T12:00:00Z, or local time."
        ),
        click.option("--to-revision", type=click.IntRange(1), help="The state at that revision, from archived writes."),
    ):
        function = option(function)
    return function


def parse_time_ms(text: str) -> int:
    """Milliseconds since 1970 of an ISO time; without a zone it is local. Raises ConfigError."""
    try:
        return int(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000)
    except ValueError as error:
        raise ConfigError(f"--to-time {text!r} is no time; write it as 2026-01-31T12:00:00Z") from error


@asynccontextmanager
async def snapshot_file(source: Source) -> AsyncIterator[Path]:
    """The state as a plain snapshot file, for the length of the block. What had to be got around is said.

    Raises:
        ConfigError, NotCoveredError, CorruptStateError, StorageError: see ``controlplane.backup.materialize``.
    """
    if _is_plain(source):
        yield Path(source.url)
        return
    from controlplane.backup.materialize import materialize  # brings what speaks to object stores

    try:
        cluster_id = None if source.cluster is None else int(source.cluster, 16)
    except ValueError as error:
        raise ConfigError(f"--cluster {source.cluster!r} is no cluster id; `qd snapshot list` shows them") from error
    with tempfile.TemporaryDirectory(prefix="qd-snapshot-") as scratch:
        found = await asyncio.to_thread(
            materialize,
            source.url,
            to_revision=source.to_revision,
            to_time_ms=None if source.to_time is None else parse_time_ms(source.to_time),
            key_file=source.key_file,
            scratch=Path(scratch),
            cluster_id=cluster_id,
        )
        for note in found.notes:
            err.print(note)
        yield found.path


def _is_plain(source: Source) -> bool:
    if source.to_revision is not None or source.to_time is not None:
        return False
    try:
        with open(source.url, "rb") as file:
            return file.read(len(_PLAIN)) == _PLAIN
    except OSError:
        return False
