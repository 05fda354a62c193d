"""``qd chaos``: break the local cluster on purpose and judge what happened.

Exit codes: 0 every invariant held, 1 one was broken, 4 too little happened to tell, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from chaos.acts import ACTS, demo_acts
from chaos.findings import Verdict
from chaos.history import load
from chaos.load import Rates
from chaos.play import NAMESPACE, WORKLOAD, Run, play
from chaos.report import as_dict, render, render_repeats
from chaos.verdict import Report, judge_history
from controlplane.base.errors import ConfigError
from controlplane.cli.common import Settings, coroutine, err, settings_of
from controlplane.cli.local import bring_up
from controlplane.client import GrpcClient
from controlplane.local.cluster import FOLDER, LocalCluster
from controlplane.local.spec import STORES
from controlplane.pb.k8s.apps_v1_pb2 import Deployment

__all__ = ["chaos"]

EXIT_CODES: Final = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INCONCLUSIVE: 4}
_EXAMPLE: Final = Path("examples/web.yaml")
_DEMO_PODS: Final = 6

T = TypeVar("T")


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


def _output(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--output", "-o", type=click.Choice(["table", "json"]), default="table", show_default=True
    )(function)  # fmt: skip


@chaos.command()
@click.option("--replicas", default=3, show_default=True, help="Control-plane replicas, if it is started here.")
@click.option("--nodes", default=3, show_default=True, help="Node agents, if it is started here.")
@click.option("--port-base", default=7400, show_default=True, help="First port, if it is started here.")
@click.option(
    "--store",
    default="embedded",
    type=click.Choice(STORES),
    show_default=True,
    help="The store, if it is started here.",
)
@click.option("--tls/--no-tls", default=True, show_default=True, help="TLS, if it is started here.")
@click.option(
    "--apply",
    "manifest",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=_EXAMPLE,
    show_default=True,
    help="The workload: a Deployment and a Service, both named web.",
)
@_rate
@_output
@click.pass_context
@coroutine
async def demo(
    context: click.Context,
    replicas: int,
    nodes: int,
    port_base: int,
    store: str,
    tls: bool,
    manifest: Path,
    rate: float,
    output: str,
) -> None:
    """The mission in four acts: a leader killed, a node killed, growth, and the loss of the whole control plane.

    Starts a cluster if none runs here, and leaves it running.
    """
    began = time.monotonic()
    settings = settings_of(context)
    cluster = await bring_up(
        settings.folder or Path(FOLDER),
        replicas=replicas,
        nodes=nodes,
        port_base=port_base,
        store=store,
        tls=tls,
        manifest=manifest,
    )
    run = await _interruptible(_demo(cluster, rate))
    _show(run.report, output)
    err.print(f"history  {run.folder / 'history.jsonl'}  (judge it again: qd chaos verify FILE)")
    err.print(f"{time.monotonic() - began:.0f} s in all; the cluster is left running")
    context.exit(EXIT_CODES[run.report.verdict])


async def _demo(cluster: LocalCluster, rate: float) -> Run:
    async with GrpcClient(cluster.spec.endpoints, credentials=cluster.credentials()) as client:
        await client.patch(Deployment, WORKLOAD, {"spec": {"replicas": _DEMO_PODS}}, namespace=NAMESPACE)
    return await play(cluster, demo_acts(cluster.spec.store_kind), rates=Rates(writes=rate), say=_say())


@chaos.command()
@click.argument("act", type=click.Choice(list(ACTS)))
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(min=1, max=1000), help="Times to play it.")
@_rate
@_output
@click.pass_context
@coroutine
async def run(context: click.Context, act: str, repeat: int, rate: float, output: str) -> None:
    """Play one act on the running cluster, once or many times under one load."""
    cluster = _running(settings_of(context))
    if act not in demo_acts(cluster.spec.store_kind):
        raise ConfigError(f"{act} needs a cluster whose store is etcd: make cluster STORE=etcd")
    found = await _interruptible(play(cluster, [act], repeat=repeat, rates=Rates(writes=rate), say=_say()))
    _show(found.report, output)
    err.print(f"history  {found.folder / 'history.jsonl'}")
    context.exit(EXIT_CODES[found.report.verdict])


@chaos.command("list")
def list_acts() -> None:
    """List the acts."""
    for name, act in ACTS.items():
        text = " ".join((act.__doc__ or "").split())
        click.echo(f"{name:<12} {text.partition('. ')[0].rstrip('.')}")


@chaos.command()
@click.argument("history", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_output
@click.pass_context
@coroutine
async def verify(context: click.Context, history: Path, output: str) -> None:
    """Judge a recorded history again, from the file alone."""
    report = judge_history(load(history))
    _show(report, output)
    context.exit(EXIT_CODES[report.verdict])


def _show(report: Report, output: str) -> None:
    if output == "json":
        click.echo(json.dumps(as_dict(report), indent=2))
        return
    click.echo(render(report))
    if any(act.n > 1 for act in report.acts):
        click.echo()
        click.echo(render_repeats(report.acts))


def _say() -> Callable[[str], None]:
    began = time.monotonic()

    def say(text: str) -> None:
        err.print(f"{time.monotonic() - began:6.2f}  {text}", markup=False)

    return say


def _running(settings: Settings) -> LocalCluster:
    cluster = settings.local()
    stopped = [name for name in cluster.names if name not in cluster.running()]
    if stopped:
        raise ConfigError(f"not running: {', '.join(stopped)}; chaos needs a whole cluster to begin with: qd local up")
    return cluster


async def _interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Run it; Ctrl-C cancels it once, so that its clean-up (healing the cluster) runs to its end.

    Raises:
        KeyboardInterrupt: after that.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if interrupted:
            err.print("healing the cluster; a moment")
            return
        interrupted = True
        task.cancel()

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(signum)
