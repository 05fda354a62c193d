"""`make dr-drill`: disasters on purpose, the way back, and a verdict; beside a real etcd's way back on the same data.

A few minutes. Ctrl-C stops what was started. The exit code is 1 if any drill fell short.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from chaos.drill.beside import beside_etcd
from chaos.drill.drills import DRILLS, Row
from chaos.drill.fleet import Fleet
from controlplane.base.errors import ConfigError, QuarterdeckError
from controlplane.local.etcd import program

_FAILED, _INTERRUPTED = 1, 130
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=click.Choice(list(DRILLS)), help="Just this drill; may be repeated.")
@click.option("--fleet-keys", default=20_000, show_default=True, help="Keys of 1 KB on the drilled fleet.")
@click.option("--keys", multiple=True, type=click.IntRange(1), default=(20_000, 200_000), show_default=True,
              help="Sizes to lose and restore beside etcd.")  # fmt: skip
@click.option("--without-etcd", is_flag=True, help="Only the drills.")
@click.option("--port-base", default=27_000, show_default=True, help="First port.")
def main(only: Sequence[str], fleet_keys: int, keys: Sequence[int], without_etcd: bool, port_base: int) -> None:
    rows: list[Row] = []
    interrupted = False
    try:
        asyncio.run(_run(rows, only, fleet_keys, () if without_etcd else keys, port_base))
    except (KeyboardInterrupt, asyncio.CancelledError):
        interrupted = True
    _print(rows)
    if interrupted:
        sys.exit(_INTERRUPTED)
    failed = [row.drill for row in rows if row.verdict != "PASS"]
    click.echo(f"verdict: {'FAIL (' + ', '.join(failed) + ')' if failed else 'PASS'}")
    sys.exit(_FAILED if failed else 0)


async def _run(rows: list[Row], only: Sequence[str], fleet_keys: int, keys: Sequence[int], port_base: int) -> None:
    me = asyncio.current_task()
    assert me is not None
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, me.cancel)
    with tempfile.TemporaryDirectory(prefix="qd-drill-") as folder:
        fleet = Fleet(Path(folder), port_base)
        try:
            err.print(f"bringing a fleet up, with {fleet_keys} keys of 1 KB")
            await fleet.up(fleet_keys)
            for name in only or DRILLS:
                await _drill(rows, name, fleet, fleet_keys, Path(folder))
        finally:
            await asyncio.to_thread(fleet.down)
    if not keys or only:
        return
    try:
        program("etcd"), program("etcdctl")
    except ConfigError as error:
        err.print(f"not beside etcd: {error}")
        return
    for size in keys:
        err.print(f"beside etcd: {size} keys of 1 KB lost and restored on both")
        rows += await beside_etcd(size, port_base + 300)


async def _drill(rows: list[Row], name: str, fleet: Fleet, keys: int, folder: Path) -> None:
    row = Row(name, keys)
    rows.append(row)
    began_s = time.monotonic()
    err.print(f"drill: {name}")
    try:
        await DRILLS[name](fleet, row, folder)
    except QuarterdeckError as error:
        row.verdict = "FAIL"
        row.notes.append(str(error))
    else:
        row.verdict = "PASS"
    err.print(f"  {row.verdict} after {time.monotonic() - began_s:.1f} s" + "".join(f"; {note}" for note in row.notes))


def _print(rows: Sequence[Row]) -> None:
    table = Table(box=None, pad_edge=False, header_style="")
    for heading in ("DRILL", "KEYS", "FIRST WRITE", "COMMAND", "WRITE GAP", "RESTORED TO", "VERDICT"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        seconds = [_seconds(value) for value in (row.first_write_s, row.command_s, row.gap_s)]
        table.add_row(row.drill, str(row.keys), *seconds, row.point or "-", row.verdict)
    Console(width=140, highlight=False).print(table)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


if __name__ == "__main__":
    main()
