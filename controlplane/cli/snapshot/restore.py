"""``qd snapshot restore``: a snapshot's state into the cluster that serves, into an empty fleet, or parts of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from controlplane.base.errors import ConfigError, StatusError
from controlplane.cli.common import EXIT_USAGE, Settings, coroutine, err, fail, find_folder, settings_of
from controlplane.cli.local_restore import restore_local
from controlplane.cli.snapshot.source import Source, snapshot_file, source_options
from controlplane.client import OperatorClient
from controlplane.config import parse_initial_cluster
from controlplane.local.cluster import LocalCluster

if TYPE_CHECKING:
    from controlplane.live_restore import LiveRestored, Plan

__all__ = ["restore"]


@click.command()
@click.argument("source")
@source_options
@click.option(
    "--namespace", "-n", help="Only this namespace, through the ordinary API; with --object, where it stands."
)
@click.option("--object", "objects", multiple=True, metavar="KIND/NAME", help="Only this object; may be given again.")
@click.option(
    "--dry-run", is_flag=True, help="With --namespace or --object: say what would change, and change nothing."
)
@click.option("--yes", is_flag=True, help="Do not ask before the state is replaced.")
@click.option(
    "--force", is_flag=True, help="Also from another cluster's snapshot, or one that turns authentication on or off."
)
@click.option("--name", help="Seed one member's directory instead: the member whose it is.")
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="With --name: empty or missing.")
@click.option("--initial-cluster", help="With --name: NAME=PEER@CLIENT@METRICS,... as the replicas will be started.")
@click.option("--cluster-token", help="With --name: a new one; start the replicas with the same.")
@click.pass_context
@coroutine
async def restore(
    context: click.Context,
    source: str,
    to_revision: int | None,
    to_time: str | None,
    key_file: Path | None,
    cluster: str | None,
    namespace: str | None,
    objects: Sequence[str],
    dry_run: bool,
    yes: bool,
    force: bool,
    name: str | None,
    data_dir: Path | None,
    initial_cluster: str | None,
    cluster_token: str | None,
) -> None:
    """Bring the state of a snapshot back: of a file, or of a folder or URL of backups (the newest, or of a moment).

    Into a cluster that serves, the state is swapped on all replicas together, at one entry of the log: clients go on,
    watchers are told to list again, leases begin anew, pods that the snapshot knows run on. What was written since the
    snapshot is gone. Refused with a reason, and nothing changed, for a damaged file, another cluster's (--force), or
    when a replica has no room.

    With no replica running it makes a new cluster of the file: the local cluster of this machine at once; members on
    other machines each with --name, --data-dir, --initial-cluster and --cluster-token, then start them.

    With --namespace or --object only that part: missing objects are created, changed ones put back, none deleted.
    """
    if dry_run and not (namespace or objects):
        raise ConfigError(
            "--dry-run goes with --namespace or --object; `qd diff SOURCE` shows what all of it would change"
        )
    chosen = Source(source, to_revision, to_time, key_file, cluster)
    async with snapshot_file(chosen) as path:
        if namespace or objects:
            from controlplane.cli.snapshot.part import restore_part

            await restore_part(settings_of(context), path, namespace, objects, dry_run=dry_run)
        else:
            seed = None if name is None else (name, data_dir, initial_cluster, cluster_token)
            await _restore(settings_of(context), path, chosen.words(), seed, yes=yes, force=force)


async def _restore(
    settings: Settings,
    path: Path,
    said: str,
    seed: tuple[str, Path | None, str | None, str | None] | None,
    *,
    yes: bool,
    force: bool,
) -> None:
    if seed is not None:
        name, data_dir, initial_cluster, cluster_token = seed
        if data_dir is None or initial_cluster is None or cluster_token is None:
            raise ConfigError("--name seeds one member: it needs --data-dir, --initial-cluster and --cluster-token")
        _seed(path, name, data_dir, initial_cluster, cluster_token)
        return
    endpoints = [] if nothing_runs(settings) else await serving(settings)
    if endpoints:
        await _restore_live(settings, path, said, endpoints, yes=yes, force=force)
        return
    folder = settings.folder or find_folder()
    if folder is None or not LocalCluster.exists(folder) or settings.endpoints:
        fail(_by_hand(said, settings), EXIT_USAGE)
    await restore_local(LocalCluster.open(folder), path, said=said, yes=yes, force=force)


def nothing_runs(settings: Settings) -> bool:
    """Whether it is the local cluster that is meant, and no replica of it runs: then nobody need be asked."""
    folder = None if settings.endpoints else settings.folder or find_folder()
    if folder is None or not LocalCluster.exists(folder):
        return False
    cluster = LocalCluster.open(folder)
    return not any(cluster.processes.pid(replica.name) for replica in cluster.spec.replicas)


async def serving(settings: Settings) -> list[str]:
    """The endpoints of the cluster's replicas, if any of them answers; those that do come first."""
    credentials = settings.credentials()

    async def answers(endpoint: str) -> bool:
        async with OperatorClient(endpoint, credentials=credentials) as client:
            try:
                await client.status()
            except StatusError:
                return False
            return True

    endpoints = settings.resolve_endpoints()
    up = await asyncio.gather(*(answers(endpoint) for endpoint in endpoints))
    if not any(up):
        return []
    return sorted(endpoints, key=lambda endpoint: not up[endpoints.index(endpoint)])


def _seed(path: Path, name: str, data_dir: Path, initial_cluster: str, cluster_token: str) -> None:
    from controlplane.recovery import restore_member

    restored = restore_member(
        path, data_dir, name=name, members=parse_initial_cluster(initial_cluster), cluster_token=cluster_token
    )
    click.echo(
        f"{name}: {restored.keys} keys of revision {restored.snapshot_revision}, going on at {restored.revision}; "
        f"state hash {restored.state_hash}"
    )


def _by_hand(said: str, settings: Settings) -> str:
    return (
        f"no replica answers ({', '.join(settings.resolve_endpoints())}), and there is no local cluster to start. "
        "To make a new cluster of the file, on each member's machine:\n"
        f"  qd snapshot restore {said} --name NAME --data-dir DIR \\\n"
        "    --initial-cluster NAME=PEER@CLIENT@METRICS,... --cluster-token NEW-TOKEN\n"
        "then start every member with the same --initial-cluster and --cluster-token"
    )


async def _restore_live(
    settings: Settings, path: Path, said: str, endpoints: list[str], *, yes: bool, force: bool
) -> None:
    from controlplane.live_restore import plan_of  # not needed by who brings up an empty fleet in a hurry

    plan = await asyncio.to_thread(plan_of, path)
    taken = datetime.fromtimestamp(plan.info.header.created_at_ms / 1000, UTC)
    if not yes:
        click.confirm(
            f"Replace the state of the running cluster ({', '.join(endpoints)}) by that of {said}: revision "
            f"{plan.info.header.revision}, {plan.keys} keys, taken {taken.isoformat(timespec='seconds')}?",
            abort=True,
            err=True,
        )
    began = time.monotonic()
    restored = await _with_progress(settings, plan, endpoints, force=force)
    took_s = time.monotonic() - began
    err.print(
        f"restored {restored.keys} keys; recovery point: revision {restored.snapshot_revision}, "
        f"{taken.isoformat(timespec='milliseconds')} ({time.time() - taken.timestamp():.0f} s ago)"
    )
    err.print(f"recovery time {took_s:.2f} s, of which the swap {restored.swap_s:.3f} s; writes went on until then")
    err.print(
        f"going on at revision {restored.revision}; state hash {restored.state_hash} at revision "
        f"{restored.hash_revision} on {', '.join(restored.replicas)}; content {restored.digest[:16]}… as in the file"
    )
    if restored.behind:
        err.print(f"not seen to have it yet: {', '.join(restored.behind)}; they take it over when they catch up")


async def _with_progress(settings: Settings, plan: Plan, endpoints: list[str], *, force: bool) -> LiveRestored:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from controlplane.live_restore import restore_live

    columns = (TextColumn("staging"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        task = progress.add_task("staging", total=len(plan.pieces))
        return await restore_live(
            plan,
            endpoints,
            credentials=settings.credentials(),
            force=force,
            say=lambda sent, total: progress.update(task, completed=sent, total=total),
        )
