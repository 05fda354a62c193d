"""``qd snapshot list``: what backups there are, and which states can be restored from them."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import click

from controlplane.backup.chain import Log, covered
from controlplane.backup.materialize import when
from controlplane.base.errors import CorruptStateError
from controlplane.cli.common import coroutine, err, settings_of
from controlplane.cli.options import output_option
from controlplane.cli.snapshot.place import CLUSTER_OPTION, local_place, open_repository
from controlplane.cli.tables import age, table

__all__ = ["list_"]


@click.command("list")
@click.argument("place", required=False, metavar="[PATH|URL]")
@CLUSTER_OPTION
@output_option
@click.pass_context
@coroutine
async def list_(context: click.Context, place: str | None, cluster: str | None, output: str) -> None:
    """List the snapshots of a directory or URL, newest first; by default the local cluster's."""
    repository = open_repository(place or local_place(settings_of(context)), cluster)
    snapshots, log = repository.snapshots(), Log(repository.segments())
    manifests = []
    for name in snapshots:
        try:
            manifests.append((name, repository.manifest(name)))
        except CorruptStateError as error:
            err.print(str(error))
    stretches = covered(snapshots, log)
    if output == "json":
        rows = [{"location": repository.locate(name), **asdict(manifest)} for name, manifest in manifests]
        click.echo(json.dumps({"snapshots": rows, "covered": [asdict(stretch) for stretch in stretches]}, indent=2))
        return
    now_s = time.time()
    cells = [
        [
            str(m.revision),
            when(m.created_at_ms),
            age(now_s - m.created_at_ms / 1000),
            str(m.file_bytes),
            "yes" if m.encrypted else "no",
            m.saved_by,
            m.state_hash[:12],
            repository.locate(name),
        ]
        for name, m in manifests
    ]
    click.echo(f"cluster {repository.cluster_id:x}")
    click.echo(table(["REVISION", "CREATED", "AGE", "BYTES", "ENCRYPTED", "SAVED BY", "STATE", "LOCATION"], cells))
    for stretch in stretches:
        click.echo(
            f"restorable: revision {stretch.first_revision} to {stretch.last_revision}, "
            f"{when(stretch.first_ms)} to {when(stretch.last_ms)}"
        )
