"""Source trees of earlier releases, for rolling upgrades: which commit each release is, and how its tree is had.

Owns the list of releases. A release's tag is taken where it is there; the commit written down here is the same one, and
works in clones that have no tags. Needs git and the whole history: a shallow clone is refused, never skipped.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from controlplane.base.errors import ConfigError

__all__ = ["RELEASES", "newest", "source_of"]

#: Version -> commit. Append a line with every release: the newest one is where an upgrade to this tree starts from.
RELEASES: Final[Mapping[str, str]] = {
    "0.1.0": "022d078b4ddadba7d09a2a2d1e83b5a4ddf8ad74",
}
_REPOSITORY: Final = Path(__file__).resolve().parents[1]


def newest() -> str:
    """The last release."""
    return list(RELEASES)[-1]


def source_of(version: str, into: Path, *, repository: Path = _REPOSITORY) -> Path:
    """Unpack the release's source tree into ``into`` (made if missing) and return it; what is there already is kept.

    Raises:
        ConfigError: there is no such release, no git, or the clone does not have the commit.
    """
    if version not in RELEASES:
        raise ConfigError(f"no release {version!r}; there are: {', '.join(RELEASES)}")
    if (into / "controlplane").is_dir():
        return into
    commit = _commit_of(version, repository)
    archive = _git(repository, "archive", "--format=tar", commit)
    if archive.returncode != 0:
        raise ConfigError(f"git cannot read release {version} ({commit}): {archive.stderr.decode(errors='replace')}")
    into.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tree:
        tree.extractall(into, filter="data")
    return into


def _commit_of(version: str, repository: Path) -> str:
    for name in (f"refs/tags/v{version}", RELEASES[version]):
        found = _git(repository, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        if found.returncode == 0:
            return found.stdout.decode().strip()
    raise ConfigError(
        f"release {version} (commit {RELEASES[version]}) is not in the clone at {repository}: it is shallow, or "
        "no clone. Run there: git fetch --unshallow --tags"
    )


def _git(repository: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, check=False)  # noqa: S607
    except FileNotFoundError as error:
        raise ConfigError("there is no git here: an earlier release is taken from the repository's history") from error
