"""``qd chaos``: break the local cluster on purpose and judge what happened.

Exit codes: 0 every invariant held, 1 one was broken, 2 it cannot be run like this, 4 too little happened to tell (also:
a fault cannot be made here), 130 interrupted.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from chaos import experiment as experiments
from chaos.agent.cli import agent
from chaos.cli_common import EXIT_CODES, interruptible, newest_run, reached, say_to
from chaos.cli_soak import soak
from chaos.describe import describe_experiment, dry_run, faults_as_table, faults_here
from chaos.display import Display
from chaos.experiment import Experiment
from chaos.findings import Verdict, worst
from chaos.ground import NAMESPACE, WORKLOAD
from chaos.history import load
from chaos.load import Rates
from chaos.report import as_dict, bars_met, matrix, render, render_repeats, write_all
from chaos.runner import Run, heal_cluster
from chaos.runner import run as run_experiments
from chaos.steps import catalogue
from chaos.verdict import Report, judge_history
from controlplane.base.errors import ConfigError
from controlplane.base.rand import SystemRand
from controlplane.cli.bring_up import bring_up
from controlplane.cli.common import Settings, coroutine, err, settings_of
from controlplane.cli.options import output_option
from controlplane.cli.tables import table
from controlplane.client import GrpcClient
from controlplane.local.cluster import FOLDER, LocalCluster
from controlplane.local.spec import HOSTS, STORES
from controlplane.pb.k8s.apps_v1_pb2 import Deployment

__all__ = ["chaos"]

_EXAMPLE: Final = Path("examples/web.yaml")
_DEMO: Final = ("leader-kill", "node-kill", "scaling", "disaster")
_DEMO_ON_ETCD: Final = ("leader-kill", "store-leader-kill", "node-kill", "scaling", "disaster")
_DEMO_PODS: Final = 6
#: The tag of experiments that `make chaos` plays.
_SET: Final = "set"
_SEED_MAX: Final = 2**31 - 1


@click.group()
def chaos() -> None:
    """Break the local cluster on purpose, under load, and judge the recorded history."""


def _rate(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--rate",
        default=Rates().writes,
        show_default=True,
        type=click.FloatRange(min=1, max=500),
        help="Writes per second of each writer; there is one per replica.",
    )(function)


def _seed(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--seed", type=click.IntRange(0, _SEED_MAX), help="Makes the same choices again (victims, times)."
    )(function)


def _agents(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--agents", default="", metavar="HOST:PORT,...",
        help="Chaos agents of a cluster that is reached by --endpoints only, instead of the local one.",
    )(function)  # fmt: skip


def _if_started(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options for a cluster that is started if none runs here."""
    for option in (
        click.option("--replicas", default=3, show_default=True, help="Control-plane replicas, if it is started here."),
        click.option("--nodes", default=3, show_default=True, help="Node agents, if it is started here."),
        click.option("--port-base", default=7400, show_default=True, help="First port, if it is started here."),
        click.option(
            "--store", default="embedded", type=click.Choice(STORES), show_default=True,
            help="The store, if it is started here.",
        ),
        click.option("--tls/--no-tls", default=True, show_default=True, help="TLS, if it is started here."),
        click.option(
            "--hosts", default="loopback", type=click.Choice(HOSTS), show_default=True,
            help="What the processes run on, if it is started here.",
        ),
        click.option(
            "--apply", "manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=_EXAMPLE,
            show_default=True, help="The workload: a Deployment and a Service, both named web.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


async def _started(settings: Settings, **wanted: Any) -> LocalCluster:
    """The cluster that runs here, or a new one; with the workload at the demo's size."""
    cluster = await bring_up(settings.folder or Path(FOLDER), **wanted)
    async with GrpcClient(cluster.spec.endpoints, credentials=cluster.credentials()) as client:
        await client.patch(Deployment, WORKLOAD, {"spec": {"replicas": _DEMO_PODS}}, namespace=NAMESPACE)
    return cluster


@chaos.command()
@_if_started
@_rate
@_seed
@output_option
@click.pass_context
@coroutine
async def demo(context: click.Context, /, rate: float, seed: int | None, output: str, **wanted: Any) -> None:
    """The mission in four acts: a leader killed, a node killed, growth, and the loss of the whole control plane.

    Starts a cluster if none runs here, and leaves it running.
    """
    began = time.monotonic()
    cluster = await _started(settings_of(context), **wanted)
    known = catalogue()
    acts = [experiments.read(name, known) for name in (_DEMO_ON_ETCD if cluster.spec.store else _DEMO)]
    found = await interruptible(
        run_experiments(
            cluster, acts, name="demo", seed=_chosen(seed), rates=Rates(writes=rate), say=say_to(err),
            display=Display(err),
        )
    )  # fmt: skip
    _show(found.report, output)
    _where(found)
    err.print(f"{time.monotonic() - began:.0f} s in all; the cluster is left running")
    context.exit(EXIT_CODES[found.verdict])


@chaos.command("all")
@_if_started
@_rate
@_seed
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(min=1, max=1000), help="Trials of each.")
@click.option("--only", multiple=True, metavar="NAME", help="Of the set, only this one; can be given again.")
@click.pass_context
@coroutine
async def run_all(
    context: click.Context, /, rate: float, seed: int | None, repeat: int, only: Sequence[str], **wanted: Any
) -> None:
    """Run the set: every experiment that matters, one after the other, and a table at the end.

    Starts a cluster if none runs here, and leaves it running.
    """
    began = time.monotonic()
    chosen = _of_the_set(only)  # before anything is started
    cluster = await _started(settings_of(context), **wanted)
    verdict = await interruptible(_play(cluster, chosen, _chosen(seed), repeat, rate, "table"))
    err.print(f"{time.monotonic() - began:.0f} s in all; the cluster is left running")
    context.exit(EXIT_CODES[verdict])


def _of_the_set(only: Sequence[str]) -> list[Experiment]:
    """All of it, or these. Raises ConfigError: one is not in it."""
    known = catalogue()
    found = [e for e in (experiments.read(name, known) for name in experiments.names()) if _SET in e.tags]
    names = [e.name for e in found]
    if strange := [name for name in only if name not in names]:
        raise ConfigError(f"--only {strange[0]}: not in the set; it has: {', '.join(names)}")
    return [e for e in found if not only or e.name in only]


@chaos.command()
@click.argument("names", nargs=-1, metavar="NAME|FILE...")
@click.option("--all", "every", is_flag=True, help="Every experiment that fits this cluster.")
@_agents
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(min=1, max=1000), help="Trials of each.")
@_seed
@_rate
@output_option
@click.pass_context
@coroutine
async def run(
    context: click.Context,
    names: Sequence[str],
    every: bool,
    agents: str,
    repeat: int,
    seed: int | None,
    rate: float,
    output: str,
) -> None:
    """Run experiments on the running cluster, by name or file, once or many times under one load."""
    known = catalogue()
    if every == bool(names):
        raise ConfigError("name experiments or files, or --all; `qd chaos list` shows those there are")
    chosen = [experiments.read(name, known) for name in (experiments.names() if every else names)]
    with reached(settings_of(context), agents) as cluster:
        if every:
            chosen = [e for e in chosen if e.settings.store in ("", cluster.spec.store_kind)]
        verdict = await interruptible(_play(cluster, chosen, _chosen(seed), repeat, rate, output))
    context.exit(EXIT_CODES[verdict])


async def _play(
    cluster: LocalCluster, chosen: Sequence[Experiment], seed: int, repeat: int, rate: float, output: str
) -> Verdict:
    """Each in a run of its own; the table of all, or as JSON the array of their reports, if there are several."""
    reports: list[Report] = []
    verdicts: list[Verdict] = []
    err.print(f"seed {seed}  (the same choices again: --seed {seed})")
    for each in chosen:
        times = repeat if each.settings.repeatable else 1
        found = await run_experiments(
            cluster, [each], name=each.name, seed=seed, repeat=times, rates=Rates(writes=rate), say=say_to(err),
            display=Display(err),
        )  # fmt: skip
        reports.append(found.report)
        verdicts.append(found.verdict)
        if len(chosen) == 1 or (output == "table" and found.verdict is not Verdict.PASS):
            _show(found.report, output)
        elif output == "table":
            click.echo(f"{each.name}: {found.verdict.value}")
        _where(found)
    if len(chosen) > 1 and output == "json":
        click.echo(_json([as_dict(report) for report in reports]))
    elif len(chosen) > 1:
        click.echo()
        click.echo(matrix(reports))
        err.print(bars_met(reports), markup=False, highlight=False)
    return worst(verdicts)


@chaos.command("list")
@click.option("--faults", is_flag=True, help="The faults that experiments are made of, and whether they can be made.")
@_agents
@output_option
@click.pass_context
@coroutine
async def list_experiments(context: click.Context, faults: bool, agents: str, output: str) -> None:
    """List the experiments that come with the program, or the faults."""
    if faults:
        settings = settings_of(context)
        if agents:
            with reached(settings, agents, whole=False) as remote:
                found = await faults_here(remote)
        else:
            found = await faults_here(
                settings.local() if LocalCluster.exists(settings.folder or Path(FOLDER)) else None
            )
        click.echo(_json([asdict(each) for each in found]) if output == "json" else faults_as_table(found))
        return
    known = catalogue()
    all_of_them = [experiments.read(name, known) for name in experiments.names()]
    if output == "json":
        rows = [{"name": e.name, "title": e.title, "description": e.description, "tags": e.tags} for e in all_of_them]
        click.echo(_json(rows))
        return
    click.echo(table(["NAME", "WHAT IT DOES", "TAGS"], [[e.name, e.title, ", ".join(e.tags)] for e in all_of_them]))


@chaos.command()
@click.argument("name", metavar="NAME|FILE")
@coroutine
async def describe(name: str) -> None:
    """Say what an experiment does, step by step, and what it is judged by."""
    click.echo(describe_experiment(experiments.read(name, catalogue())))


@chaos.command("dry-run")
@click.argument("names", nargs=-1, required=True, metavar="NAME|FILE...")
@_agents
@_seed
@click.pass_context
@coroutine
async def dry_run_command(context: click.Context, names: Sequence[str], agents: str, seed: int | None) -> None:
    """Say what would be done to whom on this cluster now, and what would undo it. Does nothing."""
    known = catalogue()
    chosen = [experiments.read(name, known) for name in names]
    seed = _chosen(seed)
    click.echo(f"seed {seed}")
    with reached(settings_of(context), agents) as cluster:
        for each in chosen:
            click.echo(await dry_run(cluster, each, seed))


@chaos.command()
@_agents
@click.pass_context
@coroutine
async def heal(context: click.Context, agents: str) -> None:
    """Undo what a run that was killed has left broken, and start what does not run."""
    with reached(settings_of(context), agents, whole=False) as cluster:
        count = await interruptible(heal_cluster(cluster, say_to(err)))
    click.echo(f"healed {count}; every replica serves, every pod is Ready" if count else "nothing was left to undo")


@chaos.command()
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--agents",
    default="",
    metavar="HOST:PORT,...",
    help="Without FOLDER, the newest run at the cluster of these chaos agents; they are not asked.",
)
@output_option
@click.pass_context
@coroutine
async def report(context: click.Context, folder: Path | None, agents: str, output: str) -> None:
    """Write the reports of a run again (HTML, JUnit, JSON) and show them; without FOLDER, of the newest run here, at
    the local cluster or, by agents, at others."""
    if folder is None:
        folder = newest_run(settings_of(context), agents)
    elif not (folder / "history.jsonl").exists():
        raise ConfigError(f"{folder} is no run's folder: it has no history.jsonl; they are in .quarterdeck/chaos")
    judged = judge_history(load(folder / "history.jsonl"))
    written = await asyncio.to_thread(write_all, folder, judged)
    _show(judged, output)
    err.print("\n".join(str(path) for path in written))
    context.exit(EXIT_CODES[judged.verdict])


@chaos.command()
@click.argument("history", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@output_option
@click.pass_context
@coroutine
async def verify(context: click.Context, history: Path, output: str) -> None:
    """Judge a recorded history again, from the file alone."""
    judged = judge_history(load(history))
    _show(judged, output)
    context.exit(EXIT_CODES[judged.verdict])


@chaos.command("soak")
@_if_started
@_rate
@_seed
@click.option("--hours", required=True, type=click.FloatRange(min=0, min_open=True, max=1000), help="How long.")
@click.option("--minutes", default=5.0, show_default=True, type=click.FloatRange(0.25, 60), help="To each verdict.")
@click.pass_context
@coroutine
async def soak_command(
    context: click.Context, /, rate: float, seed: int | None, hours: float, minutes: float, **wanted: Any
) -> None:
    """Everything at once, for hours: random faults under load, with a verdict every few minutes.

    Starts a cluster if none runs here. Stops at the first verdict that is no pass. Keeps the newest runs only.
    """
    cluster = await _started(settings_of(context), **wanted)
    chosen = experiments.read("everything-at-once", catalogue())
    verdict = await interruptible(
        soak(cluster, chosen, seed=_chosen(seed), hours=hours, minutes=minutes, rates=Rates(writes=rate))
    )
    context.exit(EXIT_CODES[verdict])


chaos.add_command(agent)


def _chosen(seed: int | None) -> int:
    return SystemRand().randint(0, _SEED_MAX) if seed is None else seed


def _where(found: Run) -> None:
    err.print(f"history  {found.folder / 'history.jsonl'}  (judge it again: qd chaos verify FILE)")
    err.print(f"report   {found.folder / 'report.html'}  (seed {found.seed})")
    if found.cut_short:
        err.print(f"cut short: {found.cut_short}")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2)


def _show(judged: Report, output: str) -> None:
    if output == "json":
        click.echo(_json(as_dict(judged)))
        return
    click.echo(render(judged))
    if any(act.n > 1 for act in judged.acts):
        click.echo()
        click.echo(render_repeats(judged.acts))
