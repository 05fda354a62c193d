"""``qd snapshot``: save the whole state online, check a file, seed the members of a new cluster from one."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from controlplane.base.errors import ConfigError, StatusError
from controlplane.cli.common import EXIT_UNREACHABLE, Settings, coroutine, err, fail, find_folder, settings_of
from controlplane.client import OperatorClient
from controlplane.config import parse_initial_cluster
from controlplane.recovery import restore_member, verify

__all__ = ["save_snapshot", "snapshot"]

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


@click.group()
def snapshot() -> None:
    """Save, verify and restore snapshots of the whole state."""


@snapshot.command()
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


@snapshot.command("verify")
@click.argument("path", type=_FILE)
@coroutine
async def verify_command(path: Path) -> None:
    """Check a snapshot file wholly: checksum, structure, and that a store can be built from it."""
    info, found = verify(path)
    header = info.header
    created = datetime.fromtimestamp(header.created_at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    for name, value in (
        ("file", path),
        ("format", f"{info.format_version} (state {header.state_format_version})"),
        ("cluster", f"{header.cluster_id:x}"),
        ("members", ", ".join(member.name for member in header.members)),
        ("created", created),
        ("revision", header.revision),
        ("raft", f"index {header.index}, term {header.term}"),
        ("keys", found.keys),
        ("state hash", found.state_hash),
        ("bytes", f"{info.file_bytes} ({info.state_bytes} uncompressed)"),
        ("sha256", info.sha256),
    ):
        click.echo(f"{name + ':':<12} {value}")
    click.echo("OK")


@snapshot.command()
@click.argument("path", type=_FILE)
@click.option("--name", required=True, help="The member whose directory this is.")
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path), help="Empty or missing.")
@click.option("--initial-cluster", required=True, help="NAME=PEER@CLIENT@METRICS,... as the replicas will be started.")
@click.option("--cluster-token", required=True, help="A new one; start the replicas with the same.")
@coroutine
async def restore(path: Path, name: str, data_dir: Path, initial_cluster: str, cluster_token: str) -> None:
    """Seed one member's data directory from a snapshot.

    Run it for every member of the new cluster with the same file, cluster and token, then start them. The new cluster
    goes on at a higher revision, and old watchers are told to list again. For the local cluster of this machine one
    command does it all: qd local restore FILE
    """
    restored = restore_member(
        path, data_dir, name=name, members=parse_initial_cluster(initial_cluster), cluster_token=cluster_token
    )
    click.echo(
        f"{name}: {restored.keys} keys of revision {restored.snapshot_revision}, going on at {restored.revision}; "
        f"state hash {restored.state_hash}"
    )
