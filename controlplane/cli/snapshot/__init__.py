"""``qd snapshot``: save the whole state online, check a file, seed the members of a new cluster from one.

One module per verb; this one only gathers them.
"""

from __future__ import annotations

import click

from controlplane.cli.snapshot.export import export
from controlplane.cli.snapshot.import_ import import_
from controlplane.cli.snapshot.restore import restore
from controlplane.cli.snapshot.save import save, save_snapshot
from controlplane.cli.snapshot.verify import verify

__all__ = ["save_snapshot", "snapshot"]


@click.group()
def snapshot() -> None:
    """Save, verify, restore, export and import snapshots of the whole state."""


for _command in (save, verify, restore, export, import_):
    snapshot.add_command(_command)
