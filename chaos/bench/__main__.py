"""`make bench`: measure ours beside a three-member etcd on this machine, and write docs/benchmarks.md.

Without options it takes about an hour. Ctrl-C writes what has been measured so far and stops both clusters.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import click
import uvloop

from chaos.bench.cases import CASES, Context
from chaos.bench.figures import Figures, table
from chaos.bench.peers import OURS, PEER, started

_NAMES = click.Choice(list(CASES))


@click.command(help=__doc__)
@click.option("--only", multiple=True, type=_NAMES, help="Measure just this; may be repeated.")
@click.option("--without", multiple=True, type=_NAMES, help="Leave this out; may be repeated.")
@click.option("--rounds", default=3, show_default=True, help="How often the two take turns under each load.")
@click.option("--trials", default=50, show_default=True, help="Faults of each kind on each.")
@click.option("--seconds", default=10.0, show_default=True, help="Length of one load.")
@click.option("--keys", multiple=True, type=int, default=(10_000, 100_000, 1_000_000), show_default=True,
              help="Sizes for restart, restore and memory.")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the report here, not to stdout.")
@click.option("--quick", is_flag=True, help="One round, three trials, small sizes: that it works, not how fast.")
def main(
    only: Sequence[str],
    without: Sequence[str],
    rounds: int,
    trials: int,
    seconds: float,
    keys: tuple[int, ...],
    out: Path | None,
    quick: bool,
) -> None:
    names = [name for name in CASES if (not only or name in only) and name not in without]
    if quick:
        rounds, trials, seconds, keys = 1, 3, 2.0, (1_000,)
    figures = Figures()
    began, failures = time.time(), {}
    asking = f"rounds {rounds}, trials {trials}, {seconds:g} s per load"
    try:
        failures = uvloop.run(_measure(names, rounds, trials, seconds, keys, figures))
    except KeyboardInterrupt:
        failures["the run"] = "was interrupted: the rest was not measured"
    text = _report(figures, failures, asking, began)
    if out is None:
        click.echo(text)
    else:
        out.write_text(text)
        click.echo(f"wrote {out}", err=True)
    sys.exit(1 if failures else 0)


async def _measure(
    names: Sequence[str], rounds: int, trials: int, seconds: float, keys: tuple[int, ...], figures: Figures
) -> dict[str, str]:
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="quarterdeck-bench-") as directory:
        folder = Path(directory)
        shared = [name for name in names if name not in ("cut-links", "sizes")]
        context = Context((None, None), folder, rounds, trials, seconds, keys, figures, _say)  # type: ignore[arg-type]
        if shared:
            async with started(OURS, folder, 29_000) as ours, started(PEER, folder, 29_500) as peer:
                context.pair = (ours, peer)
                await _run(shared, context, failures)
        await _run([name for name in names if name not in shared], context, failures)
    return failures


async def _run(names: Sequence[str], context: Context, failures: dict[str, str]) -> None:
    for name in names:
        try:
            await CASES[name](context)
        except (RuntimeError, OSError, TimeoutError) as error:
            # The others can still be measured; the report and the exit code say that this was not.
            failures[name] = f"{type(error).__name__}: {error}"
            _say(f"{name} failed: {failures[name]}")


def _say(text: str) -> None:
    click.echo(f"{datetime.now(UTC):%H:%M:%S} {text}", err=True)


def _report(figures: Figures, failures: dict[str, str], asking: str, began: float) -> str:
    etcd = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]  # noqa: S607
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout  # noqa: S607
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, {platform.machine()}"
    versions = ", ".join(
        [
            f"quarterdeck {version('quarterdeck')} ({commit.strip() or 'no commit'})",
            etcd,
            f"Python {platform.python_version()}",
            *(f"{package} {version(package)}" for package in ("grpcio", "pysyncobj", "uvloop", "protobuf")),
        ]
    )
    lines = [
        "# Benchmarks: quarterdeck beside etcd",
        "",
        "Written by `make bench`; every number is of this one run, both systems on the same machine, taking turns.",
        "Medians; in parentheses the smallest and largest of the rounds or trials. The load generator shares the two",
        "systems' processors. Three members each, loopback, fsync on, no TLS, etcd with its defaults.",
        "",
        f"- when: {datetime.fromtimestamp(began, UTC):%Y-%m-%d %H:%M} UTC, {(time.time() - began) / 60:.0f} minutes",
        f"- machine: {machine}; load average at the end {os.getloadavg()[0]:.1f}",
        f"- versions: {versions}",
        f"- asked for: {asking}",
        "",
        table(figures),
        "",
    ]
    if failures:
        lines += ["Not measured:", "", *(f"- {name}: {why}" for name, why in failures.items()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
