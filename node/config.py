"""The settings of one node agent. Owns their names, defaults and checks; reads no environment and opens nothing."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.base.addresses import split_address
from controlplane.base.errors import ConfigError
from controlplane.base.log import LEVELS
from controlplane.client.tls import TlsFiles
from node.quantity import parse_quantity

__all__ = ["AgentConfig", "TaintConfig", "parse_capacity", "parse_labels", "parse_taint"]

_NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_TAINT_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_CAPACITY_KEYS = ("cpu", "memory", "pods", "ephemeral-storage")


@dataclass(frozen=True, slots=True)
class TaintConfig:
    """A taint the node object is created with."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """All settings of one agent.

    Attributes:
        name: the Node object's name; two agents of one name fight over its session.
        endpoints: ``host:port`` of every replica, in any order.
        state_dir: pods' directories, logs and records; one agent at a time holds it locked.
        listen: where the agent's own gRPC service is; replicas call it for logs.
        metrics_listen: where ``/metrics``, ``/livez`` and ``/readyz`` are.
        labels: added to the Node's labels.
        capacity: overrides what the machine has, per resource name.
        taints: set when the Node object is created.
        leave_pods: a SIGTERM leaves the pods running, for the next agent on this state directory to adopt.
        proxy: serve Service addresses.
        pod_routes: make the node's pod range addresses of this host, so that other hosts on its network reach the pods;
            needs root and the program ``ip``. Without it the range must be the host's already, as 127.x is.
        discover: also use the replicas that a replica tells of, not only ``endpoints``.
        shutdown_grace_s: pods that ask for a longer grace get this when the agent stops with its pods.
        log_bytes_max: a container log longer than this is rotated.
        log_files_max: files kept per container run, the current one included.
        log_level: debug, info, warning or error.
        tls: certificate authority, this node's certificate and its key. With it the agent speaks TLS only, to replicas
            and on its own port.
    """

    name: str
    endpoints: tuple[str, ...]
    state_dir: Path
    listen: str = "127.0.0.1:0"
    metrics_listen: str = "127.0.0.1:0"
    labels: dict[str, str] = field(default_factory=dict)
    capacity: dict[str, str] = field(default_factory=dict)
    taints: tuple[TaintConfig, ...] = ()
    leave_pods: bool = False
    proxy: bool = True
    pod_routes: bool = False
    discover: bool = True
    shutdown_grace_s: float = 10.0
    log_bytes_max: int = 10 * 1024 * 1024
    log_files_max: int = 5
    log_level: str = "info"
    tls: TlsFiles | None = None

    @property
    def host_ip(self) -> str:
        """The host's address: the one the agent's service is bound to; loopback if that is every address."""
        host = split_address(self.listen)[0]
        return "127.0.0.1" if host in {"0.0.0.0", "::", "localhost"} else host

    def validate(self) -> None:
        """Check every field.

        Raises:
            ConfigError: names the setting, its value and what is allowed.
        """
        if not _NODE_NAME.fullmatch(self.name):
            raise ConfigError(
                f"--name {self.name!r}: want at most 253 lower-case letters, digits, '-' and '.', "
                "beginning and ending with a letter or digit"
            )
        if not self.endpoints:
            raise ConfigError("--endpoints: want at least one HOST:PORT of a replica")
        for address in (*self.endpoints, self.listen, self.metrics_listen):
            split_address(address)
        if self.listen == self.metrics_listen and not self.listen.endswith(":0"):
            raise ConfigError(f"--listen and --metrics-listen are both {self.listen}: want two addresses")
        if self.shutdown_grace_s < 0:
            raise ConfigError(f"--shutdown-grace {self.shutdown_grace_s:g}: want 0 seconds or more")
        if self.log_bytes_max < 4096:
            raise ConfigError(f"--log-max-bytes {self.log_bytes_max}: want at least 4096")
        if self.log_files_max < 1:
            raise ConfigError(f"--log-max-files {self.log_files_max}: want at least 1")
        if self.log_level not in LEVELS:
            raise ConfigError(f"--log-level {self.log_level!r}: want one of {', '.join(LEVELS)}")
        self._check_state_dir()

    def _check_state_dir(self) -> None:
        path = self.state_dir
        if not path.parent.is_dir():
            raise ConfigError(f"--state-dir {path}: its parent directory does not exist; create it, or choose another")
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--state-dir {path}: is a file; want a directory")
        probe = path if path.exists() else path.parent
        if not os.access(probe, os.W_OK | os.X_OK):
            raise ConfigError(f"--state-dir {path}: {probe} is not writable by this user")


def parse_labels(pairs: tuple[str, ...]) -> dict[str, str]:
    """``("zone=a",)`` -> ``{"zone": "a"}``. Raises ConfigError."""
    labels: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise ConfigError(f"--label {pair!r}: want KEY=VALUE of letters, digits, '-', '_' and '.'")
        labels[key] = value
    return labels


def parse_capacity(text: str) -> dict[str, str]:
    """``"cpu=4,memory=8Gi"`` -> ``{"cpu": "4", "memory": "8Gi"}``. Raises ConfigError."""
    capacity: dict[str, str] = {}
    for pair in filter(None, text.split(",")):
        key, separator, value = pair.partition("=")
        if not separator or key not in _CAPACITY_KEYS:
            raise ConfigError(f"--capacity {pair!r}: want NAME=QUANTITY with NAME one of {', '.join(_CAPACITY_KEYS)}")
        try:
            positive = parse_quantity(value) > 0
        except ValueError as error:
            raise ConfigError(f"--capacity {pair!r}: {error}") from error
        if not positive:
            raise ConfigError(f"--capacity {pair!r}: want more than 0")
        capacity[key] = value
    return capacity


def parse_taint(text: str) -> TaintConfig:
    """``"key=value:NoSchedule"`` or ``"key:NoSchedule"``. Raises ConfigError."""
    left, separator, effect = text.rpartition(":")
    key, _, value = left.partition("=")
    if (
        not separator
        or effect not in _TAINT_EFFECTS
        or not _LABEL_KEY.fullmatch(key)
        or not _LABEL_VALUE.fullmatch(value)
    ):
        raise ConfigError(f"--taint {text!r}: want KEY[=VALUE]:EFFECT with EFFECT one of {', '.join(_TAINT_EFFECTS)}")
    return TaintConfig(key=key, value=value, effect=effect)
