"""The settings of one replica: frozen, explicit, checked once at start. Knows no component.

Every field says its unit and what goes wrong outside its bound; relations between fields are checked by
:meth:`ReplicaConfig.validate` and each has a test.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.base.addresses import split_address
from controlplane.base.errors import ConfigError
from controlplane.base.limits import MIB
from controlplane.base.retention import parse_retention
from controlplane.external.config import StoreConfig
from controlplane.transport.tls import TlsFiles

if TYPE_CHECKING:  # who is not backed up, or only reads settings, starts without what it takes
    from controlplane.backup.config import BackupConfig
    from controlplane.transport.server import Front

__all__ = ["MemberConfig", "ReplicaConfig", "parse_dial", "parse_initial_cluster"]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class MemberConfig:
    """One replica as every replica must name it. Addresses are ``host:port``."""

    name: str
    peer: str
    client: str
    metrics: str


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """All settings of one replica.

    Attributes:
        name: this replica's name in ``initial_cluster``.
        data_dir: log and snapshots; one process at a time holds it locked.
        initial_cluster: every member, this one included; must be the same on all.
        cluster_token: tells clusters apart; two clusters with one token and names would speak to each other.
        heartbeat_ms: leader's heartbeat; too long and elections start without need.
        election_ms_min, election_ms_max: a follower waits a random time between them before it stands; the minimum
            must be at least three heartbeats, or one late frame deposes a leader.
        service_cidr: Service VIPs; must not overlap cluster_cidr.
        cluster_cidr: pod addresses; each node gets a /24 of it.
        node_heartbeat_ms: how often agents say they live.
        grpc_front: whose HTTP/2 serves the client port: "h2" is ours, "grpcio" the reference.
        snapshot_entries: log entries between two snapshots; more means longer restarts, fewer means more writing.
        log_level: debug, info, warning or error.
        quota_backend_bytes: how big the state may become before writes that add to it are refused; 0 is no limit.
        auto_compaction_mode, auto_compaction_retention: how much history is kept, as etcd's flags say it; 0 is all.
        store: the etcd cluster that holds the state; None: the replicas do. With one, ``data_dir``, the peer addresses
            and the settings of elections and snapshots are not used.
        initial_cluster_state: ``new`` founds the cluster, or comes back to it; ``existing`` joins a running one that
            has this replica's peer address among its members. Only the first start with a data directory asks.
        join: client endpoints to ask then; by default the other members' of initial_cluster.
        tls: certificate authority, and this member's certificate and key: peers, clients and agents must then show
            certificates of that authority. None: everything is spoken plainly, and whoever reaches a port is believed.
        dial: (a peer's address, where to connect to instead) pairs, both ``host:port``: a proxy, a tunnel.
        backup: where snapshots are saved by the clock and the log is archived; None: nowhere.
    """

    name: str
    data_dir: Path
    initial_cluster: tuple[MemberConfig, ...]
    cluster_token: str = "quarterdeck"  # noqa: S105 - a name, not a secret
    heartbeat_ms: int = 50
    election_ms_min: int = 500
    election_ms_max: int = 1000
    service_cidr: str = "127.96.0.0/16"
    cluster_cidr: str = "127.128.0.0/16"
    node_heartbeat_ms: int = 500
    grpc_front: Front = "h2"
    snapshot_entries: int = 10_000
    log_level: str = "info"
    quota_backend_bytes: int = 2 * 1024 * MIB
    auto_compaction_mode: str = "periodic"
    auto_compaction_retention: str = "5m"
    store: StoreConfig | None = None
    initial_cluster_state: str = "new"
    join: tuple[str, ...] = ()
    tls: TlsFiles | None = None
    dial: tuple[tuple[str, str], ...] = ()
    backup: BackupConfig | None = None

    @property
    def me(self) -> MemberConfig:
        """This replica's own entry of the initial cluster."""
        return next(member for member in self.initial_cluster if member.name == self.name)

    def validate(self) -> None:
        """Check every field and the relations between them.

        Raises:
            ConfigError: naming the setting, its value and what is allowed.
        """
        names = [member.name for member in self.initial_cluster]
        if len(names) != len(set(names)):
            raise ConfigError(f"initial cluster: a name appears twice in {', '.join(names)}")
        if self.name not in names:
            raise ConfigError(f"name {self.name!r} is not in the initial cluster ({', '.join(names)})")
        addresses = [address for m in self.initial_cluster for address in (m.peer, m.client, m.metrics)]
        for address in addresses:
            split_address(address)
        if len(addresses) != len(set(addresses)):
            raise ConfigError(f"initial cluster: an address appears twice in {', '.join(addresses)}")
        for name in names:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"name {name!r}: want lower-case letters, digits and '-', at most 63, such as r1")
        if not 5 <= self.heartbeat_ms <= 10_000:
            raise ConfigError(f"heartbeat {self.heartbeat_ms} ms: want 5 to 10000")
        if self.election_ms_min < 3 * self.heartbeat_ms:
            raise ConfigError(
                f"election minimum {self.election_ms_min} ms: "
                f"want at least three heartbeats ({3 * self.heartbeat_ms} ms)"
            )
        if self.election_ms_max <= self.election_ms_min:
            raise ConfigError(f"election maximum {self.election_ms_max} ms: want more than {self.election_ms_min} ms")
        if self.initial_cluster_state not in ("new", "existing"):
            raise ConfigError(f"initial cluster state {self.initial_cluster_state!r}: want new or existing")
        for address in (address for pair in self.dial for address in pair):
            split_address(address)
        for endpoint in self.join:
            split_address(endpoint)
        if self.join and self.initial_cluster_state == "new":
            raise ConfigError("--join is for a new member of a running cluster: --initial-cluster-state existing")
        service, cluster = _network("service", self.service_cidr), _network("cluster", self.cluster_cidr)
        if service.overlaps(cluster):
            raise ConfigError(f"service range {service} overlaps the pods' {cluster}: choose two separate ranges")
        if cluster.prefixlen > 24:
            raise ConfigError(f"cluster range {cluster}: want a /24 or wider, each node gets a /24 of it")
        if not 100 <= self.node_heartbeat_ms <= 60_000:
            raise ConfigError(f"node heartbeat {self.node_heartbeat_ms} ms: want 100 to 60000")
        if self.quota_backend_bytes < 0:
            raise ConfigError(f"quota {self.quota_backend_bytes} bytes: want 0 (no limit) or more")
        parse_retention(self.auto_compaction_mode, self.auto_compaction_retention)
        if self.backup is not None:
            self.backup.validate()
            if self.store is not None:
                raise ConfigError(
                    "--archive is for replicas that hold the state; an etcd cluster is backed up by itself"
                )
        if self.snapshot_entries < 100:
            raise ConfigError(f"snapshot entries {self.snapshot_entries}: want at least 100")


def parse_initial_cluster(text: str) -> tuple[MemberConfig, ...]:
    """``r1=PEER@CLIENT@METRICS,r2=...`` -> members.

    Raises:
        ConfigError: showing the part that is wrong and the form wanted.
    """
    members = []
    for part in text.split(","):
        name, separator, rest = part.strip().partition("=")
        addresses = rest.split("@")
        if not separator or len(addresses) != 3:
            raise ConfigError(f"initial cluster: {part!r}: want NAME=PEER@CLIENT@METRICS, each address HOST:PORT")
        members.append(MemberConfig(name, *addresses))
    return tuple(members)


def parse_dial(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """``PEER=INSTEAD`` each, both ``host:port``. Raises ConfigError."""
    pairs = []
    for text in texts:
        peer, separator, instead = text.partition("=")
        if not separator:
            raise ConfigError(f"--dial {text!r}: want PEER=INSTEAD, each HOST:PORT")
        pairs.append((peer, instead))
    return tuple(pairs)


def _network(what: str, cidr: str) -> ipaddress.IPv4Network:
    try:
        return ipaddress.IPv4Network(cidr)
    except ValueError as error:
        raise ConfigError(f"{what} range {cidr!r}: {error}; want an IPv4 network such as 127.96.0.0/16") from error
