"""``qd local``: a whole cluster on this machine, for ``make cluster`` and for hands.

Owns these commands' words: what each takes and says. A start is ``bring_up``'s, a restore ``local_restore``'s.
"""

from __future__ import annotations

import asyncio
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from controlplane.cli.bring_up import bring_up, shape_of
from controlplane.cli.common import Settings, coroutine, err, settings_of
from controlplane.cli.local_restore import restore_local
from controlplane.cli.tables import table
from controlplane.client import GrpcClient, NotFoundError
from controlplane.local import etcdctl
from controlplane.local.cluster import FOLDER, LocalCluster
from controlplane.local.processes import ProcessError
from controlplane.local.spec import ARCHIVE, HOSTS, STORES
from controlplane.local.unhealed import refuse_broken
from controlplane.pb.k8s.core_v1_pb2 import Node

__all__ = ["local"]

_START_LOOK_S = 0.3


@click.group()
def local() -> None:
    """Run a whole cluster on this machine: every replica and every agent its own process."""


@local.command()
@click.option("--replicas", default=3, show_default=True, help="Control-plane replicas.")
@click.option("--nodes", default=3, show_default=True, help="Node agents.")
@click.option("--port-base", default=7400, show_default=True, help="First port of the cluster.")
@click.option(
    "--store", default="embedded", type=click.Choice(STORES), show_default=True, help="Where the state is kept."
)
@click.option("--tls/--no-tls", default=True, show_default=True, help="Certificates for everybody, made in pki/.")
@click.option(
    "--hosts",
    default="loopback",
    type=click.Choice(HOSTS),
    show_default=True,
    help="What processes run on: one loopback; the same behind relays; a network namespace each (root).",
)
@click.option(
    "--archive", default=ARCHIVE, show_default=True, metavar="PATH|URL|off", help="Where a new cluster backs up to."
)
@click.option(
    "--apply", "manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Then apply this file."
)
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds to wait until all serves.")
@click.pass_context
@coroutine
async def up(
    context: click.Context,
    replicas: int,
    nodes: int,
    port_base: int,
    store: str,
    tls: bool,
    hosts: str,
    archive: str,
    manifest: Path | None,
    timeout_s: float,
) -> None:
    """Start the cluster of this folder, or what is missing of it, and wait until it serves.

    The defaults are those of a new cluster: what is not said of one that is there is as it was.

    Ports: replica i has gRPC at base+10i, metrics at base+10i+1, peers at base+10i+2; node j has its agent at
    base+100+2j and metrics one above. With --store etcd three members of an etcd cluster hold the state, at base+10i+5
    and base+10i+6.
    """
    settings = settings_of(context)
    began = time.monotonic()
    root = settings.folder or Path(FOLDER)
    shape: dict[str, Any] = {
        "replicas": replicas,
        "nodes": nodes,
        "port_base": port_base,
        "store": store,
        "tls": tls,
        "hosts": hosts,
    }
    if LocalCluster.exists(root):
        there = shape_of(LocalCluster.open(root).spec)
        shape = {name: value if _said(context, name) else there[name] for name, value in shape.items()}
    cluster = await bring_up(root, **shape, archive=_place_of(archive), manifest=manifest, timeout_s=timeout_s)
    err.print(f"serving after {time.monotonic() - began:.1f} s")
    await _show(settings, cluster)


def _said(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


def _place_of(archive: str) -> str:
    """A path is one of the current directory's, but for the default, which is the cluster's own folder's."""
    if archive in ("off", ARCHIVE) or "://" in archive:
        return "" if archive == "off" else archive
    return str(Path(archive).absolute())


async def _show(settings: Settings, cluster: LocalCluster) -> None:
    console = Console(highlight=False, soft_wrap=True)
    scoped = Settings(tuple(cluster.spec.endpoints), cluster.root)
    from controlplane.cli import status as status_module

    found = await status_module.gather(scoped)
    status_module.render(found, console)
    spec = cluster.spec
    console.print()
    if spec.store:
        console.print(f"gRPC     {', '.join(spec.endpoints)}  (quarterdeck.v1 on each)")
        console.print(f"etcd     {', '.join(spec.kv_endpoints)}  (etcd itself: it holds the state)")
    else:
        console.print(f"gRPC     {', '.join(spec.endpoints)}  (etcd v3 and quarterdeck.v1 on each)")
    console.print(f"etcdctl  {etcdctl.line(cluster)} endpoint status -w table")
    if spec.archive:
        console.print(f"archive  {cluster.archive_location}  (snapshots, and the log up to a second ago)")
    console.print(f"metrics  {', '.join(f'http://{r.metrics}/metrics' for r in spec.replicas)}")
    console.print(f"logs     {cluster.root}/logs/*.log")
    console.print("try      .venv/bin/qd get pods -o wide")
    console.print(
        "         .venv/bin/qd scale deployment/web --replicas 12 && .venv/bin/qd rollout status deployment/web"
    )
    console.print(f"         .venv/bin/qd local kill {found.leader or 'r1'} && .venv/bin/qd status")


@local.command()
@click.option("--destroy", is_flag=True, help="Remove the data too.")
@click.pass_context
@coroutine
async def down(context: click.Context, destroy: bool) -> None:
    """Stop every process of the cluster; its data stays, and `up` goes on with it."""
    cluster = settings_of(context).local()
    count = len(cluster.running())
    for name in cluster.down():
        err.print(f"{name} did not stop in time and was killed")
    err.print(f"stopped {count} processes" if count else "nothing was running")
    if destroy:
        cluster.destroy()
        err.print(f"removed {cluster.root}")


@local.command()
@click.pass_context
@coroutine
async def env(context: click.Context) -> None:
    """Print the environment for etcdctl and qd: eval "$(qd local env)"."""
    cluster = settings_of(context).local()
    for name, value in etcdctl.environment(cluster).items():
        click.echo(f"export {name}={shlex.quote(value)}")
    click.echo(f"export QD_FOLDER={shlex.quote(str(cluster.root.resolve()))}")


@local.command("status")
@click.pass_context
@coroutine
async def local_status(context: click.Context) -> None:
    """List the processes of the cluster, running or not."""
    cluster = settings_of(context).local()
    rows = []
    for name in cluster.names:
        pid = cluster.processes.pid(name)
        rows.append([name, "running" if pid else "stopped", str(pid or "-"), str(cluster.processes.log_path(name))])
    click.echo(table(["NAME", "STATE", "PID", "LOG"], rows))


@local.command()
@click.argument("name")
@click.pass_context
@coroutine
async def start(context: click.Context, name: str) -> None:
    """Start one replica or agent that is stopped."""
    cluster = settings_of(context).local()
    refuse_broken(cluster.root)
    before = cluster.processes.pid(name)
    pid = cluster.start(name)
    if before is not None:
        err.print(f"{name} runs already, pid {pid}")
        return
    await _check_start(cluster, name)
    err.print(f"{name} runs, pid {pid}")


async def _check_start(cluster: LocalCluster, name: str) -> None:
    """Wrong settings and ports in use end a process at once: say so now, not at the next command."""
    await asyncio.sleep(_START_LOOK_S)
    cluster.check_alive([name])


@local.command()
@click.argument("name")
@click.pass_context
@coroutine
async def stop(context: click.Context, name: str) -> None:
    """Stop one replica or agent in good order (an agent stops its pods)."""
    killed = settings_of(context).local().stop(name)
    err.print(f"{name} had to be killed" if killed else f"{name} stopped")


@local.command()
@click.argument("name")
@click.option("--with-pods", is_flag=True, help="A node: kill its pods too, as when a machine dies.")
@click.option(
    "--signal", "signame", default="KILL", type=click.Choice(["KILL", "STOP", "CONT", "TERM"]), show_default=True
)
@click.pass_context
@coroutine
async def kill(context: click.Context, name: str, with_pods: bool, signame: str) -> None:
    """Kill one replica or agent without warning. An agent's pods run on unless --with-pods."""
    cluster = settings_of(context).local()
    if with_pods:
        err.print(f"{name} killed with {cluster.kill_node(name)} pods")
    elif cluster.kill(name, signal.Signals[f"SIG{signame}"]):
        err.print(f"SIG{signame} sent to {name}")
    else:
        raise ProcessError(f"{name} does not run")


@local.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask before the replicas' data directories are replaced.")
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds to wait until it serves.")
@click.pass_context
@coroutine
async def restore(context: click.Context, path: Path, yes: bool, timeout_s: float) -> None:
    """Bring the control plane back from a snapshot: new data directories for all replicas, then start them.

    Refused while a replica runs. Agents and pods run on through it; what was written after the snapshot is lost. With
    an etcd cluster as the store the file is one of `etcdctl snapshot save`, and the members get new data.
    """
    await restore_local(settings_of(context).local(), path, said=str(path), yes=yes, timeout_s=timeout_s)


@local.command("add-node")
@click.pass_context
@coroutine
async def add_node(context: click.Context) -> None:
    """Start one more node agent; it joins by itself."""
    cluster = settings_of(context).local()
    node = cluster.add_node()
    await _check_start(cluster, node.name)
    click.echo(node.name)


@local.command("remove-node")
@click.argument("name")
@click.pass_context
@coroutine
async def remove_node(context: click.Context, name: str) -> None:
    """Stop a node agent with its pods, forget it, and delete its Node object."""
    settings = settings_of(context)
    cluster = settings.local()
    cluster.remove_node(name)
    client = GrpcClient(cluster.spec.endpoints, credentials=cluster.credentials())
    try:
        await client.delete(Node, name)
    except NotFoundError:
        pass  # it never came so far as to register
    finally:
        await client.close()
    err.print(f"{name} removed")
