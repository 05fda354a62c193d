"""Where everything of an agent is on disk. Owns names and paths, and how a file is replaced whole.

::

    STATE/
      format.json                       format version of everything below; version 0.1 wrote none
      lock                              held by the running agent
      podips.json                       the pod range and the address given last
      pods/UID/                         one pod
        NAME/                           working directory of container NAME
        .agent/pod.pb                   the pod as last assigned (k8s.io.api.core.v1.Pod)
        .agent/pod.json                 its address and when it was accepted
        .agent/containers/ID.json       one run of a container: pid, pgid, start time, how it ended
        .logs/NAME/ATTEMPT.log[.N]      what a run printed; N counts rotations, 1 is the youngest
        .volumes/VOLUME/                emptyDir and configMap volumes

Container and volume names are DNS labels, so they never begin with a dot; every name that becomes a path is checked
here again, because it came over the network. Files are replaced by rename. They are not fsynced: a power cut ends the
pods too, and an unreadable record then counts as none.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Final

from controlplane.base.errors import ConfigError

__all__ = ["FORMAT_VERSION", "Layout", "UnsafeNameError", "read_json", "write_atomic", "write_json"]

#: Of everything below the state directory. Fields may be added without a new one: who does not know them skips them.
FORMAT_VERSION: Final = 1

_SAFE: Final = re.compile(r"[A-Za-z0-9][-A-Za-z0-9._]{0,252}")


class UnsafeNameError(ConfigError):
    """A name from the network cannot be a file's name."""


def _safe(kind: str, name: str) -> str:
    if not _SAFE.fullmatch(name):
        raise UnsafeNameError(f"{kind} {name!r} cannot name a directory: want letters, digits, '-', '_' and '.'")
    return name


class Layout:
    """Paths under one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.root = state_dir.absolute()
        self.pods = self.root / "pods"
        self._format = self.root / "format.json"

    def prepare(self) -> None:
        """Create the directories, and say of which format they are. Call with the lock held.

        Raises:
            OSError: the directory cannot be written.
            ConfigError: a newer agent has worked here: what it left cannot be taken over.
        """
        marked = read_json(self._format)
        version = (marked or {}).get("version", 1)
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise ConfigError(
                f"{self._format}: format version {version}, this agent reads up to {FORMAT_VERSION}; start the newer "
                f"agent that wrote it"
            )
        self.pods.mkdir(parents=True, exist_ok=True)
        if marked is None or version != FORMAT_VERSION:
            write_json(self._format, {"version": FORMAT_VERSION})

    def pod(self, uid: str) -> Path:
        return self.pods / _safe("pod uid", uid)

    def pod_manifest(self, uid: str) -> Path:
        return self.pod(uid) / ".agent" / "pod.pb"

    def pod_facts(self, uid: str) -> Path:
        return self.pod(uid) / ".agent" / "pod.json"

    def records(self, uid: str) -> Path:
        return self.pod(uid) / ".agent" / "containers"

    def record(self, uid: str, container_id: str) -> Path:
        return self.records(uid) / f"{_safe('container id', container_id)}.json"

    def container_dir(self, uid: str, name: str) -> Path:
        return self.pod(uid) / _safe("container", name)

    def log(self, uid: str, name: str, attempt: int) -> Path:
        return self.pod(uid) / ".logs" / _safe("container", name) / f"{attempt}.log"

    def volumes(self, uid: str) -> Path:
        return self.pod(uid) / ".volumes"

    def volume(self, uid: str, name: str) -> Path:
        return self.volumes(uid) / _safe("volume", name)

    def pod_uids(self) -> list[str]:
        """Pods that have a directory."""
        return sorted(path.name for path in self.pods.iterdir() if path.is_dir() and _SAFE.fullmatch(path.name))


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file whole. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a file by a JSON object. Raises OSError."""
    write_atomic(path, json.dumps(value, sort_keys=True).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no file or it is not one."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None
