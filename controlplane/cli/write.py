"""``qd apply``, ``delete``, ``scale``: changing objects."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from controlplane.base.errors import ConfigError
from controlplane.cli.common import coroutine, err, fail, settings_of
from controlplane.cli.kinds import KindType, Target, kind_of, targets
from controlplane.cli.options import namespace_option
from controlplane.client import ConflictError, GrpcClient, NotFoundError
from controlplane.client.codec import from_dict, load_manifests
from controlplane.client.kinds import info_of, unwrap_any
from controlplane.pb.quarterdeck.v1.api_pb2 import ApplyResponse

__all__ = ["apply", "delete", "scale"]

_WORD = {ApplyResponse.CREATED: "created", ApplyResponse.CONFIGURED: "configured", ApplyResponse.UNCHANGED: "unchanged"}


def read_manifests(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Every manifest of files, folders (``*.yaml``, ``*.yml``, ``*.json``, sorted) and ``-`` for standard input.

    Raises:
        ConfigError: a file is missing or is not YAML; names file and place.
    """
    manifests: list[dict[str, Any]] = []
    for path in paths:
        for name, text in _texts(path):
            try:
                manifests += load_manifests(text)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from error
    if not manifests:
        raise ConfigError(f"no manifest in {', '.join(paths)}")
    return manifests


def _texts(path: str) -> list[tuple[str, str]]:
    if path == "-":
        return [("standard input", sys.stdin.read())]
    where = Path(path)
    files = sorted(f for f in where.iterdir() if f.suffix in {".yaml", ".yml", ".json"}) if where.is_dir() else [where]
    try:
        return [(str(file), file.read_text()) for file in files]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


@click.command()
@click.option(
    "--filename", "-f", "filenames", multiple=True, required=True, help="File, folder, or - (standard input)."
)
@namespace_option
@click.option("--dry-run", is_flag=True, help="Let the server check and default, but store nothing.")
@click.pass_context
@coroutine
async def apply(context: click.Context, filenames: Sequence[str], namespace: str, dry_run: bool) -> None:
    """Create the objects of manifests, or bring them to what the manifests say."""
    manifests = read_manifests(filenames)
    client = settings_of(context).client()
    try:
        for manifest in manifests:
            response = await client.apply(manifest, default_namespace=namespace, dry_run=dry_run)
            obj = unwrap_any(response.object)
            for warning in response.warnings:
                err.print(f"warning: {warning}", markup=False)
            suffix = " (dry run)" if dry_run else ""
            click.echo(f"{info_of(type(obj)).kind.lower()}/{obj.metadata.name} {_WORD[response.outcome]}{suffix}")
    finally:
        await client.close()


@click.command()
@click.argument("what", nargs=-1, type=KindType(), metavar="KIND NAME... | KIND/NAME...")
@click.option("--filename", "-f", "filenames", multiple=True, help="Delete what these manifests name.")
@namespace_option
@click.option("--selector", "-l", default="", help="Delete every object of the kind that the selector matches.")
@click.option("--all", "everything", is_flag=True, help="Delete every object of the kind in the namespace.")
@click.option("--grace-period", "grace_period_s", type=int, help="Seconds a pod gets to stop; 0 forgets it at once.")
@click.option(
    "--cascade", type=click.Choice(["background", "foreground", "orphan"]), default="background", show_default=True,
    help="What becomes of dependents.",
)  # fmt: skip
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return when the objects are gone.")
@click.option("--ignore-not-found", is_flag=True, help="An object that is not there is no error.")
@click.pass_context
@coroutine
async def delete(
    context: click.Context,
    what: Sequence[str],
    filenames: Sequence[str],
    namespace: str,
    selector: str,
    everything: bool,
    grace_period_s: int | None,
    cascade: str,
    wait: bool,
    ignore_not_found: bool,
) -> None:
    """Delete objects by name, by selector, or those that manifests name."""
    client = settings_of(context).client()
    gone: list[tuple[Target, str, str]] = []
    missing = []
    try:
        for (info, name), where in await _chosen(client, what, filenames, namespace, selector, everything):
            try:
                await client.delete(
                    info.message,
                    name,
                    namespace=where,
                    grace_period_s=grace_period_s,
                    propagation_policy=cascade.capitalize(),
                )
            except NotFoundError as error:
                missing.append(error.message)
                continue
            click.echo(f'{info.kind.lower()} "{name}" deleted')
            gone.append(((info, name), where, ""))
        if wait:
            for (info, name), where, _ in gone:
                await _wait_gone(client, info, name, where)
    finally:
        await client.close()
    if missing and not ignore_not_found:
        fail("; ".join(missing))


async def _chosen(
    client: GrpcClient, what: Sequence[str], filenames: Sequence[str], namespace: str, selector: str, everything: bool
) -> list[tuple[Target, str]]:
    if filenames:
        chosen = []
        for manifest in read_manifests(filenames):
            obj = from_dict(manifest)
            info = info_of(type(obj))
            chosen.append(((info, obj.metadata.name), (obj.metadata.namespace or namespace) if info.namespaced else ""))
        return chosen
    wanted = targets(what)
    chosen = []
    for info, name in wanted:
        where = namespace if info.namespaced else ""
        if name:
            chosen.append(((info, name), where))
        elif selector or everything:
            page = await client.list(info.message, namespace=where, label_selector=selector)
            chosen += [((info, item.metadata.name), where) for item in page.items]
        else:
            raise ConfigError(f"name the {info.resource} to delete, or choose them with -l SELECTOR or --all")
    return chosen


async def _wait_gone(client: GrpcClient, info: Any, name: str, namespace: str) -> None:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        try:
            await client.get(info.message, name, namespace=namespace)
        except NotFoundError:
            return
        await asyncio.sleep(0.1)
    fail(f"{info.resource}/{name} is still there after 60 s; something holds it (see its finalizers)")


@click.command()
@click.argument("what", nargs=-1, type=KindType(), metavar="deployment/NAME | replicaset/NAME")
@click.option("--replicas", type=click.IntRange(0, 10_000), required=True, help="How many pods.")
@namespace_option
@click.pass_context
@coroutine
async def scale(context: click.Context, what: Sequence[str], replicas: int, namespace: str) -> None:
    """Set the number of replicas of a Deployment or ReplicaSet."""
    scalable = {kind_of("deployments").kind, kind_of("replicasets").kind}
    client = settings_of(context).client()
    try:
        for info, name in targets(what):
            if info.kind not in scalable or not name:
                raise ConfigError(f"{info.resource} cannot be scaled by this; name a deployment or replicaset")
            for _ in range(5):
                try:
                    await client.patch(info.message, name, {"spec": {"replicas": replicas}}, namespace=namespace)
                    break
                except ConflictError:
                    continue  # somebody wrote in between; the patch says only what we want, so again
            click.echo(f"{info.kind.lower()}/{name} scaled")
    finally:
        await client.close()
