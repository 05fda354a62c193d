"""``qd snapshot``: save the whole state online, look after the backups, bring a state back.

One module per verb; this one only gathers them.
"""

from __future__ import annotations

import click

from controlplane.cli.snapshot.export import export
from controlplane.cli.snapshot.import_ import import_
from controlplane.cli.snapshot.inspect import inspect
from controlplane.cli.snapshot.keygen import keygen
from controlplane.cli.snapshot.list import list_
from controlplane.cli.snapshot.prune import prune_
from controlplane.cli.snapshot.restore import restore
from controlplane.cli.snapshot.save import save, save_snapshot
from controlplane.cli.snapshot.verify import verify

__all__ = ["save_snapshot", "snapshot"]


@click.group()
def snapshot() -> None:
    """Save, look after, restore, export and import snapshots of the whole state, and the log archived beside them."""


for _command in (save, list_, inspect, verify, restore, export, import_, prune_, keygen):
    snapshot.add_command(_command)
