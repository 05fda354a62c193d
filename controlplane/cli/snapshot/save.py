"""``qd snapshot save``: the whole state of a running cluster, as a file or among its backups."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from controlplane.backup import age
from controlplane.backup.objects import open_objects
from controlplane.backup.repository import Keys, Repository, describe_file
from controlplane.base.errors import Code, ConfigError, StatusError
from controlplane.cli.common import EXIT_REFUSED, EXIT_UNREACHABLE, Settings, coroutine, err, fail, settings_of
from controlplane.cli.snapshot.place import is_repository, keys_of, local_place, scratch_folder
from controlplane.client import OperatorClient
from controlplane.recovery import verify

__all__ = ["save", "save_snapshot"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


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
@click.argument("path", required=False, metavar="[PATH|URL]")
@click.option("--recipient", "-r", "recipients", multiple=True, metavar="age1…", help="Encrypt to this public key.")
@click.option("--recipients-file", type=_FILE, help="Encrypt to the public keys in this file.")
@click.pass_context
@coroutine
async def save(
    context: click.Context, path: str | None, recipients: tuple[str, ...], recipients_file: Path | None
) -> None:
    """Save a snapshot, online, from any replica that has a quorum, and verify it.

    PATH is a file; or a directory that is there (or ends in /) or a URL, where it is put among the cluster's other
    backups, with a manifest. Without it, it goes to the backups of the local cluster. Everything acknowledged before
    the command began is in it. Prints where it lies.
    """
    settings = settings_of(context)
    keys = keys_of(None, recipients, recipients_file)
    location = path if path is not None else local_place(settings)
    began = time.monotonic()
    try:
        if path is None or is_repository(location):
            revision, size, where = await _save_among_others(settings, location, keys)
        else:
            revision, size, where = await _save_as_file(settings, Path(location), keys)
    except StatusError as error:
        refused = error.code in (Code.PERMISSION_DENIED, Code.UNAUTHENTICATED)
        fail(f"no replica gave a snapshot: {error.message}", EXIT_REFUSED if refused else EXIT_UNREACHABLE)
    sealed = ", encrypted" if keys.recipients else ""
    err.print(f"saved revision {revision}, {size} bytes{sealed}, in {time.monotonic() - began:.2f} s; verified")
    click.echo(where)


async def _save_as_file(settings: Settings, path: Path, keys: Keys) -> tuple[int, int, str]:
    if not keys.recipients:
        return *(await save_snapshot(settings, path)), str(path)
    objects = open_objects(str(path.parent))
    with scratch_folder() as scratch:
        plain = scratch / "plain.qdsnap"
        revision, _ = await save_snapshot(settings, plain)
        with objects.writing(path.name) as target, plain.open("rb") as source:
            age.encrypt(source, target, keys.recipients)
    return revision, path.stat().st_size, str(path)


async def _save_among_others(settings: Settings, location: str, keys: Keys) -> tuple[int, int, str]:
    with scratch_folder() as scratch:
        plain = scratch / "plain.qdsnap"
        await save_snapshot(settings, plain)
        info, state_hash = describe_file(plain)
        repository = Repository(open_objects(location, scratch=scratch), info.header.cluster_id, keys)
        name, manifest = repository.publish(plain, info, state_hash, saved_by="qd")
    return manifest.revision, manifest.file_bytes, repository.locate(name)
