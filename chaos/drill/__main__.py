"""`make dr-drill`: disasters on purpose, the way back, and a verdict; beside a real etcd's way back on the same data.

A few minutes. Ctrl-C stops what was started. The exit code is 1 if any drill fell short, 4 if none did but etcd is not
installed, so that nothing could be compared with it.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from chaos.bench.peers import OURS, PEER
from chaos.drill.beside import BOTH, beside_etcd, drill_of
from chaos.drill.drills import DRILLS
from chaos.drill.fleet import Fleet
from chaos.drill.row import Mark, Row, print_table, verdict_of
from controlplane.base.errors import QuarterdeckError

_INTERRUPTED = 130
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
    print_table(rows)
    if interrupted:
        sys.exit(_INTERRUPTED)
    said, code = verdict_of(rows, beside=not (without_etcd or only), etcd=drill_of(PEER))
    click.echo(f"verdict: {said}")
    sys.exit(code)


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
    missing = _missing_etcd()
    if missing:
        err.print(f"NOT COMPARED with etcd: {missing}")
    for size in keys:
        err.print(f"{'ours alone' if missing else 'beside etcd'}: {size} keys of 1 KB lost and restored")
        await _beside(rows, size, port_base + 300, missing)


def _missing_etcd() -> str:
    """Why there is no etcd to compare with; empty: there is."""
    missing = [name for name in ("etcd", "etcdctl") if shutil.which(name) is None]
    return f"{' and '.join(missing)} not on PATH (Debian: etcd-server, etcd-client)" if missing else ""


async def _beside(rows: list[Row], keys: int, port_base: int, missing: str) -> None:
    """A row for each of the two, whatever comes of them."""
    first = len(rows)
    try:
        await beside_etcd(rows, (OURS,) if missing else BOTH, keys, port_base)
    except (QuarterdeckError, RuntimeError) as error:
        rows[-1].verdict = Mark.FAIL
        rows[-1].notes.append(str(error))
    for row in rows[first:]:
        row.verdict = Mark.PASS if row.verdict is Mark.UNENDED else row.verdict
        err.print(f"  {row.drill}: {row.verdict}" + "".join(f"; {note}" for note in row.notes))
    if missing:
        rows.append(Row(drill_of(PEER), keys, verdict=Mark.NOT_COMPARED, notes=[missing]))


async def _drill(rows: list[Row], name: str, fleet: Fleet, keys: int, folder: Path) -> None:
    row = Row(name, keys)
    rows.append(row)
    began_s = time.monotonic()
    err.print(f"drill: {name}")
    try:
        await DRILLS[name](fleet, row, folder)
    except QuarterdeckError as error:
        row.verdict = Mark.FAIL
        row.notes.append(str(error))
    else:
        row.verdict = Mark.PASS
    err.print(f"  {row.verdict} after {time.monotonic() - began_s:.1f} s" + "".join(f"; {note}" for note in row.notes))


if __name__ == "__main__":
    main()
