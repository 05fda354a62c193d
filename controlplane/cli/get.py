"""``qd get``, ``qd events``, ``qd api-resources``: reading objects, once or as they change (``-w``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from controlplane.base.clock import SystemClock
from controlplane.base.errors import Code, ConfigError
from controlplane.base.rand import SystemRand
from controlplane.cli.common import Client, coroutine, err, settings_of
from controlplane.cli.kinds import KindType, short_names, targets
from controlplane.cli.options import all_namespaces_option, namespace_option
from controlplane.cli.show import Found, Show
from controlplane.cli.tables import table
from controlplane.client import ExpiredError, NotFoundError, UnavailableError, WatchType
from controlplane.client.backoff import Backoff
from controlplane.client.kinds import KINDS, KindInfo, info_of
from controlplane.pb.k8s.core_v1_pb2 import Event

__all__ = ["api_resources", "events", "follow", "get", "list_all"]

_PAGE = 500
#: Failures in a row after which a watch says that it is still trying.
_FAILURES_QUIET = 5


@click.command()
@click.argument("what", nargs=-1, type=KindType(), metavar="KIND [NAME]... | KIND/NAME...")
@namespace_option
@all_namespaces_option
@click.option("--selector", "-l", default="", help="Label selector, such as app=web,tier!=db.")
@click.option("--field-selector", default="", help="Field selector, such as spec.nodeName=node-1.")
@click.option("--output", "-o", type=click.Choice(["wide", "json", "yaml", "name"]), help="Instead of the table.")
@click.option("--watch", "-w", is_flag=True, help="After listing, print changes as they happen.")
@click.option("--no-headers", is_flag=True, help="Leave the heading row out.")
@click.option("--ignore-not-found", is_flag=True, help="An object that is not there is no error.")
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
    ignore_not_found: bool,
) -> None:
    """Show objects. Examples: qd get pods -o wide; qd get deploy/web -o yaml; qd get pods -l app=web -w"""
    wanted = targets(what)
    named = any(name for _, name in wanted)
    if watch and len(wanted) > 1:
        raise ConfigError("-w follows one kind or one object at a time")
    if named and (selector or field_selector):
        raise ConfigError("a name and a selector cannot go together: leave one out")
    if named and all_namespaces:
        raise ConfigError("an object cannot be named across all namespaces: say which with -n")
    several = len({info for info, _ in wanted}) > 1
    show = Show(output, namespaces=all_namespaces, headers=not no_headers, kind_in_name=several)
    client = settings_of(context).client()
    try:
        found: list[Found] = []
        missing: list[str] = []
        version = ""
        for info, name in wanted:
            where = _scope(info, namespace, all_namespaces)
            if not name:
                items, version = await list_all(client, info, where, selector, field_selector)
                found += [(info, item) for item in items]
                continue
            try:
                found.append((info, await client.get(info.message, name, namespace=where)))
            except NotFoundError as error:
                missing.append(error.message)
        if len(wanted) == 1 and named:
            for one in found:
                show.single(one)
        elif found or not show.tabular:
            show.listed(found)
        elif not (named or watch):
            namespaced = any(info.namespaced for info, _ in wanted) and not all_namespaces
            err.print(f"No resources found in {namespace} namespace." if namespaced else "No resources found.")
        if watch and not missing:
            info, name = wanted[0]
            fields = f"metadata.name={name}" if name else field_selector
            version = found[0][1].metadata.resourceVersion if name else version
            where = _scope(info, namespace, all_namespaces)
            await follow(client, show, info, where, selector, fields, version)
        if missing and not ignore_not_found:
            raise NotFoundError(Code.NOT_FOUND, "; ".join(missing), reason="NotFound")
    finally:
        await client.close()


def _scope(info: KindInfo, namespace: str, all_namespaces: bool) -> str:
    return namespace if info.namespaced and not all_namespaces else ""


async def list_all(
    client: Client, info: KindInfo, namespace: str, selector: str = "", field_selector: str = ""
) -> tuple[list[Any], str]:
    """Every object of a kind that is selected, page by page at one revision, and that revision."""
    items: list[Any] = []
    token = ""
    while True:
        page = await client.list(
            info.message,
            namespace=namespace,
            label_selector=selector,
            field_selector=field_selector,
            limit=_PAGE,
            continue_token=token,
        )
        items += page.items
        token = page.continue_token
        if not token:
            return items, page.resource_version


async def follow(
    client: Client,
    show: Show,
    info: KindInfo,
    namespace: str,
    selector: str,
    field_selector: str,
    version: str,
) -> None:
    """Print changes after ``version`` until interrupted.

    When a replica fails it goes on where it was, on another. Where it was may be gone (compacted, or from before a
    restore): then it lists again and says so.
    """
    clock = SystemClock()
    backoff = Backoff(SystemRand(), base_s=0.1, cap_s=2.0)
    failures = 0
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
                    failures = 0
                    version = event.resource_version or version
                    if event.object is None or event.type is WatchType.BOOKMARK:
                        continue
                    show.single((info, event.object))
        except UnavailableError as error:
            failures += 1  # the replica that served the stream went away: another goes on from the same revision
            if failures == _FAILURES_QUIET:
                err.print(f"still trying to watch {info.resource}: {error.message}")
        except ExpiredError:
            err.print(f"changes to {info.resource} were missed; listing again")
            items, version = await list_all(client, info, namespace, selector, field_selector)
            for item in items:
                show.single((info, item))
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
        if not name:
            raise ConfigError(f"--for {target}: want KIND/NAME, such as pod/web-1")
        fields = f"involvedObject.kind={info.kind},involvedObject.name={name}"
    scope = "" if all_namespaces else namespace
    event = info_of(Event)
    show = Show(namespaces=all_namespaces)
    client = settings_of(context).client()
    try:
        items, version = await list_all(client, event, scope, "", fields)
        if items:
            show.listed([(event, item) for item in items])
        elif not watch:
            err.print(f"No events found in {scope} namespace." if scope else "No events found.")
        if watch:
            await follow(client, show, event, scope, "", fields, version)
    finally:
        await client.close()


@click.command("api-resources")
def api_resources() -> None:
    """List the kinds this program knows."""
    rows = [[i.resource, ",".join(short_names(i)), i.api_version, str(i.namespaced).lower(), i.kind] for i in KINDS]
    click.echo(table(["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"], rows))
