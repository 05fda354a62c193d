"""``qd snapshot prune``: remove old backups by rule."""

from __future__ import annotations

import time

import click

from controlplane.backup.retention import Keep, parse_age_s, prune
from controlplane.cli.common import coroutine, err, settings_of
from controlplane.cli.snapshot.place import CLUSTER_OPTION, local_place, open_repository

__all__ = ["prune_"]


@click.command("prune")
@click.argument("place", required=False, metavar="[PATH|URL]")
@click.option("--keep-last", default=0, metavar="N", help="Keep the N newest.")
@click.option(
    "--keep-hourly", default=0, metavar="N", help="Keep the newest of each of the last N hours that have one."
)
@click.option("--keep-daily", default=0, metavar="N", help="Keep the newest of each of the last N days that have one.")
@click.option("--older-than", metavar="AGE", help="Remove nothing younger than this: 30d, 12h.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@CLUSTER_OPTION
@click.pass_context
@coroutine
async def prune_(
    context: click.Context,
    place: str | None,
    keep_last: int,
    keep_hourly: int,
    keep_daily: int,
    older_than: str | None,
    dry_run: bool,
    cluster: str | None,
) -> None:
    """Remove snapshots that no rule keeps, and the log that only they needed.

    The newest snapshot always stays, and with each that stays the log from the oldest of them on: every state since
    then can still be restored. Prints what is removed.
    """
    keep = Keep(keep_last, keep_hourly, keep_daily, None if older_than is None else parse_age_s(older_than))
    keep.validate()
    repository = open_repository(place or local_place(settings_of(context)), cluster)
    removal = prune(repository, keep, time.time_ns() // 1_000_000, dry_run=dry_run)
    for name in (*removal.unpublished, *removal.snapshots):
        click.echo(repository.locate(name))
    err.print(
        f"{'would remove' if dry_run else 'removed'} {len(removal.snapshots)} snapshots and {len(removal.segments)} "
        f"segments of the log; {len(removal.kept)} snapshots stay"
    )
