"""Starting the cluster of a folder until it serves: what ``qd local up`` does, and whoever wants a cluster to work on.

Owns the order of a start, what is refused before it, and what is undone when it fails. Must not know command lines of
processes (``local``) or what its caller says of the cluster afterwards.

- Nothing is started before the plan, the manifest and the ports are found good.
- A start that fails or is interrupted stops what it started and nothing else.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from controlplane.base.errors import ConfigError
from controlplane.cli.common import err
from controlplane.cli.waiting import POLL_S, Waiter, wait_nodes, wait_replicas
from controlplane.client import GrpcClient
from controlplane.local.cluster import LocalCluster
from controlplane.local.processes import ProcessError
from controlplane.local.spec import ARCHIVE, ClusterSpec, plan
from controlplane.local.unhealed import refuse_broken
from controlplane.pb.k8s.apps_v1_pb2 import Deployment
from controlplane.pb.k8s.core_v1_pb2 import Service

__all__ = ["bring_up", "shape_of"]


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
    if cluster.running() and shape_of(cluster.spec) != shape_of(wanted):
        err.print(
            f"the cluster here has {_words(cluster.spec)}; it is kept as it is. "
            "For another: make clean, or another folder"
        )
    elif shape_of(cluster.spec) != shape_of(wanted):
        raise ConfigError(
            f"{root} holds the data of a stopped cluster with {_words(cluster.spec)}. Start it with these, or "
            "remove it first: qd local down --destroy"
        )
    return cluster


def shape_of(spec: ClusterSpec) -> dict[str, Any]:
    """What :func:`bring_up` was asked for when the cluster was made, by the names of its arguments."""
    return {
        "replicas": len(spec.replicas),
        "nodes": len(spec.nodes),
        "port_base": spec.port_base,
        "store": spec.store_kind,
        "tls": spec.tls,
        "hosts": spec.hosts,
    }


def _words(spec: ClusterSpec) -> str:
    """The same as `make` takes it."""
    shape = shape_of(spec)
    return " ".join(f"{name.upper()}={_word(value)}" for name, value in shape.items())


def _word(value: object) -> object:
    return ("on" if value else "off") if isinstance(value, bool) else value


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
            await asyncio.sleep(POLL_S)
    for namespace, name in services:
        service = await client.get(Service, name, namespace=namespace)
        while not waiter.show(f"service {name} answers", int(await _answers(service)), 1):
            await asyncio.sleep(POLL_S)


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
