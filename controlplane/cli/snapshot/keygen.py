"""``qd snapshot keygen``: a key for encrypted backups."""

from __future__ import annotations

from pathlib import Path

import click

from controlplane.backup.keys import generate_key_file
from controlplane.cli.common import coroutine, err

__all__ = ["keygen"]


@click.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@coroutine
async def keygen(path: Path) -> None:
    """Make a secret key in a new file (mode 0600) and print its public key, the recipient.

    Backups are encrypted to the recipient and opened with the file, here or with the `age` tool. Keep the file away
    from the machines that are backed up, and keep it: without it the backups are lost.
    """
    recipient = generate_key_file(path)
    err.print(f"the secret key is in {path}; its public key, for --recipient:")
    click.echo(recipient)
