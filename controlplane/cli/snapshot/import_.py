"""``qd snapshot import``: manifests of an export, applied through the ordinary API."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from controlplane.base.errors import ConfigError
from controlplane.cli.common import CommandError, api_error_text, coroutine, err, settings_of
from controlplane.cli.kinds import label_of
from controlplane.client import ApiError, NotFoundError, UnavailableError
from controlplane.client.codec import from_dict, load_manifests, to_dict
from controlplane.client.kinds import info_of
from controlplane.contents import Contents, ObjectId, is_derived, without_server_fields
from controlplane.pb.quarterdeck.v1.api_pb2 import ApplyResponse

__all__ = ["import_"]

_WORD = {ApplyResponse.CREATED: "created", ApplyResponse.CONFIGURED: "configured", ApplyResponse.UNCHANGED: "unchanged"}


@click.command("import")
@click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER|FILE|-")
@click.option("--dry-run", is_flag=True, help="Let the server check and default, but store nothing.")
@click.pass_context
@coroutine
async def import_(context: click.Context, folder: Path, dry_run: bool) -> None:
    """Apply the manifests of an export, namespaces first. Again does nothing.

    What the server sets is left out, and so are objects that somebody makes again: Events, Nodes, EndpointSlices, and
    whatever a controller owns, such as the pods of a Deployment. Objects that are there and not in the manifests stay.
    """
    contents = _read(folder)
    refused: list[str] = []
    #: Of a dry run: namespaces that a real one would have made by then.
    to_come: set[str] = set()
    client = settings_of(context).client()
    try:
        for which in contents.ordered():
            obj = contents.objects[which]
            if is_derived(obj):
                continue
            try:
                response = await client.apply(to_dict(without_server_fields(obj)), dry_run=dry_run)
            except UnavailableError:
                raise
            except ApiError as error:
                if isinstance(error, NotFoundError) and which.namespace in to_come:
                    label = label_of(info_of(type(obj)), which.name)
                    click.echo(f"{label} created (dry run, not checked: its namespace is not there yet)")
                    continue
                refused.append(api_error_text(error))
                continue
            if dry_run and which.kind == "Namespace" and response.outcome == ApplyResponse.CREATED:
                to_come.add(which.name)
            suffix = " (server dry run)" if dry_run else ""
            click.echo(f"{label_of(info_of(type(obj)), which.name)} {_WORD[response.outcome]}{suffix}")
    finally:
        await client.close()
    skipped = sum(is_derived(obj) for obj in contents.objects.values())
    if skipped:
        err.print(f"left out: {skipped} objects that controllers and agents make again")
    if refused:
        raise CommandError("\n".join(refused))


def _read(folder: Path) -> Contents:
    found = Contents()
    for name, text in _texts(folder):
        try:
            for manifest in load_manifests(text):
                obj = from_dict(manifest)
                info = info_of(type(obj))
                if info.namespaced:
                    obj.metadata.namespace = obj.metadata.namespace or "default"
                found.objects[ObjectId(info.kind, obj.metadata.namespace, obj.metadata.name)] = obj
        except ApiError as error:
            raise ConfigError(f"{name}: {error.message}") from error
    if not found.objects:
        raise ConfigError(f"no manifest in {folder}")
    return found


def _texts(folder: Path) -> list[tuple[str, str]]:
    if str(folder) == "-":
        return [("standard input", sys.stdin.read())]
    try:
        files = sorted(folder.rglob("*.yaml")) if folder.is_dir() else [folder]
        return [(str(file), file.read_text()) for file in files]
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename or folder}: {error.strerror}") from error
