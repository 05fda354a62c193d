"""etcdctl, and how it speaks to a local cluster: with which flags, in which environment.

Owns how that program is told whom to ask, and how it is run. Must not know what it is asked: a command is its caller's.
"""

from __future__ import annotations

import subprocess

from controlplane.local import etcd
from controlplane.local.cluster import LocalCluster
from controlplane.local.processes import ProcessError
from controlplane.transport.tls import TlsFiles

__all__ = ["environment", "flags", "line", "run"]


def environment(cluster: LocalCluster) -> dict[str, str]:
    """The variables with which etcdctl speaks to this cluster."""
    urls = (etcd.client_url(endpoint, tls=cluster.spec.tls) for endpoint in cluster.spec.kv_endpoints)
    found = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": ",".join(urls)}
    if cluster.spec.tls:
        files = cluster.pki.admin.absolute()
        found |= {"ETCDCTL_CACERT": str(files.ca), "ETCDCTL_CERT": str(files.cert), "ETCDCTL_KEY": str(files.key)}
    return found


def line(cluster: LocalCluster) -> str:
    """The beginning of a command line of etcdctl for this cluster, to be shown: paths as the user knows them."""
    found = flags(*cluster.spec.kv_endpoints, tls=cluster.pki.admin if cluster.spec.tls else None)
    return f"ETCDCTL_API=3 etcdctl {' '.join(found)}"


def flags(*endpoints: str, tls: TlsFiles | None) -> list[str]:
    """How etcdctl speaks to these members, with that certificate where they have TLS."""
    urls = ",".join(etcd.client_url(endpoint, tls=tls is not None) for endpoint in endpoints)
    found = ["--endpoints", urls]
    return found if tls is None else [*found, "--cacert", str(tls.ca), "--cert", str(tls.cert), "--key", str(tls.key)]


def run(*arguments: str) -> str:
    """Run it to its end; what it printed.

    Raises:
        ConfigError: it is not installed.
        ProcessError: it failed; with what it said.
    """
    done = subprocess.run(
        [etcd.program("etcdctl"), *arguments],
        env={**etcd.environment(), "ETCDCTL_API": "3"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ProcessError(f"etcdctl {' '.join(arguments[:4])}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
