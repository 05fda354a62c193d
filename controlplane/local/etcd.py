"""The etcd program on this machine, as the store of a local cluster: where it is and how its members are started.

Owns the command lines. Those of our own programs are in ``programs``; this one is somebody else's, and may be missing.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from controlplane.base.errors import ConfigError
from controlplane.local.spec import ClusterSpec, StoreMemberSpec
from controlplane.transport.tls import TlsFiles

__all__ = ["client_url", "environment", "initial_cluster", "member_argv", "peer_url", "program", "tls_flags"]

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


def environment() -> dict[str, str]:
    """This program's own, but for what would configure etcd or etcdctl by accident."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("ETCD_", "ETCDCTL_"))}


def client_url(address: str, *, tls: bool) -> str:
    """Where clients find a member."""
    return f"{_scheme(tls)}://{address}"


def peer_url(member: StoreMemberSpec, spec: ClusterSpec) -> str:
    """Where the other members find it."""
    return f"{_scheme(spec.tls)}://{member.peer}"


def initial_cluster(spec: ClusterSpec) -> str:
    """The members, as each of them is told."""
    return ",".join(f"{member.name}={peer_url(member, spec)}" for member in spec.store)


def member_argv(me: StoreMemberSpec, spec: ClusterSpec, data_dir: Path, tls: TlsFiles | None = None) -> list[str]:
    """The command line of one member. Heartbeat and election are as quick as our replicas' own. ``tls``: its
    certificate, where the cluster has TLS; who has none of the same authority is let in on neither port."""
    client = client_url(me.client, tls=spec.tls)
    return [
        program("etcd"),
        "--name", me.name,
        "--data-dir", str(data_dir),
        "--listen-client-urls", client,
        "--advertise-client-urls", client,
        "--listen-peer-urls", peer_url(me, spec),
        "--initial-advertise-peer-urls", peer_url(me, spec),
        "--initial-cluster", initial_cluster(spec),
        "--initial-cluster-token", spec.token,
        "--heartbeat-interval", "50",
        "--election-timeout", "500",
        "--snapshot-count", str(_SNAPSHOT_ENTRIES),
        "--log-level", "warn",
        "--logger", "zap",
        *([] if tls is None else tls_flags(tls)),
    ]  # fmt: skip


def tls_flags(tls: TlsFiles) -> list[str]:
    """What has an etcd show that certificate on both ports, and want one of its authority from others. It reads the
    files again at every handshake, so a renewed one needs no restart."""
    return [
        "--client-cert-auth", "--trusted-ca-file", str(tls.ca),
        "--cert-file", str(tls.cert), "--key-file", str(tls.key),
        "--peer-client-cert-auth", "--peer-trusted-ca-file", str(tls.ca),
        "--peer-cert-file", str(tls.cert), "--peer-key-file", str(tls.key),
    ]  # fmt: skip


def _scheme(tls: bool) -> str:
    return "https" if tls else "http"
