"""``qd recover``: go on from a survivor when the majority of the members is lost for good."""

from __future__ import annotations

from pathlib import Path

import click

from controlplane.base.clock import SystemClock
from controlplane.base.errors import CorruptStateError
from controlplane.cli.common import coroutine, err
from controlplane.lost_quorum import Plan, Survivor, inspect, plan
from controlplane.lost_quorum import recover as carry_out

__all__ = ["recover"]

_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.option(
    "--data-dir",
    "data_dirs",
    required=True,
    multiple=True,
    type=_DIRECTORY,
    help="A survivor's; once for each of them.",
)
@click.option("--yes", is_flag=True, help="Do it. Without this, only say what would be done and what it costs.")
@coroutine
async def recover(data_dirs: tuple[Path, ...], yes: bool) -> None:
    """Rebuild a cluster that has lost its majority from what the stopped survivors hold.

    Give every data directory that is left: the one with the most is chosen. It becomes a cluster of one member, with
    the same cluster id; start it as before, then add the others anew (qd member add). Its directory as it was stays
    beside it. With a majority alive none of this is needed.
    """
    survivors = []
    for data_dir in data_dirs:
        try:
            survivors.append(inspect(data_dir))
        except CorruptStateError as error:
            err.print(f"not usable: {error}", markup=False)
    for survivor in survivors:
        click.echo(_line(survivor))
    if not survivors:
        raise CorruptStateError(
            "none of the directories can be recovered from; restore a snapshot: qd snapshot restore"
        )
    decided = plan(survivors)
    _explain(decided)
    if not yes:
        click.echo("\nNothing was changed. To do it, run this again with --yes")
        raise click.exceptions.Exit(1)
    backup = carry_out(decided, clock=SystemClock())
    click.echo(f"\nDone. {decided.chosen.data_dir} as it was: {backup}")
    click.echo(
        f"Start {decided.chosen.name} as before; then qd member add for each of the others, with empty directories."
    )


def _line(survivor: Survivor) -> str:
    snapshot = f"{survivor.snapshot.index}" if survivor.snapshot else "none"
    return (
        f"{survivor.name}: {survivor.data_dir}: last entry {survivor.index} of term {survivor.term}, committed for "
        f"certain {survivor.commit_index}, snapshot {snapshot}"
    )


def _explain(decided: Plan) -> None:
    members = ", ".join(m.name or f"{m.id:x}" for m in decided.chosen.membership.members)
    click.echo(f"members: {members}; lost: {', '.join(m.name or f'{m.id:x}' for m in decided.lost) or 'none'}")
    click.echo(f"chosen: {decided.chosen.name}, which becomes the only member")
    for warning in decided.warnings():
        click.echo(f"  - {warning}")
