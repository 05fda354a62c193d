"""``qd local``: a whole cluster on this machine, for ``make cluster`` and for hands."""

from __future__ import annotations

import asyncio
import shlex
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from controlplane.base.errors import ConfigError, StatusError
from controlplane.cli.common import Settings, coroutine, err, settings_of
from controlplane.cli.tables import table
from controlplane.client import GrpcClient, NotFoundError
from controlplane.local import etcdctl
from controlplane.local.cluster import FOLDER, LocalCluster
from controlplane.local.processes import ProcessError
from controlplane.local.restore import restore_replicas
from controlplane.local.spec import ARCHIVE, HOSTS, STORES, ClusterSpec, plan
from controlplane.local.unhealed import refuse_broken
from controlplane.pb.k8s.apps_v1_pb2 import Deployment
from controlplane.pb.k8s.core_v1_pb2 import Node, Service

__all__ = ["Waiter", "bring_up", "local", "restore_local", "wait_nodes", "wait_replicas"]

_POLL_S = 0.05
_START_LOOK_S = 0.3


class Waiter:
    """Waits for counts to be reached, shows how far they are, and fails with the reason when time is up.

    On a terminal a live bar per count; else one line when each is reached.
    """

    def __init__(self, cluster: LocalCluster, timeout_s: float, names: Sequence[str] = ()) -> None:
        self._cluster = cluster
        self._names = names or cluster.names
        self._deadline = time.monotonic() + timeout_s
        self._progress = Progress(
            TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=err
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if err.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if err.is_terminal:
            self._progress.stop()

    def show(self, what: str, done: int, total: int) -> bool:
        """Report a count; True when it is complete. Raises ProcessError when time is up or a process has died."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=min(done, total), total=total)
        if done >= total:
            if not err.is_terminal:
                err.print(f"{what}: {done}/{total}")
            return True
        self._cluster.check_alive(self._names)
        if time.monotonic() > self._deadline:
            raise ProcessError(
                f"{what}: {done} of {total}, and the time is up; the logs are in {self._cluster.root / 'logs'}"
            )
        return False


async def wait_replicas(cluster: LocalCluster, waiter: Waiter) -> None:
    """Return once every replica answers /readyz."""
    import aiohttp  # late: replicas load meanwhile, and a restore is in a hurry to start them

    timeout = aiohttp.ClientTimeout(total=1.0)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def ready(address: str) -> bool:
            try:
                async with session.get(f"http://{address}/readyz") as response:
                    return response.status == 200
            except (aiohttp.ClientError, TimeoutError):
                return False

        while True:
            answers = await asyncio.gather(*(ready(replica.metrics) for replica in cluster.spec.replicas))
            if waiter.show("replicas ready", sum(answers), len(answers)):
                return
            await asyncio.sleep(_POLL_S)


async def wait_nodes(cluster: LocalCluster, client: GrpcClient, waiter: Waiter) -> None:
    """Return once every node of the plan is Ready."""
    from controlplane.cli.printers import node_status

    wanted = {node.name for node in cluster.spec.nodes}
    while True:
        try:
            nodes = (await client.list(Node)).items
        except StatusError:
            nodes = []
        ready = {n.metadata.name for n in nodes if node_status(n) == "Ready"}
        if waiter.show("nodes ready", len(wanted & ready), len(wanted)):
            return
        await asyncio.sleep(_POLL_S)


async def _apply(client: GrpcClient, manifests: Sequence[dict[str, Any]], waiter: Waiter) -> None:
    deployments: list[tuple[str, str]] = []
    services: list[tuple[str, str]] = []
    for manifest in manifests:
        response = await client.apply(manifest)
        kind = response.object.WhichOneof("kind")
        if kind == "deployment":
            meta = response.object.deployment.metadata
            deployments.append((meta.namespace, meta.name))
        elif kind == "service":
            meta = response.object.service.metadata
            services.append((meta.namespace, meta.name))
    for namespace, name in deployments:
        while True:
            found = await client.get(Deployment, name, namespace=namespace)
            seen = found.status.observedGeneration >= found.metadata.generation
            if waiter.show(f"pods of {name} ready", found.status.readyReplicas if seen else 0, found.spec.replicas):
                break
            await asyncio.sleep(_POLL_S)
    for namespace, name in services:
        service = await client.get(Service, name, namespace=namespace)
        while not waiter.show(f"service {name} answers", int(await _answers(service)), 1):
            await asyncio.sleep(_POLL_S)


async def _answers(service: Service) -> bool:
    """Whether the VIP's first TCP port takes a connection and, for the HTTP servers we start, answers a request."""
    port = next((p.port for p in service.spec.ports if p.protocol in {"", "TCP"}), None)
    if port is None or service.spec.clusterIP in {"", "None"}:
        return True
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(service.spec.clusterIP, port)
        writer.write(b"GET / HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n")
        try:
            async with asyncio.timeout(1.0):
                return bool(await reader.read(1))
        finally:
            writer.close()
    except (OSError, TimeoutError):
        return False


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

    Ports: replica i has gRPC at base+10i, metrics at base+10i+1, peers at base+10i+2; node j has its agent at
    base+100+2j and metrics one above. With --store etcd three members of an etcd cluster hold the state, at base+10i+5
    and base+10i+6.
    """
    settings = settings_of(context)
    began = time.monotonic()
    cluster = await bring_up(
        settings.folder or Path(FOLDER),
        replicas=replicas,
        nodes=nodes,
        port_base=port_base,
        store=store,
        tls=tls,
        hosts=hosts,
        archive=_place_of(archive),
        manifest=manifest,
        timeout_s=timeout_s,
    )
    err.print(f"serving after {time.monotonic() - began:.1f} s")
    await _show(settings, cluster)


def _place_of(archive: str) -> str:
    """A path is one of the current directory's, but for the default, which is the cluster's own folder's."""
    if archive in ("off", ARCHIVE) or "://" in archive:
        return "" if archive == "off" else archive
    return str(Path(archive).absolute())


async def bring_up(
    root: Path,
    *,
    replicas: int,
    nodes: int,
    port_base: int,
    store: str = "embedded",
    tls: bool = True,
    hosts: str = "loopback",
    archive: str = ARCHIVE,
    manifest: Path | None = None,
    timeout_s: float = 60.0,
) -> LocalCluster:
    """Start the cluster of a folder, or what is missing of it, and return when it serves and the manifest's workload is
    ready. Whatever ends this early, Ctrl-C included, stops what it started and leaves running what ran before.

    Raises:
        ConfigError: a number is out of range, a port is taken, chaos has left something broken, or the folder holds a
            cluster of another shape.
        ProcessError: a process ended, or the time is up.
        KeyboardInterrupt: SIGINT or SIGTERM.
    """
    from controlplane.cli.write import read_manifests

    manifests = read_manifests([str(manifest)]) if manifest is not None else []  # before anything is started
    wanted = plan(
        replicas=replicas, nodes=nodes, port_base=port_base, store=store, tls=tls, hosts=hosts, archive=archive
    )
    cluster = _open_or_create(root, wanted)
    before = cluster.running()
    if len(before) == len(cluster.names):
        err.print(f"already running: {len(cluster.spec.replicas)} replicas, {len(cluster.spec.nodes)} nodes")
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    if task is None:
        raise ProcessError("a cluster is brought up from a task")
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, task.cancel)
    try:
        cluster.check_ports()
        for name in cluster.names:
            cluster.start(name)
        client = GrpcClient(cluster.spec.endpoints, credentials=cluster.credentials())
        try:
            with Waiter(cluster, timeout_s) as waiter:
                await wait_replicas(cluster, waiter)
                await wait_nodes(cluster, client, waiter)
                await _apply(client, manifests, waiter)
        finally:
            await client.close()
    except asyncio.CancelledError:
        _undo(cluster, before)
        raise KeyboardInterrupt from None
    except Exception:
        _undo(cluster, before)
        raise
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(signum)
    return cluster


def _open_or_create(root: Path, wanted: ClusterSpec) -> LocalCluster:
    if not LocalCluster.exists(root):
        return LocalCluster.create(root, wanted)
    refuse_broken(root)
    cluster = LocalCluster.open(root)
    if cluster.running() and _shape(cluster.spec) != _shape(wanted):
        err.print(
            f"the cluster here has {_words(cluster.spec)}; it is kept as it is. "
            "For another: make clean, or another folder"
        )
    elif _shape(cluster.spec) != _shape(wanted):
        raise ConfigError(
            f"{root} holds the data of a stopped cluster with {_words(cluster.spec)}. Start it with these, or "
            "remove it first: qd local down --destroy"
        )
    return cluster


def _shape(spec: ClusterSpec) -> tuple[int, int, int, str, bool, str]:
    return len(spec.replicas), len(spec.nodes), spec.port_base, spec.store_kind, spec.tls, spec.hosts


def _words(spec: ClusterSpec) -> str:
    replicas, nodes, port_base, store, tls, hosts = _shape(spec)
    return (
        f"REPLICAS={replicas} NODES={nodes} PORT_BASE={port_base} STORE={store} TLS={'on' if tls else 'off'} "
        f"HOSTS={hosts}"
    )


def _undo(cluster: LocalCluster, before: list[str]) -> None:
    """Stop what this command started; what ran before runs on."""
    started = [name for name in cluster.running() if name not in before]
    if started:
        err.print(f"stopping what was started: {', '.join(started)}")
    if before:
        for name in started:
            cluster.stop(name)
    else:
        cluster.down()


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
    await restore_local(settings_of(context).local(), path, yes=yes, timeout_s=timeout_s)


async def restore_local(
    cluster: LocalCluster, path: Path, *, yes: bool, force: bool = True, timeout_s: float = 60.0
) -> None:
    """What ``qd local restore`` does, and ``qd snapshot restore`` where no replica runs."""
    if not yes:
        click.confirm(f"Replace the data of {len(cluster.spec.replicas)} replicas by {path}?", abort=True, err=True)
    began = time.monotonic()
    # etcd's restore drives a member of its own: it has its own loop.
    if cluster.spec.store:
        from controlplane.local.etcd_restore import restore_store

        restored = await asyncio.to_thread(restore_store, cluster, path)
    else:
        restored = await asyncio.to_thread(restore_replicas, cluster, path, force=force)
    with Waiter(cluster, timeout_s, [r.name for r in cluster.spec.replicas]) as waiter:
        await wait_replicas(cluster, waiter)
    point = f"revision {restored.snapshot_revision}"
    if restored.created_at_ms:
        taken = datetime.fromtimestamp(restored.created_at_ms / 1000, UTC)
        point += f", {taken.isoformat(timespec='milliseconds')} ({time.time() - taken.timestamp():.0f} s ago)"
    err.print(
        f"restored {restored.keys} keys; recovery point: {point}; serving at revision {restored.revision} after "
        f"{time.monotonic() - began:.2f} s; state hash {restored.state_hash}"
    )


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
