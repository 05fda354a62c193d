"""What a local cluster is made of, as a file: names, addresses, ranges. JSON, format version 2; version 1 had no hosts.

Ports, from one base: replica i (from 1) has client ``base+10i``, metrics ``base+10i+1``, peer ``base+10i+2``; with an
etcd cluster as the store, its member i has client ``base+10i+5`` and peer ``base+10i+6``; node j (from 1) has its agent
port at ``base+100+2j`` and metrics one above. Pod and Service ranges are 127.x networks chosen by the base, so that two
clusters whose bases are at least 250 apart share nothing: a pod of one that has the address of a pod of the other
cannot bind its ports, and answers the other's probes.

Hosts, what the processes run on:

==========  ==========================================================================================================
loopback    all on 127.0.0.1
links       the same, and a relay behind which every replica finds the others, and every agent the replicas:
            replica i finds replica j at ``base+150+10i+j``, agent k replica j at ``base+250+10k+j``
netns       a network namespace each (``hosts``), at 198.18.N.x, where N comes from the base as the ranges do; pods
            have addresses of 240.N.0.0/16, reached from every host
==========  ==========================================================================================================
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from controlplane.base.errors import ConfigError

__all__ = [
    "ARCHIVE",
    "EDGE",
    "FORMAT_VERSION",
    "HOSTS",
    "LINKS_NODES_MAX",
    "NODES_MAX",
    "RELAY",
    "REPLICAS_MAX",
    "STORES",
    "STORE_MEMBERS",
    "ClusterSpec",
    "NodeSpec",
    "ReplicaSpec",
    "StoreMemberSpec",
    "plan",
]

FORMAT_VERSION = 2
_READS_VERSIONS = (1, 2)
REPLICAS_MAX = 9
NODES_MAX = 200
#: Where a cluster backs up to by default: a folder in its own.
ARCHIVE = "archive"
#: Where the state is kept: in the replicas, or in an etcd cluster of its own.
STORES = ("embedded", "etcd")
#: What the processes run on.
HOSTS = ("loopback", "links", "netns")
#: Nodes of a cluster behind a relay: the ports are counted out.
LINKS_NODES_MAX = 20
#: The process that relays the links, where there is one.
RELAY = "relay"
#: The process that serves Service addresses to clients outside, where agents have hosts of their own.
EDGE = "edge"
#: Members of an etcd cluster that is the store.
STORE_MEMBERS = 3
_HOST = "127.0.0.1"
_PORT_BASE_MIN = 1024


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One control-plane replica. Addresses are ``host:port``."""

    name: str
    client: str
    metrics: str
    peer: str


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node agent. Addresses are ``host:port``."""

    name: str
    listen: str
    metrics: str


@dataclass(frozen=True, slots=True)
class StoreMemberSpec:
    """One member of the etcd cluster that is the store. Addresses are ``host:port``."""

    name: str
    client: str
    peer: str


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """The cluster of one folder. ``store``: the members of the etcd cluster that holds the state; empty: the replicas
    hold it. ``tls``: replicas and agents speak TLS, with the certificates in the folder's pki/. ``hosts``: one of
    HOSTS. ``archive``: where replicas back up to, a path in the folder or a URL; empty: nowhere."""

    port_base: int
    token: str
    service_cidr: str
    cluster_cidr: str
    replicas: tuple[ReplicaSpec, ...]
    nodes: tuple[NodeSpec, ...]
    version: int = FORMAT_VERSION
    extra_replica_args: tuple[str, ...] = field(default=())
    store: tuple[StoreMemberSpec, ...] = field(default=())
    tls: bool = False
    #: Replicas that came to a running cluster: they find their place by asking it, not in initial_cluster.
    joined: tuple[str, ...] = field(default=())
    hosts: str = "loopback"
    archive: str = ""

    @property
    def network(self) -> int:
        """Which of the networks of ``hosts`` is this cluster's; clusters whose bases are 250 apart have different
        ones."""
        return _number(self.port_base)

    @property
    def fixtures(self) -> list[str]:
        """Processes that are no part of the cluster, and without which it is not reached."""
        return {"links": [RELAY], "netns": [EDGE]}.get(self.hosts, [])

    @property
    def relayed(self) -> dict[tuple[str, str], tuple[str, str]]:
        """(who dials, whom) -> (the relay's address, the address behind it). Empty but for ``links``. Replicas that
        may yet join have their place: those that run then have been told of it."""
        if self.hosts != "links":
            return {}
        found = {}
        replicas = {number: _replica(self.port_base, number, self.hosts) for number in range(1, REPLICAS_MAX + 1)}
        for number, target in replicas.items():
            for other, source in replicas.items():
                if other != number:
                    relay = f"{_HOST}:{self.port_base + 150 + 10 * other + number}"
                    found[source.name, target.name] = (relay, target.peer)
            for node in self.nodes:
                relay = f"{_HOST}:{self.port_base + 250 + 10 * _trailing_number(node.name) + number}"
                found[node.name, target.name] = (relay, target.client)
        return found

    @property
    def initial_cluster(self) -> str:
        """The members, as replicas are told: NAME=PEER@CLIENT@METRICS,..."""
        return ",".join(f"{r.name}={r.peer}@{r.client}@{r.metrics}" for r in self.replicas)

    @property
    def endpoints(self) -> list[str]:
        """Every replica's client endpoint."""
        return [replica.client for replica in self.replicas]

    @property
    def store_kind(self) -> str:
        """One of STORES."""
        return "etcd" if self.store else "embedded"

    @property
    def kv_endpoints(self) -> list[str]:
        """Who serves the etcd API: the store's members, or the replicas."""
        return [member.client for member in self.store] or self.endpoints

    def with_node(self) -> tuple[ClusterSpec, NodeSpec]:
        """The cluster with one more node, and that node: the lowest number not in use."""
        taken = {node.name for node in self.nodes}
        most = LINKS_NODES_MAX if self.hosts == "links" else NODES_MAX
        number = next(n for n in range(1, NODES_MAX + 2) if f"node-{n}" not in taken)
        if number > most:
            raise ConfigError(f"a local cluster has at most {most} nodes; remove one first")
        node = _node(self.port_base, number, self.hosts)
        return replace(self, nodes=(*self.nodes, node)), node

    def with_new_token(self) -> ClusterSpec:
        """The same processes as another cluster, whose members do not speak with the old one's."""
        return replace(self, token=secrets.token_hex(8), joined=())

    def with_replica(self) -> tuple[ClusterSpec, ReplicaSpec]:
        """The cluster with one more replica, which joins it while it runs, and that replica."""
        taken = {replica.name for replica in self.replicas}
        number = next(n for n in range(1, REPLICAS_MAX + 2) if f"r{n}" not in taken)
        if number > REPLICAS_MAX:
            raise ConfigError(f"a local cluster has at most {REPLICAS_MAX} replicas")
        replica = _replica(self.port_base, number, self.hosts)
        joined = (*(name for name in self.joined if name != replica.name), replica.name)
        return replace(self, replicas=(*self.replicas, replica), joined=joined), replica

    def without_replica(self, name: str) -> ClusterSpec:
        """The cluster without that replica."""
        return replace(
            self,
            replicas=tuple(replica for replica in self.replicas if replica.name != name),
            joined=tuple(other for other in self.joined if other != name),
        )

    def without_node(self, name: str) -> ClusterSpec:
        """The cluster without that node."""
        return replace(self, nodes=tuple(node for node in self.nodes if node.name != name))

    def save(self, path: Path) -> None:
        """Write atomically: a reader sees the old file or the new one."""
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> ClusterSpec:
        """Read a cluster file.

        Raises:
            ConfigError: it is missing, damaged, or of a newer format.
        """
        try:
            raw = json.loads(path.read_text())
            if raw["version"] not in _READS_VERSIONS:
                reads = " and ".join(map(str, _READS_VERSIONS))
                raise ConfigError(f"{path}: format version {raw['version']}, this program reads {reads}")
            raw["version"] = FORMAT_VERSION  # what was not there has its default, and is written at the next change
            raw["replicas"] = tuple(ReplicaSpec(**replica) for replica in raw["replicas"])
            raw["nodes"] = tuple(NodeSpec(**node) for node in raw["nodes"])
            raw["store"] = tuple(StoreMemberSpec(**member) for member in raw.get("store", ()))
            raw["extra_replica_args"] = tuple(raw.get("extra_replica_args", ()))
            raw["joined"] = tuple(raw.get("joined", ()))
            return cls(**raw)
        except FileNotFoundError as error:
            raise ConfigError(f"no local cluster here ({path} is missing); start one with: make cluster") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} is damaged ({error}); remove the folder {path.parent} to start anew") from error


def plan(
    *,
    replicas: int,
    nodes: int,
    port_base: int,
    store: str = "embedded",
    tls: bool = False,
    hosts: str = "loopback",
    archive: str = "",
) -> ClusterSpec:
    """A new cluster of that size. ``store``: ``embedded`` (in the replicas) or ``etcd`` (a cluster of its own, which is
    not archived). ``archive``: see ClusterSpec.

    Raises:
        ConfigError: a number is out of range; the message says which range.
    """
    if not 1 <= replicas <= REPLICAS_MAX:
        raise ConfigError(
            f"REPLICAS={replicas}: want 1 to {REPLICAS_MAX} (3 or 5 survive failures; even numbers add none)"
        )
    if not 0 <= nodes <= NODES_MAX:
        raise ConfigError(f"NODES={nodes}: want 0 to {NODES_MAX}")
    last = port_base + 100 + 2 * NODES_MAX + 1
    if not port_base >= _PORT_BASE_MIN or last > 32767:
        raise ConfigError(f"PORT_BASE={port_base}: want {_PORT_BASE_MIN} to {32767 - 101 - 2 * NODES_MAX}")
    if store not in STORES:
        raise ConfigError(f"STORE={store}: want {' or '.join(STORES)}")
    if hosts not in HOSTS:
        raise ConfigError(f"HOSTS={hosts}: want {', '.join(HOSTS[:-1])} or {HOSTS[-1]}")
    if hosts == "links" and store != "embedded":
        raise ConfigError("HOSTS=links relays what replicas say to each other; with STORE=etcd want HOSTS=netns")
    if hosts == "links" and nodes > LINKS_NODES_MAX:
        raise ConfigError(f"NODES={nodes}: HOSTS=links wants at most {LINKS_NODES_MAX}")
    number = _number(port_base)
    return ClusterSpec(
        port_base=port_base,
        token=secrets.token_hex(8),
        service_cidr=f"127.{64 + number // 2}.{128 * (number % 2)}.0/17",
        cluster_cidr=f"240.{number}.0.0/16" if hosts == "netns" else f"127.{128 + number}.0.0/16",
        replicas=tuple(_replica(port_base, i, hosts) for i in range(1, replicas + 1)),
        nodes=tuple(_node(port_base, j, hosts) for j in range(1, nodes + 1)),
        store=tuple(_store_member(port_base, i, hosts) for i in range(1, STORE_MEMBERS + 1)) if store == "etcd" else (),
        tls=tls,
        hosts=hosts,
        archive="" if store == "etcd" else archive,
    )


def _number(port_base: int) -> int:
    """0..124 for 1024..32266. Services: half of one of 127.64 to 127.126; pods: one of 127.128 to 252, or of 240.0 to
    124; hosts: one of 198.18.0 to 124."""
    return (port_base - _PORT_BASE_MIN) // 250


def _trailing_number(name: str) -> int:
    return int(name.rpartition("-")[2])


def _host(port_base: int, hosts: str, number: int) -> str:
    """The address of host ``number``: replicas have 1 to 9, an etcd's members 11 to 13, nodes 21 and more."""
    return f"198.18.{_number(port_base)}.{number}" if hosts == "netns" else _HOST


def _replica(port_base: int, number: int, hosts: str) -> ReplicaSpec:
    first, host = port_base + 10 * number, _host(port_base, hosts, number)
    return ReplicaSpec(f"r{number}", f"{host}:{first}", f"{host}:{first + 1}", f"{host}:{first + 2}")


def _store_member(port_base: int, number: int, hosts: str) -> StoreMemberSpec:
    first, host = port_base + 10 * number + 5, _host(port_base, hosts, 10 + number)
    return StoreMemberSpec(f"etcd-{number}", f"{host}:{first}", f"{host}:{first + 1}")


def _node(port_base: int, number: int, hosts: str) -> NodeSpec:
    first, host = port_base + 100 + 2 * number, _host(port_base, hosts, 20 + number)
    return NodeSpec(f"node-{number}", f"{host}:{first}", f"{host}:{first + 1}")
