"""``qd diff``: how the cluster differs from a snapshot, or one snapshot from another."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from controlplane.base.errors import ConfigError, QuarterdeckError
from controlplane.cli.common import (
    EXIT_REFUSED,
    EXIT_USAGE,
    CommandError,
    Settings,
    api_error_text,
    coroutine,
    fail,
    settings_of,
)
from controlplane.cli.snapshot.save import save_snapshot
from controlplane.cli.snapshot.source import Source, snapshot_file, source_options
from controlplane.client import ApiError, UnavailableError
from controlplane.contents import Contents, Difference, contents_of, differences

__all__ = ["diff", "live_contents", "show_difference"]

_MARK = {"added": "+", "removed": "-", "changed": "~"}


@click.command()
@click.argument("source")
@click.argument("other", required=False)
@click.option("--status", is_flag=True, help="Compare statuses, identities and times too, not only what users say.")
@click.option("--events", is_flag=True, help="Compare Events too.")
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text", show_default=True)
@source_options
@click.pass_context
@coroutine
async def diff(
    context: click.Context,
    source: str,
    other: str | None,
    status: bool,
    events: bool,
    output: str,
    to_revision: int | None,
    to_time: str | None,
    key_file: Path | None,
    cluster: str | None,
) -> None:
    """Show what was added (+), removed (-) and changed (~) since a snapshot, with the paths of fields.

    SOURCE is a snapshot file, or a folder or URL of backups; it is compared with the running cluster, or with OTHER.
    Exit code 0: the same; 1: different; 2 and 3: it could not be compared.
    """
    try:
        before = await _contents(Source(source, to_revision, to_time, key_file, cluster))
        if other is None:
            after = await live_contents(settings_of(context))
        else:
            after = await _contents(Source(other, key_file=key_file))
    except (ConfigError, UnavailableError):
        raise  # these have such a code already
    except ApiError as error:
        raise CommandError(api_error_text(error), EXIT_USAGE) from error
    except QuarterdeckError as error:
        # As elsewhere it would end with 1, which says here that there are differences.
        fail(str(error), EXIT_USAGE)
    found = list(differences(before, after, status=status, events=events))
    if output == "json":
        click.echo(json.dumps([difference.as_json() for difference in found], indent=2))
    else:
        for difference in found:
            show_difference(difference)
    if found:
        sys.exit(EXIT_REFUSED)


async def _contents(source: Source) -> Contents:
    async with snapshot_file(source) as path:
        return await asyncio.to_thread(contents_of, path)


async def live_contents(settings: Settings) -> Contents:
    """What the running cluster holds, at one revision. Raises StatusError: no replica could say."""
    with tempfile.TemporaryDirectory(prefix="qd-live-") as folder:
        path = Path(folder) / "live.qdsnap"
        await save_snapshot(settings, path)
        return await asyncio.to_thread(contents_of, path)


def show_difference(difference: Difference) -> None:
    """One line an object, one more a field."""
    click.echo(f"{_MARK[difference.change]} {difference.id}")
    for path, before, after in difference.fields:
        click.echo(f"    {path}: {_text(before)} -> {_text(after)}")


def _text(value: Any) -> str:
    return "(nothing)" if value is None else json.dumps(value, sort_keys=True)
