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
from controlplane.cli.common import Client, CommandError, api_error_text, coroutine, err, fail, settings_of
from controlplane.cli.get import list_all
from controlplane.cli.kinds import KindType, kind_of, label_of, targets, title_of
from controlplane.cli.options import Seconds, all_namespaces_option, namespace_option
from controlplane.client import ApiError, NotFoundError, UnavailableError
from controlplane.client.codec import DocumentError, load_manifests
from controlplane.client.kinds import KINDS, KindInfo, info_of, unwrap_any
from controlplane.pb.quarterdeck.v1.api_pb2 import ApplyResponse

__all__ = ["apply", "delete", "read_manifests", "scale"]

_WORD = {ApplyResponse.CREATED: "created", ApplyResponse.CONFIGURED: "configured", ApplyResponse.UNCHANGED: "unchanged"}
_SUFFIXES = {".yaml", ".yml", ".json"}
_POLL_S = 0.1

#: One object to delete: kind, namespace ("" for the cluster's own), name.
_Chosen = tuple[KindInfo, str, str]


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
            except DocumentError as error:
                raise ConfigError(f"{name}: {error}") from error
    if not manifests:
        raise ConfigError(f"no manifest in {', '.join(paths)}")
    return manifests


def _texts(path: str) -> list[tuple[str, str]]:
    if path == "-":
        return [("standard input", sys.stdin.read())]
    where = Path(path)
    try:
        files = sorted(f for f in where.iterdir() if f.suffix in _SUFFIXES) if where.is_dir() else [where]
        return [(str(file), file.read_text()) for file in files]
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename or path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: it is not UTF-8 text") from error


@click.command()
@click.option(
    "--filename", "-f", "filenames", multiple=True, required=True, help="File, folder, or - (standard input)."
)
@namespace_option
@click.option(
    "--dry-run", type=click.Choice(["none", "server"]), is_flag=False, flag_value="server", default="none",
    help="Let the server check and default, but store nothing.",
)  # fmt: skip
@click.pass_context
@coroutine
async def apply(context: click.Context, filenames: Sequence[str], namespace: str, dry_run: str) -> None:
    """Create the objects of manifests, or bring them to what the manifests say.

    A manifest that is refused does not keep the others from being applied; the exit code is 1 if any was.
    """
    manifests = read_manifests(filenames)
    refused: list[str] = []
    client = settings_of(context).client()
    try:
        for manifest in manifests:
            try:
                response = await client.apply(manifest, default_namespace=namespace, dry_run=dry_run == "server")
            except UnavailableError:
                raise
            except ApiError as error:
                refused.append(api_error_text(error))
                continue
            obj = unwrap_any(response.object)
            for warning in response.warnings:
                err.print(f"Warning: {warning}")
            suffix = " (server dry run)" if dry_run == "server" else ""
            click.echo(f"{label_of(info_of(type(obj)), obj.metadata.name)} {_WORD[response.outcome]}{suffix}")
    finally:
        await client.close()
    if refused:
        raise CommandError("\n".join(refused))


@click.command()
@click.argument("what", nargs=-1, type=KindType(), metavar="KIND NAME... | KIND/NAME...")
@click.option("--filename", "-f", "filenames", multiple=True, help="Delete what these manifests name.")
@namespace_option
@all_namespaces_option
@click.option("--selector", "-l", default="", help="Delete every object of the kind that the selector matches.")
@click.option("--all", "everything", is_flag=True, help="Delete every object of the kind in the namespace.")
@click.option(
    "--grace-period", "grace_period_s", type=click.IntRange(-1), default=-1,
    help="Seconds a pod gets to stop; 0 forgets it at once; default: its own.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="As --grace-period 0.")
@click.option(
    "--cascade", type=click.Choice(["background", "foreground", "orphan"]), default="background", show_default=True,
    help="What becomes of dependents.",
)  # fmt: skip
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return when the objects are gone.")
@click.option("--timeout", "timeout_s", type=Seconds(), default=60.0, show_default=True, help="How long to wait.")
@click.option("--ignore-not-found", is_flag=True, help="An object that is not there is no error.")
@click.pass_context
@coroutine
async def delete(
    context: click.Context,
    what: Sequence[str],
    filenames: Sequence[str],
    namespace: str,
    all_namespaces: bool,
    selector: str,
    everything: bool,
    grace_period_s: int,
    force: bool,
    cascade: str,
    wait: bool,
    timeout_s: float,
    ignore_not_found: bool,
) -> None:
    """Delete objects by name, by selector, or those that manifests name."""
    if bool(what) == bool(filenames):
        raise ConfigError("say what to delete: KIND NAME, KIND/NAME, KIND -l SELECTOR, KIND --all, or -f FILE")
    grace = 0 if force else None if grace_period_s < 0 else grace_period_s
    client = settings_of(context).client()
    gone: list[tuple[_Chosen, str]] = []
    missing = []
    try:
        if filenames:
            chosen = _of_manifests(read_manifests(filenames), namespace)
        else:
            chosen = await _of_words(client, what, namespace, all_namespaces, selector, everything)
        for info, where, name in chosen:
            try:
                last = await client.delete(
                    info.message,
                    name,
                    namespace=where,
                    grace_period_s=grace,
                    propagation_policy=cascade.capitalize(),
                )
            except NotFoundError as error:
                if not selector and not everything:  # else it went by itself in between
                    missing.append(error)
                continue
            click.echo(f'{title_of(info)} "{name}" deleted')
            gone.append(((info, where, name), last.metadata.uid))
        if wait:
            await _wait_gone(client, gone, timeout_s)
    finally:
        await client.close()
    if missing and not ignore_not_found:
        raise CommandError("\n".join(api_error_text(error) for error in missing))


def _of_manifests(manifests: Sequence[dict[str, Any]], namespace: str) -> list[_Chosen]:
    """What manifests name; the rest of them is not looked at."""
    chosen: list[_Chosen] = []
    for manifest in manifests:
        metadata = manifest.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        said = (manifest.get("apiVersion"), manifest.get("kind"))
        info = next((i for i in KINDS if (i.api_version, i.kind) == said), None)
        if info is None:
            raise ConfigError(f"unknown kind {said[1]!r} in version {said[0]!r}; `qd api-resources` lists all")
        if not isinstance(name, str) or not name:
            raise ConfigError(f"a manifest of kind {info.kind} has no metadata.name")
        assert isinstance(metadata, dict)
        chosen.append((info, str(metadata.get("namespace") or namespace) if info.namespaced else "", name))
    return chosen


async def _of_words(
    client: Client, what: Sequence[str], namespace: str, all_namespaces: bool, selector: str, everything: bool
) -> list[_Chosen]:
    chosen: list[_Chosen] = []
    for info, name in targets(what):
        where = namespace if info.namespaced and not all_namespaces else ""
        if name:
            if selector or everything or all_namespaces:
                raise ConfigError("a name cannot go together with -l, --all or -A: leave one out")
            chosen.append((info, where, name))
        elif selector or everything:
            items, _ = await list_all(client, info, where, selector)
            chosen += [(info, item.metadata.namespace, item.metadata.name) for item in items]
        else:
            raise ConfigError(f"name the {info.resource} to delete, or choose them with -l SELECTOR or --all")
    if not chosen:
        err.print("No resources found.")
    return chosen


async def _wait_gone(client: Client, gone: Sequence[tuple[_Chosen, str]], timeout_s: float) -> None:
    """Return when each is gone, or another has its name."""
    deadline = time.monotonic() + timeout_s
    for (info, where, name), uid in gone:
        while True:
            try:
                found = await client.get(info.message, name, namespace=where)
            except NotFoundError:
                break
            if found.metadata.uid != uid:
                break
            if time.monotonic() >= deadline:
                held = ", ".join(found.metadata.finalizers)
                why = f"its finalizers hold it: {held}" if held else "its node has not let go of it, or dependents live"
                fail(f"{label_of(info, name)} is still there after {timeout_s:g} s; {why}")
            await asyncio.sleep(_POLL_S)


@click.command()
@click.argument("what", nargs=-1, type=KindType(), metavar="deployment/NAME | replicaset/NAME")
@click.option("--replicas", type=click.IntRange(0, 10_000), required=True, help="How many pods.")
@namespace_option
@click.pass_context
@coroutine
async def scale(context: click.Context, what: Sequence[str], replicas: int, namespace: str) -> None:
    """Set the number of replicas of a Deployment or ReplicaSet."""
    scalable = {kind_of("deployments"), kind_of("replicasets")}
    wanted = targets(what)
    for info, name in wanted:
        if info not in scalable or not name:
            raise ConfigError(f"{info.resource} cannot be scaled by this; name a deployment or replicaset")
    client = settings_of(context).client()
    try:
        for info, name in wanted:
            # No version in the patch: the server itself tries again when somebody writes in between.
            await client.patch(info.message, name, {"spec": {"replicas": replicas}}, namespace=namespace)
            click.echo(f"{label_of(info, name)} scaled")
    finally:
        await client.close()
