"""``qd describe``: one object for reading: its fields as indented text, then its events."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click

from controlplane.base.errors import ConfigError
from controlplane.cli.common import coroutine, settings_of
from controlplane.cli.kinds import KindType, targets
from controlplane.cli.options import namespace_option
from controlplane.cli.printers import headings, row
from controlplane.cli.tables import table
from controlplane.client import GrpcClient
from controlplane.client.codec import to_dict
from controlplane.client.kinds import KindInfo, info_of
from controlplane.pb.k8s.core_v1_pb2 import Event, Pod

__all__ = ["describe", "outline"]

_HIDDEN = {"managedFields", "kubectl.kubernetes.io/last-applied-configuration"}


def outline(value: object, indent: int = 0) -> list[str]:
    """A JSON-like value as indented ``Key:  value`` lines."""
    pad = "  " * indent
    lines: list[str] = []
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _HIDDEN or inner in ({}, []):
                continue
            label = f"{pad}{key[:1].upper()}{key[1:]}:"
            if isinstance(inner, (dict, list)):
                lines += [label, *outline(inner, indent + 1)]
            elif isinstance(inner, str) and "\n" in inner:
                lines += [label, *(f"{pad}  {line}" for line in inner.splitlines())]
            else:
                lines.append(f"{label:<{24 + 2 * indent}} {inner}")
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, (dict, list)):
                block = outline(inner, indent + 1)
                lines += [f"{pad}- {block[0].strip()}", *block[1:]] if block else [f"{pad}-"]
            else:
                text = str(inner).splitlines() or [""]
                lines += [f"{pad}- {text[0]}", *(f"{pad}  {line}" for line in text[1:])]
    else:
        lines.append(f"{pad}{value}")
    return lines


@click.command()
@click.argument("what", nargs=-1, type=KindType(), metavar="KIND NAME... | KIND/NAME...")
@namespace_option
@click.pass_context
@coroutine
async def describe(context: click.Context, what: Sequence[str], namespace: str) -> None:
    """Show objects in full, with their events."""
    client = settings_of(context).client()
    try:
        for number, (info, name) in enumerate(targets(what)):
            if not name:
                raise ConfigError(f"name the {info.resource} to describe")
            if number:
                click.echo()
            obj = await client.get(info.message, name, namespace=namespace if info.namespaced else "")
            click.echo("\n".join(outline(to_dict(obj))))
            if info.kind == "Node":
                await _pods_on(client, name)
            await _events_of(client, info, obj)
    finally:
        await client.close()


async def _pods_on(client: GrpcClient, node: str) -> None:
    pods = (await client.list(Pod, field_selector=f"spec.nodeName={node}")).items
    info = info_of(Pod)
    rows = [row(info, pod, time.time(), wide=False, namespaces=True) for pod in pods]
    text = table(headings(info, wide=False, namespaces=True), rows)
    click.echo("Pods:\n" + "\n".join(f"  {line}" for line in text.splitlines()))


async def _events_of(client: GrpcClient, info: KindInfo, obj: Any) -> None:
    fields = f"involvedObject.kind={info.kind},involvedObject.name={obj.metadata.name}"
    found = (await client.list(Event, namespace=obj.metadata.namespace or "default", field_selector=fields)).items
    event = info_of(Event)
    found.sort(key=lambda e: e.lastTimestamp.seconds)
    rows = [row(event, e, time.time(), wide=False, namespaces=False) for e in found]
    if rows:
        text = table(headings(event, wide=False, namespaces=False), rows)
        click.echo("Events:\n" + "\n".join(f"  {line}" for line in text.splitlines()))
    else:
        click.echo("Events:  <none>")
