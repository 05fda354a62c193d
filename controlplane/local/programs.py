"""Our own programs as processes of a local cluster: replica, agent, edge and relay, with their flags and environment.

Owns the command lines, as ``etcd`` owns those of the etcd program. Must not know processes: who is started, when, or
what runs. Whatever a process is told, it is told here: of this program's environment nothing reaches it but what is
named.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from controlplane.local.spec import ClusterSpec, NodeSpec, ReplicaSpec
from controlplane.transport.tls import TlsFiles

__all__ = ["edge_argv", "environment", "node_argv", "relay_argv", "replica_argv"]

#: Two hours of snapshots, and of the log behind them: a developer's disk is not for more.
_ARCHIVE_KEEP: Final = "last=8"
_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER", "VIRTUAL_ENV", "SSL_CERT_FILE")
#: How an archive in a bucket is opened.
_ENVIRONMENT_PREFIXES: Final = ("AWS_", "QUARTERDECK_ARCHIVE_")


def replica_argv(
    python: str, me: ReplicaSpec, spec: ClusterSpec, *, data_dir: Path, archive: str, tls: TlsFiles | None
) -> list[str]:
    """The command line of a replica.

    Args:
        data_dir: where it keeps its log and snapshots, if the store is its own.
        archive: where it backs up to, a path or URL; empty: nowhere.
        tls: its certificate, where the cluster has TLS. A store of its own kind is shown the same.
    """
    return [
        python, "-m", "controlplane",
        "--name", me.name,
        *(_store_flags(spec, tls) if spec.store else ["--data-dir", str(data_dir)]),
        "--initial-cluster", spec.initial_cluster,
        *(["--initial-cluster-state", "existing"] if me.name in spec.joined else []),
        "--cluster-token", spec.token,
        "--service-cidr", spec.service_cidr,
        "--cluster-cidr", spec.cluster_cidr,
        *_tls_flags(tls),
        *(f"--dial={target}={relay}" for (source, _), (relay, target) in spec.relayed.items() if source == me.name),
        *(["--archive", archive, "--archive-keep", _ARCHIVE_KEEP] if archive else []),
        *spec.extra_replica_args,
    ]  # fmt: skip


def node_argv(python: str, me: NodeSpec, spec: ClusterSpec, *, state_dir: Path, tls: TlsFiles | None) -> list[str]:
    """The command line of an agent, which keeps its state and its pods' directories in ``state_dir``."""
    there = {replica.name for replica in spec.replicas}
    relayed = [relay for (source, to), (relay, _) in spec.relayed.items() if source == me.name and to in there]
    return [
        python, "-m", "node",
        "--name", me.name,
        "--endpoints", ",".join(relayed or spec.endpoints),
        *(["--no-discover"] if relayed else []),
        *(["--pod-routes"] if spec.hosts == "netns" else []),
        "--state-dir", str(state_dir),
        "--listen", me.listen,
        "--metrics-listen", me.metrics,
        *_tls_flags(tls),
    ]  # fmt: skip


def edge_argv(python: str, spec: ClusterSpec, *, tls: TlsFiles | None) -> list[str]:
    """The command line of the proxy for clients outside the hosts."""
    return [python, "-m", "node.edge", "--endpoints", ",".join(spec.endpoints), *_tls_flags(tls)]


def relay_argv(python: str, folder: Path) -> list[str]:
    """The command line of the relay of the links, which is told in that folder what to relay."""
    return [python, "-m", "controlplane.local.relay", str(folder)]


def environment() -> dict[str, str]:
    """What every process gets of this program's environment, and what keeps its log readable."""
    kept = {k: v for k, v in os.environ.items() if k in _ENVIRONMENT or k.startswith(_ENVIRONMENT_PREFIXES)}
    # C-core's own logs would drown ours; a failed connection attempt is normal life here.
    return kept | {"GRPC_VERBOSITY": "NONE", "PYTHONUNBUFFERED": "1"}


def _store_flags(spec: ClusterSpec, tls: TlsFiles | None) -> list[str]:
    found = ["--store", f"etcd://{','.join(spec.kv_endpoints)}"]
    if tls is not None:
        found += ["--store-ca", str(tls.ca), "--store-cert", str(tls.cert), "--store-key", str(tls.key)]
    return found


def _tls_flags(tls: TlsFiles | None) -> list[str]:
    return [] if tls is None else ["--tls-ca", str(tls.ca), "--tls-cert", str(tls.cert), "--tls-key", str(tls.key)]
