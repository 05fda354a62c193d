"""``qd cordon``, ``uncordon``, ``drain``: taking nodes out of use and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import click

from controlplane.cli.common import coroutine, err, fail, settings_of
from controlplane.client import ConflictError, GrpcClient, NotFoundError
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod

__all__ = ["cordon", "drain", "uncordon"]


async def _mark(client: GrpcClient, name: str, unschedulable: bool) -> None:
    await client.patch(Node, name, {"spec": {"unschedulable": unschedulable or None}})
    click.echo(f"node/{name} {'cordoned' if unschedulable else 'uncordoned'}")


@click.command()
@click.argument("nodes", nargs=-1, required=True)
@click.pass_context
@coroutine
async def cordon(context: click.Context, nodes: Sequence[str]) -> None:
    """Mark nodes unschedulable: what runs there runs on, nothing new comes."""
    client = settings_of(context).client()
    try:
        for name in nodes:
            await _mark(client, name, unschedulable=True)
    finally:
        await client.close()


@click.command()
@click.argument("nodes", nargs=-1, required=True)
@click.pass_context
@coroutine
async def uncordon(context: click.Context, nodes: Sequence[str]) -> None:
    """Mark nodes schedulable again."""
    client = settings_of(context).client()
    try:
        for name in nodes:
            await _mark(client, name, unschedulable=False)
    finally:
        await client.close()


@click.command()
@click.argument("node")
@click.option("--grace-period", "grace_period_s", type=int, help="Seconds each pod gets; default: the pod's own.")
@click.option("--timeout", "timeout_s", type=float, default=120.0, show_default=True, help="Seconds until it gives up.")
@click.option("--force", is_flag=True, help="Also evict pods that no controller would replace.")
@click.pass_context
@coroutine
async def drain(context: click.Context, node: str, grace_period_s: int | None, timeout_s: float, force: bool) -> None:
    """Cordon a node and evict its pods; returns when none is left."""
    client = settings_of(context).client()
    try:
        await _mark(client, node, unschedulable=True)
        pods = await _pods_of(client, node)
        bare = [p.metadata.name for p in pods if not any(ref.controller for ref in p.metadata.ownerReferences)]
        if bare and not force:
            fail(f"no controller would replace {', '.join(bare)}; evict them with --force")
        deadline = time.monotonic() + timeout_s
        asked: set[str] = set()
        while True:
            for pod in pods:
                if pod.metadata.uid in asked:
                    continue
                try:
                    await client.evict(
                        pod.metadata.name, namespace=pod.metadata.namespace, grace_period_s=grace_period_s
                    )
                    err.print(f"evicting {pod.metadata.namespace}/{pod.metadata.name}")
                except (NotFoundError, ConflictError):
                    pass  # it went, or changed, in between; the next listing tells
                asked.add(pod.metadata.uid)
            pods = await _pods_of(client, node)
            if not pods:
                click.echo(f"node/{node} drained")
                return
            if time.monotonic() > deadline:
                left = ", ".join(p.metadata.name for p in pods)
                fail(f"still on {node} after {timeout_s:g} s: {left}")
            await asyncio.sleep(0.1)
    finally:
        await client.close()


async def _pods_of(client: GrpcClient, node: str) -> list[Pod]:
    return (await client.list(Pod, field_selector=f"spec.nodeName={node}")).items
