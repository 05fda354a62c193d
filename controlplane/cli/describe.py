"""``qd describe``: one object for reading: its fields as indented text, then its events."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click

from controlplane.cli.common import Client, coroutine, err, settings_of
from controlplane.cli.get import list_all
from controlplane.cli.kinds import KindType, targets
from controlplane.cli.options import namespace_option
from controlplane.cli.printers import headings, row
from controlplane.cli.tables import table
from controlplane.client.codec import to_dict
from controlplane.client.kinds import KindInfo, info_of
from controlplane.pb.k8s.core_v1_pb2 import Event, Pod

__all__ = ["describe", "outline"]

_HIDDEN = {"managedFields", "kubectl.kubernetes.io/last-applied-configuration"}
#: Fields whose keys are the user's own words, and shown as they are.
_MAPS = {
    "allocatable", "annotations", "binaryData", "capacity", "data", "labels", "limits", "matchLabels", "nodeSelector",
    "requests", "selector",
}  # fmt: skip


def outline(value: object, indent: int = 0, *, verbatim: bool = False) -> list[str]:
    """A JSON-like value as indented ``Key:  value`` lines. ``verbatim``: the keys are not fields of ours."""
    pad = "  " * indent
    lines: list[str] = []
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _HIDDEN or inner in ({}, []):
                continue
            label = f"{pad}{key if verbatim else key[:1].upper() + key[1:]}:"
            if isinstance(inner, (dict, list)):
                # A Service's selector is a map; a Deployment's is a message that has one.
                own_words = not verbatim and key in _MAPS and not (key == "selector" and "matchLabels" in inner)
                below = outline(inner, indent + 1, verbatim=own_words)
                lines += [label, *below] if below else []
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
@click.argument("what", nargs=-1, type=KindType(), metavar="KIND [NAME]... | KIND/NAME...")
@namespace_option
@click.option("--selector", "-l", default="", help="Label selector, instead of names.")
@click.pass_context
@coroutine
async def describe(context: click.Context, what: Sequence[str], namespace: str, selector: str) -> None:
    """Show objects in full, with their events; without a name, all of the kind."""
    wanted = targets(what)
    client = settings_of(context).client()
    number = 0
    try:
        for info, name in wanted:
            where = namespace if info.namespaced else ""
            if name:
                found = [await client.get(info.message, name, namespace=where)]
            else:
                found, _ = await list_all(client, info, where, selector)
            for obj in found:
                if number:
                    click.echo("\n")
                number += 1
                click.echo("\n".join(outline(to_dict(obj))))
                if info.kind == "Node":
                    await _pods_on(client, obj.metadata.name)
                await _events_of(client, info, obj)
        if not number:
            err.print(f"No resources found in {namespace} namespace.")
    finally:
        await client.close()


async def _pods_on(client: Client, node: str) -> None:
    info = info_of(Pod)
    pods, _ = await list_all(client, info, "", field_selector=f"spec.nodeName={node}")
    rows = [row(info, pod, time.time(), wide=False, namespaces=True) for pod in pods]
    text = table(headings(info, wide=False, namespaces=True), rows)
    click.echo("Pods:\n" + "\n".join(f"  {line}" for line in text.splitlines()))


async def _events_of(client: Client, info: KindInfo, obj: Any) -> None:
    fields = f"involvedObject.kind={info.kind},involvedObject.name={obj.metadata.name}"
    event = info_of(Event)
    found, _ = await list_all(client, event, obj.metadata.namespace or "default", field_selector=fields)
    found.sort(key=lambda e: e.lastTimestamp.seconds)
    rows = [row(event, e, time.time(), wide=False, namespaces=False) for e in found]
    if rows:
        text = table(headings(event, wide=False, namespaces=False), rows)
        click.echo("Events:\n" + "\n".join(f"  {line}" for line in text.splitlines()))
    else:
        click.echo("Events:  <none>")
