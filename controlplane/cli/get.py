"""``qd get``, ``qd events``, ``qd api-resources``: reading objects, once or as they change (``-w``)."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import click
import yaml

from controlplane.base.clock import SystemClock
from controlplane.base.errors import Code, ConfigError
from controlplane.base.rand import SystemRand
from controlplane.cli.common import coroutine, err, settings_of
from controlplane.cli.kinds import KindType, short_names, targets
from controlplane.cli.options import all_namespaces_option, namespace_option
from controlplane.cli.printers import headings, row
from controlplane.cli.tables import table
from controlplane.client import GrpcClient, NotFoundError, UnavailableError, WatchType
from controlplane.client.backoff import Backoff
from controlplane.client.codec import to_dict
from controlplane.client.kinds import KINDS, KindInfo, info_of
from controlplane.pb.k8s.core_v1_pb2 import Event

__all__ = ["api_resources", "events", "get"]


@click.command()
@click.argument("what", nargs=-1, type=KindType(), metavar="KIND [NAME]... | KIND/NAME...")
@namespace_option
@all_namespaces_option
@click.option("--selector", "-l", default="", help="Label selector, such as app=web,tier!=db.")
@click.option("--field-selector", default="", help="Field selector, such as spec.nodeName=node-1.")
@click.option("--output", "-o", type=click.Choice(["wide", "json", "yaml", "name"]), help="Instead of the table.")
@click.option("--watch", "-w", is_flag=True, help="After listing, print changes as they happen.")
@click.option("--no-headers", is_flag=True, help="Leave the heading row out.")
@click.pass_context
@coroutine
async def get(
    context: click.Context,
    what: Sequence[str],
    namespace: str,
    all_namespaces: bool,
    selector: str,
    field_selector: str,
    output: str | None,
    watch: bool,
    no_headers: bool,
) -> None:
    """Show objects. Examples: qd get pods -o wide; qd get deploy/web -o yaml; qd get pods -l app=web -w"""
    wanted = targets(what)
    if watch and len(wanted) > 1:
        raise ConfigError("-w follows one kind or one object at a time")
    scope = "" if all_namespaces else namespace
    client = settings_of(context).client()
    try:
        found: list[tuple[KindInfo, Any]] = []
        version = ""
        missing: list[str] = []
        for info, name in wanted:
            where = scope if info.namespaced else ""
            if name:
                try:
                    found.append((info, await client.get(info.message, name, namespace=where or namespace)))
                except NotFoundError as error:
                    missing.append(error.message)
            else:
                items, version = await _list_all(client, info, where, selector, field_selector)
                found += [(info, item) for item in items]
        one = len(wanted) == 1 and bool(wanted[0][1])
        _print(found, output, namespaces=all_namespaces, no_headers=no_headers, one=one)
        if not found and not missing and output in {None, "wide"} and not watch:
            err.print(f"No resources found in {scope} namespace." if scope else "No resources found.")
        if watch and not missing:
            info, name = wanted[0]
            fields = f"metadata.name={name}" if name else field_selector
            version = found[0][1].metadata.resourceVersion if name else version
            where = scope if info.namespaced else ""
            await _follow(client, info, where, selector, fields, version, output, all_namespaces)
        if missing:
            raise NotFoundError(Code.NOT_FOUND, "; ".join(missing), reason="NotFound")
    finally:
        await client.close()


async def _list_all(
    client: GrpcClient, info: KindInfo, namespace: str, selector: str, field_selector: str
) -> tuple[list[Any], str]:
    items: list[Any] = []
    token = ""
    while True:
        page = await client.list(
            info.message,
            namespace=namespace,
            label_selector=selector,
            field_selector=field_selector,
            limit=500,
            continue_token=token,
        )
        items += page.items
        token = page.continue_token
        if not token:
            return items, page.resource_version


def _print(
    found: list[tuple[KindInfo, Any]], output: str | None, *, namespaces: bool, no_headers: bool, one: bool
) -> None:
    if output == "name":
        for info, obj in found:
            click.echo(f"{info.kind.lower()}/{obj.metadata.name}")
        return
    if output in {"json", "yaml"}:
        if not found and one:
            return
        dicts = [to_dict(obj) for _, obj in found]
        document: object = dicts[0] if one else {"apiVersion": "v1", "kind": "List", "items": dicts}
        text = (
            json.dumps(document, indent=2) if output == "json" else yaml.safe_dump(document, sort_keys=False).rstrip()
        )
        click.echo(text)
        return
    now = time.time()
    groups: dict[str, list[tuple[KindInfo, Any]]] = {}
    for info, obj in found:
        groups.setdefault(info.kind, []).append((info, obj))
    for number, rows in enumerate(groups.values()):
        if number:
            click.echo()
        info = rows[0][0]
        objects = sorted((o for _, o in rows), key=_order)
        cells = [row(info, o, now, wide=output == "wide", namespaces=namespaces) for o in objects]
        text = table(headings(info, wide=output == "wide", namespaces=namespaces), cells)
        click.echo(text.partition("\n")[2] if no_headers else text)


def _order(obj: Any) -> tuple[Any, ...]:
    if isinstance(obj, Event):
        return (obj.lastTimestamp.seconds or obj.metadata.creationTimestamp.seconds, obj.metadata.name)
    return (obj.metadata.namespace, obj.metadata.name)


async def _follow(
    client: GrpcClient,
    info: KindInfo,
    namespace: str,
    selector: str,
    field_selector: str,
    version: str,
    output: str | None,
    namespaces: bool,
) -> None:
    """Print changes until interrupted; over replica failures it goes on where it was."""
    clock = SystemClock()
    backoff = Backoff(SystemRand(), base_s=0.1, cap_s=2.0)
    while True:
        try:
            async with client.watch(
                info.message,
                namespace=namespace,
                label_selector=selector,
                field_selector=field_selector,
                resource_version=version,
            ) as stream:
                async for event in stream:
                    backoff.reset()
                    version = event.resource_version or version
                    if event.object is None or event.type is WatchType.BOOKMARK:
                        continue
                    _print([(info, event.object)], output, namespaces=namespaces, no_headers=True, one=True)
        except UnavailableError:
            pass  # the replica that served the stream went away: another one goes on from the same revision
        await clock.sleep(backoff.next_s())


@click.command()
@namespace_option
@all_namespaces_option
@click.option("--for", "target", default="", metavar="KIND/NAME", help="Only events about this object.")
@click.option("--watch", "-w", is_flag=True, help="Print events as they happen.")
@click.pass_context
@coroutine
async def events(context: click.Context, namespace: str, all_namespaces: bool, target: str, watch: bool) -> None:
    """List events, oldest first."""
    fields = ""
    if target:
        info, name = targets([target])[0]
        fields = f"involvedObject.kind={info.kind},involvedObject.name={name}"
    scope = "" if all_namespaces else namespace
    event = info_of(Event)
    client = settings_of(context).client()
    try:
        items, version = await _list_all(client, event, scope, "", fields)
        _print([(event, item) for item in items], None, namespaces=all_namespaces, no_headers=False, one=False)
        if watch:
            await _follow(client, event, scope, "", fields, version, None, all_namespaces)
    finally:
        await client.close()


@click.command("api-resources")
@coroutine
async def api_resources() -> None:
    """List the kinds this program knows."""
    rows = [[i.resource, ",".join(short_names(i)), i.api_version, str(i.namespaced).lower(), i.kind] for i in KINDS]
    click.echo(table(["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"], rows))
