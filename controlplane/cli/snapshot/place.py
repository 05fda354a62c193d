"""What the verbs of ``qd snapshot`` share: where backups lie by default, whose they are, and keys."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from controlplane.backup.keys import parse_recipient, read_identities, read_recipients
from controlplane.backup.materialize import choose_cluster
from controlplane.backup.objects import is_url, open_objects
from controlplane.backup.repository import Keys, Repository
from controlplane.base.errors import ConfigError
from controlplane.cli.common import Settings, err, find_folder
from controlplane.local.cluster import LocalCluster

__all__ = [
    "CLUSTER_OPTION",
    "KEY_OPTION",
    "is_repository",
    "keys_of",
    "local_place",
    "open_repository",
    "scratch_folder",
]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

KEY_OPTION = click.option(
    "--key-file",
    type=_FILE,
    envvar="QUARTERDECK_KEY_FILE",
    help="Secret key (qd snapshot keygen) of encrypted backups.",
)
CLUSTER_OPTION = click.option("--cluster", metavar="ID", help="Whose, if several have backups there; else the newest.")


def local_place(settings: Settings) -> str:
    """Where the local cluster's backups lie.

    Raises:
        ConfigError: there is no local cluster here.
    """
    folder = settings.folder or find_folder()
    if folder is None or not LocalCluster.exists(folder):
        raise ConfigError("there is no local cluster here: name a directory or URL")
    return LocalCluster.open(folder).archive_location or str(folder / "snapshots")


def is_repository(location: str) -> bool:
    """Whether a location is a place for many snapshots, rather than one file."""
    if is_url(location):
        return not location.partition("?")[0].endswith((".qdsnap", ".age"))
    return location.endswith("/") or Path(location).is_dir()


def open_repository(location: str, cluster: str | None, keys: Keys | None = None) -> Repository:
    """The backups of one cluster.

    Raises:
        ConfigError: the id is no number, or the location is no place for backups.
        NotCoveredError: there are none.
        StorageError: the store cannot be reached.
    """
    if not is_url(location) and Path(location).is_file():
        raise ConfigError(f"{location} is a file, not a directory of backups")
    objects = open_objects(location)
    cluster_id, note = choose_cluster(objects, cluster_number(cluster))
    if note:
        err.print(note)
    return Repository(objects, cluster_id, keys)


def cluster_number(cluster: str | None) -> int | None:
    """A cluster's id, as ``qd status`` and ``list`` show it. Raises ConfigError."""
    try:
        return None if cluster is None else int(cluster, 16)
    except ValueError as error:
        raise ConfigError(f"cluster {cluster!r}: want its id, hexadecimal, as `qd snapshot list` shows it") from error


def keys_of(key_file: Path | None, recipients: Sequence[str] = (), recipients_file: Path | None = None) -> Keys:
    """What the options say. Raises ConfigError."""
    public = [parse_recipient(text) for text in recipients]
    if recipients_file is not None:
        public += read_recipients(recipients_file)
    return Keys(tuple(public), tuple(read_identities(key_file)) if key_file is not None else ())


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """For files that are thrown away, for nobody else's eyes."""
    with tempfile.TemporaryDirectory(prefix="qd-snapshot-") as folder:
        yield Path(folder)
