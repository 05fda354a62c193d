"""``qd snapshot restore``: seed the data directories of a new cluster's members from a file."""

from __future__ import annotations

from pathlib import Path

import click

from controlplane.cli.common import coroutine
from controlplane.config import parse_initial_cluster
from controlplane.recovery import restore_member

__all__ = ["restore"]


@click.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
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
