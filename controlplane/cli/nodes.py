"""``qd cordon``, ``uncordon``, ``drain``: taking nodes out of use and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import click

from controlplane.base.errors import ConfigError
from controlplane.cli.common import Client, coroutine, err, fail, settings_of
from controlplane.cli.get import list_all
from controlplane.cli.options import Seconds
from controlplane.client import ConflictError, NotFoundError
from controlplane.client.kinds import info_of
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod

__all__ = ["cordon", "drain", "uncordon"]

_POLL_S = 0.1


def _node_name(word: str) -> str:
    """``node-1``, ``node/node-1`` or ``no/node-1`` -> ``node-1``."""
    kind, slash, name = word.rpartition("/")
    if slash and kind not in {"node", "nodes", "no"}:
        raise ConfigError(f"{word}: want a node, such as node-1")
    return name


async def _mark(client: Client, name: str, *, unschedulable: bool) -> None:
    done = "cordoned" if unschedulable else "uncordoned"
    if (await client.get(Node, name)).spec.unschedulable == unschedulable:
        click.echo(f"node/{name} already {done}")
        return
    await client.patch(Node, name, {"spec": {"unschedulable": unschedulable or None}})
    click.echo(f"node/{name} {done}")


async def _mark_all(context: click.Context, words: Sequence[str], *, unschedulable: bool) -> None:
    names = [_node_name(word) for word in words]
    client = settings_of(context).client()
    try:
        for name in names:
            await _mark(client, name, unschedulable=unschedulable)
    finally:
        await client.close()


@click.command()
@click.argument("nodes", nargs=-1, required=True)
@click.pass_context
@coroutine
async def cordon(context: click.Context, nodes: Sequence[str]) -> None:
    """Mark nodes unschedulable: what runs there runs on, nothing new comes."""
    await _mark_all(context, nodes, unschedulable=True)


@click.command()
@click.argument("nodes", nargs=-1, required=True)
@click.pass_context
@coroutine
async def uncordon(context: click.Context, nodes: Sequence[str]) -> None:
    """Mark nodes schedulable again."""
    await _mark_all(context, nodes, unschedulable=False)


@click.command()
@click.argument("node")
@click.option("--grace-period", "grace_period_s", type=int, help="Seconds each pod gets; default: the pod's own.")
@click.option("--timeout", "timeout_s", type=Seconds(), default=120.0, show_default=True, help="When it gives up.")
@click.option("--force", is_flag=True, help="Also evict pods that no controller would replace.")
@click.option("--ignore-daemonsets", is_flag=True, hidden=True, help="Accepted for kubectl's sake: there are none.")
@click.option("--delete-emptydir-data", is_flag=True, hidden=True, help="Accepted for kubectl's sake: always so.")
@click.pass_context
@coroutine
async def drain(
    context: click.Context,
    node: str,
    grace_period_s: int | None,
    timeout_s: float,
    force: bool,
    ignore_daemonsets: bool,
    delete_emptydir_data: bool,
) -> None:
    """Cordon a node and evict its pods; returns when none is left."""
    name = _node_name(node)
    grace = grace_period_s if grace_period_s is not None and grace_period_s >= 0 else None
    client = settings_of(context).client()
    try:
        await _mark(client, name, unschedulable=True)
        pods = await _pods_of(client, name)
        bare = [_label(pod) for pod in pods if not _replaced(pod)]
        if bare and not force:
            fail(
                f"cannot evict pods that no controller would replace (use --force to lose them): {', '.join(bare)}; "
                f"node/{name} stays cordoned"
            )
        await _evict_all(client, name, pods, grace, timeout_s)
        click.echo(f"node/{name} drained")
    finally:
        await client.close()


async def _evict_all(client: Client, node: str, pods: list[Pod], grace_period_s: int | None, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    asked: set[str] = set()
    while pods:
        for pod in pods:
            if pod.metadata.uid in asked or pod.metadata.HasField("deletionTimestamp"):
                continue
            try:
                await client.evict(pod.metadata.name, namespace=pod.metadata.namespace, grace_period_s=grace_period_s)
                err.print(f"evicting pod {_label(pod)}")
                asked.add(pod.metadata.uid)
            except (NotFoundError, ConflictError):
                pass  # it went, or changed, in between; the next listing tells
        pods = await _pods_of(client, node)
        if pods and time.monotonic() >= deadline:
            fail(f"still on {node} after {timeout_s:g} s: {', '.join(_label(pod) for pod in pods)}")
        if pods:
            await asyncio.sleep(_POLL_S)


async def _pods_of(client: Client, node: str) -> list[Pod]:
    pods, _ = await list_all(client, info_of(Pod), "", field_selector=f"spec.nodeName={node}")
    return pods


def _replaced(pod: Pod) -> bool:
    """Whether evicting it loses nothing: a controller makes another, or it has ended anyway."""
    return any(ref.controller for ref in pod.metadata.ownerReferences) or pod.status.phase in {"Succeeded", "Failed"}


def _label(pod: Pod) -> str:
    return f"{pod.metadata.namespace}/{pod.metadata.name}"
