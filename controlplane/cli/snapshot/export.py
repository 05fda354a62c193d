"""``qd snapshot export``: a snapshot's objects as plain manifests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from controlplane.base.errors import ConfigError
from controlplane.cli.common import coroutine, err
from controlplane.cli.snapshot.source import Source, snapshot_file, source_options
from controlplane.client.codec import dump_yaml, to_dict
from controlplane.client.kinds import info_of
from controlplane.contents import Contents, ObjectId, contents_of

__all__ = ["export"]

#: The folder of objects that stand in no namespace.
CLUSTER_FOLDER = "_cluster"


@click.command()
@click.argument("source")
@click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER|-")
@click.option("--events", is_flag=True, help="Events too.")
@source_options
@coroutine
async def export(
    source: str,
    folder: Path,
    events: bool,
    to_revision: int | None,
    to_time: str | None,
    key_file: Path | None,
    cluster: str | None,
) -> None:
    """Write the objects of a snapshot as manifests: a file per namespace and kind in FOLDER, or one stream (-).

    SOURCE is a snapshot file, or a folder or URL of backups. Objects come as they were, with what the server sets;
    import leaves that out. Values are in plain text, those of Secrets and passwords in ConfigMaps too: keep the files
    as you would keep those. Keys of the etcd API that are no objects are not exported.
    """
    async with snapshot_file(Source(source, to_revision, to_time, key_file, cluster)) as path:
        found = await asyncio.to_thread(contents_of, path)
    chosen = [which for which in found.ordered() if events or which.kind != "Event"]
    if str(folder) == "-":
        click.echo(_stream(found, chosen), nl=False)
    else:
        _files(found, chosen, folder)
    others = f"; {len(found.keys)} keys that are no objects are left out" if found.keys else ""
    err.print(f"exported {len(chosen)} objects{others}")


def _stream(found: Contents, chosen: list[ObjectId]) -> str:
    return "---\n".join(dump_yaml(to_dict(found.objects[which])) for which in chosen)


def _files(found: Contents, chosen: list[ObjectId], folder: Path) -> None:
    files: dict[tuple[str, str], list[ObjectId]] = {}
    for which in chosen:
        resource = info_of(type(found.objects[which])).resource
        files.setdefault((which.namespace or CLUSTER_FOLDER, resource), []).append(which)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                f"{folder} is not empty: name a new folder, so that nothing old is taken for the snapshot's"
            )
        for (namespace, resource), ids in files.items():
            (folder / namespace).mkdir(parents=True, exist_ok=True)
            (folder / namespace / f"{resource}.yaml").write_text(_stream(found, ids))
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename or folder}: {error.strerror}") from error
