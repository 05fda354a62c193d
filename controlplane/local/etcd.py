"""The etcd program on this machine, as the store of a local cluster: where it is and how its members are started.

Owns the command lines. Our own programs are started by ``cluster``; this one is somebody else's, and may be missing.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from controlplane.base.errors import ConfigError
from controlplane.local.spec import ClusterSpec, StoreMemberSpec

__all__ = ["initial_cluster", "member_argv", "program"]

_PACKAGES: Final = {"etcd": "etcd-server", "etcdctl": "etcd-client"}
_SNAPSHOT_ENTRIES: Final = 10_000


def program(name: str) -> str:
    """The path of ``etcd`` or ``etcdctl``.

    Raises:
        ConfigError: it is not installed; says how to.
    """
    found = shutil.which(name)
    if found is None:
        raise ConfigError(
            f"STORE=etcd needs the program {name!r}, which is not on PATH. On Debian: apt-get install "
            f"{_PACKAGES[name]} (and stop the service it starts: systemctl disable --now etcd)"
        )
    return found


def initial_cluster(spec: ClusterSpec) -> str:
    """The members, as each of them is told."""
    return ",".join(f"{member.name}=http://{member.peer}" for member in spec.store)


def member_argv(me: StoreMemberSpec, spec: ClusterSpec, data_dir: Path) -> list[str]:
    """The command line of one member. Heartbeat and election are as quick as our replicas' own."""
    return [
        program("etcd"),
        "--name", me.name,
        "--data-dir", str(data_dir),
        "--listen-client-urls", f"http://{me.client}",
        "--advertise-client-urls", f"http://{me.client}",
        "--listen-peer-urls", f"http://{me.peer}",
        "--initial-advertise-peer-urls", f"http://{me.peer}",
        "--initial-cluster", initial_cluster(spec),
        "--initial-cluster-token", spec.token,
        "--heartbeat-interval", "50",
        "--election-timeout", "500",
        "--snapshot-count", str(_SNAPSHOT_ENTRIES),
        "--log-level", "warn",
        "--logger", "zap",
    ]  # fmt: skip
