"""``qd snapshot``: save the whole state online, look after the backups, bring a state back.

One module per verb, imported when it is used; this one only gathers them.
"""

from __future__ import annotations

import click

from controlplane.cli.lazy import LazyGroup

__all__ = ["snapshot"]

_HERE = "controlplane.cli.snapshot"
_VERBS = {
    "save": (f"{_HERE}.save", "save", "Save a snapshot, online, and verify it"),
    "cut": (f"{_HERE}.cut", "cut", "Have replicas cut a snapshot of their own now, and drop their log"),
    "list": (f"{_HERE}.list", "list_", "List the backups, and what can be restored"),
    "inspect": (f"{_HERE}.inspect", "inspect", "Show what is in a snapshot"),
    "verify": (f"{_HERE}.verify", "verify", "Check a snapshot, or all backups, wholly"),
    "restore": (f"{_HERE}.restore", "restore", "Bring a state back: all of it, a namespace, an object"),
    "export": (f"{_HERE}.export", "export", "Write the objects of a snapshot as manifests"),
    "import": (f"{_HERE}.import_", "import_", "Apply the manifests of an export"),
    "prune": (f"{_HERE}.prune", "prune_", "Remove backups that are not to be kept"),
    "keygen": (f"{_HERE}.keygen", "keygen", "Make a key for encrypted backups"),
}


@click.group(cls=LazyGroup, table=_VERBS)
def snapshot() -> None:
    """Save, look after, restore, export and import snapshots of the whole state, and the log archived beside them."""
