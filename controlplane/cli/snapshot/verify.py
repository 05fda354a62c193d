"""``qd snapshot verify``: is a file whole, or everything in a place of backups, and can states be built from it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from controlplane.backup.audit import audit
from controlplane.backup.chain import Log, covered
from controlplane.backup.materialize import materialize, when
from controlplane.cli.common import coroutine, err, fail
from controlplane.cli.options import output_option
from controlplane.cli.snapshot.place import (
    CLUSTER_OPTION,
    KEY_OPTION,
    is_repository,
    keys_of,
    open_repository,
    scratch_folder,
)
from controlplane.recovery import verify as verify_file

__all__ = ["verify"]


@click.command()
@click.argument("path", metavar="PATH|URL")
@KEY_OPTION
@CLUSTER_OPTION
@output_option
@coroutine
async def verify(path: str, key_file: Path | None, cluster: str | None, output: str) -> None:
    """Check a snapshot file wholly: checksum, structure, and that a store can be built from it. Of a directory or URL
    of backups, check every snapshot so, and every segment of the log, and that it goes on without a gap."""
    if is_repository(path):
        _verify_place(path, key_file, cluster, output)
        return
    with scratch_folder() as scratch:
        plain = materialize(path, key_file=key_file, scratch=scratch).path
        info, found = verify_file(plain)
    header = info.header
    if output == "json":
        values = {
            "file": path,
            "format": info.format_version,
            "state_format": found.state_format,
            "cluster_id": f"{header.cluster_id:x}",
            "members": [member.name for member in header.members],
            "created_at_ms": header.created_at_ms,
            "revision": header.revision,
            "index": header.index,
            "term": header.term,
            "keys": found.keys,
            "state_hash": found.state_hash,
            "file_bytes": info.file_bytes,
            "state_bytes": info.state_bytes,
            "sha256": info.sha256,
        }
        click.echo(json.dumps(values, indent=2))
        return
    for name, value in (
        ("file", path),
        ("format", f"{info.format_version} (state {found.state_format})"),
        ("cluster", f"{header.cluster_id:x}"),
        ("members", ", ".join(member.name for member in header.members)),
        ("created", when(header.created_at_ms)),
        ("revision", header.revision),
        ("raft", f"index {header.index}, term {header.term}"),
        ("keys", found.keys),
        ("state hash", found.state_hash),
        ("bytes", f"{info.file_bytes} ({info.state_bytes} uncompressed)"),
        ("sha256", info.sha256),
    ):
        click.echo(f"{name + ':':<12} {value}")
    click.echo("OK")


def _verify_place(place: str, key_file: Path | None, cluster: str | None, output: str) -> None:
    repository = open_repository(place, cluster, keys_of(key_file))
    with scratch_folder() as scratch:
        found = audit(repository, scratch, say=err.print)
    stretches = covered(found.snapshots, Log(found.segments))
    if output == "json":
        counts = {"snapshots": len(found.snapshots), "segments": len(found.segments), "unread": found.unread}
        click.echo(
            json.dumps({**counts, "covered": [asdict(s) for s in stretches], "problems": found.problems}, indent=2)
        )
        if found.problems:
            fail(f"{len(found.problems)} problems")
        return
    for stretch in stretches:
        click.echo(
            f"restorable: revision {stretch.first_revision} to {stretch.last_revision}, "
            f"{when(stretch.first_ms)} to {when(stretch.last_ms)}"
        )
    click.echo(f"{len(found.snapshots)} snapshots and {len(found.segments)} segments of the log are whole")
    if found.unread:
        click.echo(f"{found.unread} are encrypted and were not opened: only checksums were compared (--key-file)")
    for problem in found.problems:
        click.echo(problem)
    if found.problems:
        fail(f"{len(found.problems)} problems")
    click.echo("OK")
