"""`make bench`: measure ours beside a three-member etcd on this machine, and write docs/benchmarks.md.

Without options it takes about an hour and a quarter; ``--budget 25`` measures less of everything and takes 25 minutes.
Ctrl-C writes what has been measured so far and stops both clusters.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import uvloop

from chaos.bench.budget import NAMES, Progress, Settings, expected, fit
from chaos.bench.cases import CASES, OWN_CLUSTERS
from chaos.bench.context import Context
from chaos.bench.peers import OURS, PEER, started
from chaos.bench.report import report
from controlplane.base.errors import ConfigError, QuarterdeckError
from controlplane.local.etcd import program

_NAMES = click.Choice(NAMES)
_ASKED = Settings()
_QUICK = Settings(rounds=1, trials=3, seconds=2.0, sizes=(1_000,))
#: Ports used are from the base on; the two clusters that run side by side are so far apart.
_PORTS_APART = 500
#: Exit codes: something was not measured; interrupted, as shells have it.
_INCOMPLETE, _INTERRUPTED = 1, 130


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=_NAMES, help="Measure just this; may be repeated.")
@click.option("--without", multiple=True, type=_NAMES, help="Leave this out; may be repeated.")
@click.option("--rounds", type=click.IntRange(1), help=f"How often the two take turns; {_ASKED.rounds} by default.")
@click.option("--trials", type=click.IntRange(1), help=f"Faults of each kind on each; {_ASKED.trials} by default.")
@click.option("--seconds", type=click.FloatRange(1.0), help=f"Length of one load; {_ASKED.seconds:g} by default.")
@click.option("--keys", multiple=True, type=click.IntRange(1), help="Sizes for restart, restore and memory; "
              f"{', '.join(f'{n}' for n in _ASKED.sizes)} by default.")  # fmt: skip
@click.option("--budget", type=click.FloatRange(1.0), metavar="MINUTES", help="Measure less, so that it takes so long.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the report here, not to stdout.")
@click.option("--port-base", type=click.IntRange(1_024, 31_700), default=29_000, show_default=True,
              help="1,000 ports from here on are used.")  # fmt: skip
@click.option("--quick", is_flag=True, help="One round, three trials, small sizes: that it works, not how fast.")
def main(
    only: Sequence[str],
    without: Sequence[str],
    rounds: int | None,
    trials: int | None,
    seconds: float | None,
    keys: tuple[int, ...],
    budget: float | None,
    out: Path | None,
    port_base: int,
    quick: bool,
) -> None:
    names = [name for name in NAMES if (not only or name in only) and name not in without]
    base = _QUICK if quick else _ASKED
    settings = Settings(rounds or base.rounds, trials or base.trials, seconds or base.seconds, keys or base.sizes)
    try:
        program("etcd"), program("etcdctl")
        if budget is not None:
            settings = fit(names, settings, budget * 60)
    except ConfigError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    minutes = sum(sum(expected(name, settings)) for name in names) / 60
    _say(f"{settings}: about {minutes:.0f} minutes on a quiet machine")
    progress = Progress(names, settings, time.monotonic, None if budget is None else budget * 60)
    began, failures = time.time(), dict[str, str]()
    interrupted = False
    with tempfile.TemporaryDirectory(prefix="quarterdeck-bench-", ignore_cleanup_errors=True) as folder:
        context = Context(None, Path(folder), settings, progress, _say, port_base)
        try:
            uvloop.run(_measure(names, context, failures))
        except (KeyboardInterrupt, asyncio.CancelledError):
            interrupted = True
            failures["the rest"] = "the run was interrupted"
    text = report(context, failures, _command_line(), began, time.time())
    if out is None:
        click.echo(text)
    else:
        out.write_text(text)
        _say(f"wrote {out}")
    sys.exit(_INTERRUPTED if interrupted else _INCOMPLETE if failures else 0)


async def _measure(names: Sequence[str], context: Context, failures: dict[str, str]) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    left = list(names)
    while left:
        own = left[0] in OWN_CLUSTERS
        together = _while_same(left, own)
        del left[: len(together)]
        if own:
            await _run(together, context, failures)
            continue
        async with (
            started(OURS, context.folder, context.port_base) as ours,
            started(PEER, context.folder, context.port_base + _PORTS_APART) as peer,
        ):
            context.running = (ours, peer)
            await _run(together, context, failures)
        context.running = None


def _while_same(names: Sequence[str], own: bool) -> Sequence[str]:
    """The first cases that can run on the same clusters."""
    end = next((i for i, name in enumerate(names) if (name in OWN_CLUSTERS) is not own), len(names))
    return names[:end]


async def _run(names: Sequence[str], context: Context, failures: dict[str, str]) -> None:
    for name in names:
        await context.begin(name)
        try:
            await CASES[name](context)
        except (RuntimeError, OSError, TimeoutError, QuarterdeckError, ValueError) as error:
            # The others can still be measured; the report and the exit code say that this was not.
            failures[name] = f"{type(error).__name__}: {error}"
            _say(f"{name} failed: {failures[name]}")


def _command_line() -> str:
    return " ".join(["python -m chaos.bench", *sys.argv[1:]])


def _say(text: str) -> None:
    click.echo(f"{datetime.now(UTC):%H:%M:%S} {text}", err=True)


if __name__ == "__main__":
    main()
