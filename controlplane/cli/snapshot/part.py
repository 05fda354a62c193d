"""A part of a snapshot back into the running cluster: a namespace, or one object, through the ordinary API."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from controlplane.base.errors import ConfigError
from controlplane.cli.common import Client, CommandError, Settings, api_error_text, err
from controlplane.cli.kinds import kind_of
from controlplane.client import ApiError, NotFoundError, UnavailableError
from controlplane.client.kinds import info_of
from controlplane.contents import (
    LAST_APPLIED,
    Contents,
    ObjectId,
    contents_of,
    differences,
    is_derived,
    without_server_fields,
)

__all__ = ["restore_part"]


async def restore_part(
    settings: Settings, path: Path, namespace: str | None, objects: Sequence[str], *, dry_run: bool
) -> None:
    """Create what is missing of the part, and put what has changed back to what the snapshot says. Nothing is deleted,
    and what controllers and agents make again is left to them.

    Raises:
        ConfigError: the snapshot has no such namespace or object.
        CommandError: something was refused; the rest is done.
    """
    contents = await asyncio.to_thread(contents_of, path)
    chosen = _named(contents, namespace or "default", objects) if objects else _of_namespace(contents, namespace or "")
    client = settings.client()
    refused: list[str] = []
    try:
        for which in chosen:
            try:
                await _put_back(client, which, contents.objects[which], dry_run=dry_run)
            except UnavailableError:
                raise
            except ApiError as error:
                refused.append(api_error_text(error))
    finally:
        await client.close()
    if refused:
        raise CommandError("\n".join(refused))


def _of_namespace(contents: Contents, namespace: str) -> list[ObjectId]:
    here = [
        which
        for which in contents.ordered()
        if which.namespace == namespace or which == ObjectId("Namespace", "", namespace)
    ]
    if not here:
        raise ConfigError(f"the snapshot has no namespace {namespace!r}")
    chosen = [which for which in here if not is_derived(contents.objects[which])]
    if len(chosen) < len(here):
        err.print(f"left out: {len(here) - len(chosen)} objects that controllers and agents make again")
    return chosen


def _named(contents: Contents, namespace: str, objects: Sequence[str]) -> list[ObjectId]:
    chosen = []
    for text in objects:
        word, _, name = text.partition("/")
        info = kind_of(word)
        which = ObjectId(info.kind, namespace if info.namespaced else "", name)
        if which not in contents.objects:
            raise ConfigError(f"the snapshot has no {which}; --namespace says where it stands")
        chosen.append(which)
    return chosen


async def _put_back(client: Client, which: ObjectId, obj: Any, *, dry_run: bool) -> None:
    info = info_of(type(obj))
    wanted = without_server_fields(obj)
    if applied := obj.metadata.annotations.get(LAST_APPLIED):
        wanted.metadata.annotations[LAST_APPLIED] = applied
    suffix = " (dry run)" if dry_run else ""
    try:
        live = await client.get(info.message, which.name, namespace=which.namespace)
    except NotFoundError:
        if not dry_run:
            await client.create(wanted)
        click.echo(f"+ {which} created{suffix}")
        return
    if live.metadata.HasField("deletionTimestamp"):
        raise CommandError(f"{which} is being deleted: try again when it is gone")
    # What the server set in the meantime is the live object's; so are owners.
    for name in ("uid", "resourceVersion", "creationTimestamp", "ownerReferences"):
        field = wanted.metadata.DESCRIPTOR.fields_by_name[name]
        if field.message_type is None:
            setattr(wanted.metadata, name, getattr(live.metadata, name))
        else:
            getattr(wanted.metadata, name).MergeFrom(getattr(live.metadata, name))
    if which.kind == "Pod":
        wanted.spec.nodeName = live.spec.nodeName
    now, then = Contents({which: live}), Contents({which: wanted})
    changed = list(differences(now, then))
    if not changed:
        click.echo(f"  {which} unchanged")
        return
    if not dry_run:
        await client.update(wanted)
    click.echo(f"~ {which} put back{suffix}")
    for path, before, after in changed[0].fields:
        click.echo(f"    {path}: {before!r} -> {after!r}")
