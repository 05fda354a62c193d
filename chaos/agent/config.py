"""What a chaos agent may touch: the processes of its machine, by name, and how each is found and started. Format 1.

::

    version: 1
    machine: rack-a
    state-dir: /var/lib/quarterdeck-chaos     # undo list and audit log
    processes:
      r1:
        kind: replica
        endpoint: 10.0.0.1:2379               # its client endpoint
        pid-file: /run/quarterdeck/r1.pid     # a number, or a record of `qd local`
        start: [systemctl, start, quarterdeck@r1]
        data-dir: /var/lib/quarterdeck/r1     # optional: for cut-tail
        failpoints-file: /run/quarterdeck/r1.failpoints   # optional, as QUARTERDECK_FAILPOINTS_FILE says to the replica
      node-1:
        kind: node
        pid-file: /run/quarterdeck/node-1.pid
        start: [systemctl, start, quarterdeck-node]
        state-dir: /var/lib/quarterdeck-node  # optional: for its pods
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from controlplane.base.addresses import split_address
from controlplane.base.errors import ConfigError
from controlplane.base.yaml_limits import check_yaml

__all__ = ["AgentConfig", "ProcessConfig"]

_VERSION: Final = 1
_DEPTH_MAX: Final = 16
_KINDS: Final = ("replica", "node")
_PROCESS_KEYS: Final = {"kind", "endpoint", "pid-file", "start", "data-dir", "failpoints-file", "state-dir"}


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    """One process that may be struck."""

    name: str
    kind: str
    pid_file: Path
    start: tuple[str, ...]
    endpoint: str = ""
    data_dir: Path | None = None
    failpoints_file: Path | None = None
    state_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """All of it."""

    machine: str
    state_dir: Path
    processes: Mapping[str, ProcessConfig]

    @classmethod
    def load(cls, path: Path) -> AgentConfig:
        """Read the file.

        Raises:
            ConfigError: it cannot be read, or a field is wrong; names the file and the field.
        """
        try:
            text = path.read_text()
            check_yaml(text, depth_max=_DEPTH_MAX)
            raw = yaml.safe_load(text)
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: {error}") from error
        if not isinstance(raw, dict) or raw.get("version") != _VERSION:
            raise ConfigError(f"{path}: want a mapping with version: {_VERSION}")
        if unknown := set(raw) - {"version", "machine", "state-dir", "processes"}:
            raise ConfigError(f"{path}: unknown: {', '.join(sorted(unknown))}")
        processes = raw.get("processes")
        if not isinstance(processes, dict) or not processes:
            raise ConfigError(f"{path}: processes: want a mapping of names; without one there is nothing to do")
        try:
            found = {str(name): _process(str(name), fields) for name, fields in processes.items()}
            return cls(str(raw["machine"]), Path(raw["state-dir"]), found)
        except KeyError as error:
            raise ConfigError(f"{path}: {error.args[0]} is missing") from error
        except (TypeError, ConfigError) as error:
            raise ConfigError(f"{path}: {error}") from error


def _process(name: str, raw: Any) -> ProcessConfig:
    where = f"processes.{name}"
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: want a mapping")
    if unknown := set(raw) - _PROCESS_KEYS:
        raise ConfigError(
            f"{where}: unknown: {', '.join(sorted(unknown))}; there are: {', '.join(sorted(_PROCESS_KEYS))}"
        )
    if raw.get("kind") not in _KINDS:
        raise ConfigError(f"{where}.kind: {raw.get('kind')!r}: want {' or '.join(_KINDS)}")
    start = raw.get("start")
    if not isinstance(start, list) or not start or not all(isinstance(word, str) for word in start):
        raise ConfigError(f"{where}.start: want a list of words: the command that starts it")
    endpoint = str(raw.get("endpoint", ""))
    if raw["kind"] == "replica":
        split_address(endpoint)
    if "pid-file" not in raw:
        raise ConfigError(f"{where}.pid-file is missing")
    paths = {key: Path(raw[key]) for key in ("data-dir", "failpoints-file", "state-dir") if key in raw}
    return ProcessConfig(
        name, raw["kind"], Path(raw["pid-file"]), tuple(start), endpoint,
        paths.get("data-dir"), paths.get("failpoints-file"), paths.get("state-dir"),
    )  # fmt: skip
