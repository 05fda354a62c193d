"""``qd snapshot save``: the whole state of a running cluster, as a file."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from controlplane.base.errors import ConfigError, StatusError
from controlplane.cli.common import EXIT_UNREACHABLE, Settings, coroutine, err, fail, find_folder, settings_of
from controlplane.client import OperatorClient
from controlplane.recovery import verify

__all__ = ["save", "save_snapshot"]


async def save_snapshot(settings: Settings, path: Path) -> tuple[int, int]:
    """Save a snapshot of the cluster; return its revision and size in bytes. The file is there wholly or not at all.

    Raises:
        StatusError: no replica could give one.
    """
    failure: StatusError | None = None
    for endpoint in settings.resolve_endpoints():
        client = OperatorClient(endpoint, credentials=settings.credentials())
        try:
            return await _save(client, path)
        except StatusError as error:
            failure = error  # another replica may have a quorum, or be up
        finally:
            await client.close()
    assert failure is not None
    raise failure


async def _save(client: OperatorClient, path: Path) -> tuple[int, int]:
    temporary = path.with_name(path.name + ".part")
    revision = 0
    try:
        with temporary.open("wb") as file:
            async for chunk in client.snapshot():
                revision = chunk.revision or revision
                file.write(chunk.data)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        verify(temporary)
        os.replace(temporary, path)
        _sync_directory(path.parent)  # without it the new name may not outlive a power cut
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return revision, size


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@click.command()
@click.argument("path", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.pass_context
@coroutine
async def save(context: click.Context, path: Path | None) -> None:
    """Save a snapshot, online, from any replica that has a quorum, and verify the file.

    Without PATH it goes to the local cluster's folder of snapshots. Everything acknowledged before the command began
    is in it. Prints the file's path.
    """
    settings = settings_of(context)
    if path is None:
        folder = settings.folder or find_folder()
        if folder is None:
            raise ConfigError("name a file: qd snapshot save PATH")
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        path = folder / "snapshots" / f"{stamp}.qdsnap"
    began = time.monotonic()
    try:
        revision, size = await save_snapshot(settings, path)
    except StatusError as error:
        fail(f"no replica gave a snapshot: {error.message}", EXIT_UNREACHABLE)
    err.print(f"saved revision {revision}, {size} bytes, in {time.monotonic() - began:.2f} s; verified")
    click.echo(str(path))
