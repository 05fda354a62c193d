"""``qd snapshot verify``: is a file whole, and what is in it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from controlplane.cli.common import coroutine
from controlplane.recovery import verify as verify_file

__all__ = ["verify"]


@click.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@coroutine
async def verify(path: Path) -> None:
    """Check a snapshot file wholly: checksum, structure, and that a store can be built from it."""
    info, found = verify_file(path)
    header = info.header
    created = datetime.fromtimestamp(header.created_at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    for name, value in (
        ("file", path),
        ("format", f"{info.format_version} (state {header.state_format_version})"),
        ("cluster", f"{header.cluster_id:x}"),
        ("members", ", ".join(member.name for member in header.members)),
        ("created", created),
        ("revision", header.revision),
        ("raft", f"index {header.index}, term {header.term}"),
        ("keys", found.keys),
        ("state hash", found.state_hash),
        ("bytes", f"{info.file_bytes} ({info.state_bytes} uncompressed)"),
        ("sha256", info.sha256),
    ):
        click.echo(f"{name + ':':<12} {value}")
    click.echo("OK")
