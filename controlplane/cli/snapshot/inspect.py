"""``qd snapshot inspect``: what is in a snapshot."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from controlplane.backup.contents import Contents, contents_of
from controlplane.backup.materialize import materialize, when
from controlplane.cli.common import coroutine, err, settings_of
from controlplane.cli.options import output_option
from controlplane.cli.snapshot.place import KEY_OPTION, local_place, scratch_folder
from controlplane.cli.tables import table

__all__ = ["inspect"]


@click.command()
@click.argument("path", required=False, metavar="[PATH|URL]")
@KEY_OPTION
@output_option
@click.pass_context
@coroutine
async def inspect(context: click.Context, path: str | None, key_file: Path | None, output: str) -> None:
    """Show what is in a snapshot file, or in the newest state of a directory or URL of backups: how many keys of each
    kind, and how big. By default of the local cluster's. The file is verified wholly."""
    location = path or local_place(settings_of(context))
    with scratch_folder() as scratch:
        found = materialize(location, key_file=key_file, scratch=scratch, say=err.print)
        contents = contents_of(found.path)
    if output == "json":
        click.echo(json.dumps(_as_dict(contents, found.snapshot, found.entries_replayed), indent=2))
    else:
        click.echo(_text(contents, found.snapshot, found.entries_replayed))


def _as_dict(contents: Contents, source: str, replayed: int) -> dict[str, object]:
    header = contents.info.header
    return {
        "snapshot": source,
        "entries_replayed": replayed,
        "cluster_id": f"{header.cluster_id:x}",
        "members": [member.name for member in header.members],
        "as_of_ms": header.created_at_ms,
        "revision": contents.revision,
        "compact_revision": contents.compact_revision,
        "index": header.index,
        "term": header.term,
        "state_hash": contents.state_hash,
        "keys": contents.keys,
        "leases": contents.leases,
        "users": contents.users,
        "auth_enabled": contents.auth_enabled,
        "file_bytes": contents.info.file_bytes,
        "resident_bytes": contents.resident_bytes,
        "groups": [asdict(group) for group in contents.groups],
    }


def _text(contents: Contents, source: str, replayed: int) -> str:
    header = contents.info.header
    lines = [
        ("snapshot", source + (f", and {replayed} entries of the log behind it" if replayed else "")),
        ("cluster", f"{header.cluster_id:x}"),
        ("members", ", ".join(member.name for member in header.members)),
        ("as of", when(header.created_at_ms)),
        ("revision", f"{contents.revision} (history since {contents.compact_revision})"),
        ("raft", f"index {header.index}, term {header.term}"),
        ("state hash", contents.state_hash),
        ("keys", str(contents.keys)),
        ("leases", str(contents.leases)),
        ("users", f"{contents.users}, authentication {'on' if contents.auth_enabled else 'off'}"),
        ("bytes", f"{contents.info.file_bytes} in the file, {contents.resident_bytes} in a replica's memory"),
    ]
    rows = [[group.prefix, str(group.keys), str(group.bytes)] for group in contents.groups]
    head = "\n".join(f"{name + ':':<12} {value}" for name, value in lines)
    return head + ("\n\n" + table(["PREFIX", "KEYS", "BYTES"], rows) if rows else "")
