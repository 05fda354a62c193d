"""``python -m controlplane``: run one replica until it is told to stop.

Owns the flags and the exit codes: 0 stopped as asked, 1 the replica had to stop by itself (a disk that refuses,
damaged state), 2 wrong configuration.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from controlplane.base.errors import ConfigError, QuarterdeckError
from controlplane.base.log import LEVELS, setup_logging
from controlplane.config import ReplicaConfig, parse_dial, parse_initial_cluster
from controlplane.external.config import PASSWORD_VARIABLE, StoreConfig, read_password
from controlplane.transport.server import FRONTS, Front
from controlplane.transport.tls import TlsFiles

_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--name", required=True, help="This replica's name in the initial cluster.")
@click.option("--data-dir", type=_DIRECTORY, help="Log and snapshots; needed without --store.")
@click.option("--initial-cluster", required=True, help="NAME=PEER@CLIENT@METRICS,... of every member, HOST:PORT each.")
@click.option("--initial-cluster-state", default="new", type=click.Choice(["new", "existing"]), help="existing: joins.")
@click.option("--join", default="", help="Client HOST:PORT,... of running replicas; by default the initial cluster's.")
@click.option("--dial", multiple=True, metavar="PEER=INSTEAD", help="Reach that peer through a proxy; repeatable.")
@click.option("--cluster-token", default="quarterdeck", help="Tells clusters apart; the same on all members.")
@click.option("--heartbeat-ms", default=50, help="How often a leader speaks.")
@click.option("--election-ms-min", default=500, help="Shortest wait of a follower before it stands.")
@click.option("--election-ms-max", default=1000, help="Longest wait of a follower before it stands.")
@click.option("--service-cidr", default="127.96.0.0/16", help="Service VIPs.")
@click.option("--cluster-cidr", default="127.128.0.0/16", help="Pod addresses; each node gets a /24.")
@click.option("--node-heartbeat-ms", default=500, help="How often agents say they live.")
@click.option("--snapshot-entries", default=10_000, help="Log entries between two snapshots.")
@click.option("--quota-backend-bytes", default=2 << 30, help="How big the state may become; 0 is no limit.")
@click.option("--auto-compaction-mode", default="periodic", type=click.Choice(["periodic", "revision"]))
@click.option("--auto-compaction-retention", default="5m", help="History kept: 5m, 1h, or revisions; 0 is all of it.")
@click.option("--archive", help="Directory or URL (s3://…) to back up to: snapshots by the clock, and the log.")
@click.option(
    "--archive-interval-ms", default=1_000, help="How old what is not archived may become; 0: no log, only snapshots."
)
@click.option("--archive-snapshot-every", default="15m", help="Between two snapshots: 15m, 6h; 0 is none.")
@click.option(
    "--archive-keep", default="last=8,hourly=24,daily=7", help="Snapshots that stay, and the log behind them."
)
@click.option("--archive-recipients", type=_FILE, help="Public keys (qd snapshot keygen): encrypt all backups to them.")
@click.option("--log-level", default="info", type=click.Choice(LEVELS))
@click.option("--grpc-front", default="h2", type=click.Choice(FRONTS), help="Who serves gRPC: this project or grpcio.")
@click.option("--tls-ca", type=_FILE, help="Certificate authority (PEM) of peers, clients and agents; turns TLS on.")
@click.option("--tls-cert", type=_FILE, help="This member's certificate.")
@click.option("--tls-key", type=_FILE, help="The key of that.")
@click.option("--store", help="Keep the state in this etcd cluster instead: etcd://HOST:PORT,HOST:PORT.")
@click.option("--store-ca", type=_FILE, help="Its CA certificate (PEM); turns TLS on.")
@click.option("--store-cert", type=_FILE, help="Our certificate for it.")
@click.option("--store-key", type=_FILE, help="The key of that.")
@click.option("--store-user", default="", help="Our user there.")
@click.option("--store-password-file", type=_FILE, help=f"Its password; or the variable {PASSWORD_VARIABLE}.")
@click.option("--await-start", is_flag=True, hidden=True, help="Touch nothing before a line comes on standard input.")
@click.option("--store-lease-s", default=3, help="How long a dead process keeps its leadership there.")
def main(
    name: str,
    data_dir: Path | None,
    initial_cluster: str,
    initial_cluster_state: str,
    join: str,
    dial: tuple[str, ...],
    cluster_token: str,
    heartbeat_ms: int,
    election_ms_min: int,
    election_ms_max: int,
    service_cidr: str,
    cluster_cidr: str,
    node_heartbeat_ms: int,
    snapshot_entries: int,
    quota_backend_bytes: int,
    auto_compaction_mode: str,
    auto_compaction_retention: str,
    archive: str | None,
    archive_interval_ms: int,
    archive_snapshot_every: str,
    archive_keep: str,
    archive_recipients: Path | None,
    log_level: str,
    grpc_front: Front,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    store: str | None,
    store_ca: Path | None,
    store_cert: Path | None,
    store_key: Path | None,
    store_user: str,
    store_password_file: Path | None,
    await_start: bool,
    store_lease_s: int,
) -> None:
    """Run one control-plane replica."""
    setup_logging(log_level)
    try:
        external = None
        if store is not None:
            external = StoreConfig.parse(
                store, ca=store_ca, cert=store_cert, key=store_key, user=store_user,
                password=read_password(store_password_file) if store_user else "", lease_ttl_s=store_lease_s,
            )  # fmt: skip
        elif data_dir is None:
            raise ConfigError("--data-dir is missing: where this replica keeps its log and snapshots")
        backup = None
        if archive is not None:
            from controlplane.backup.config import BackupConfig
            from controlplane.backup.retention import Keep, parse_age_s

            every_s = parse_age_s(archive_snapshot_every) if archive_snapshot_every != "0" else 0
            backup = BackupConfig(
                archive, archive_interval_ms, every_s, Keep.parse(archive_keep), archive_recipients
            )  # fmt: skip
        config = ReplicaConfig(
            name=name,
            data_dir=data_dir or Path(),
            initial_cluster=parse_initial_cluster(initial_cluster),
            cluster_token=cluster_token,
            heartbeat_ms=heartbeat_ms,
            election_ms_min=election_ms_min,
            election_ms_max=election_ms_max,
            service_cidr=service_cidr,
            cluster_cidr=cluster_cidr,
            node_heartbeat_ms=node_heartbeat_ms,
            snapshot_entries=snapshot_entries,
            quota_backend_bytes=quota_backend_bytes,
            auto_compaction_mode=auto_compaction_mode,
            auto_compaction_retention=auto_compaction_retention,
            log_level=log_level,
            grpc_front=grpc_front,
            store=external,
            initial_cluster_state=initial_cluster_state,
            join=tuple(filter(None, join.split(","))),
            tls=TlsFiles.of(tls_ca, tls_cert, tls_key),
            dial=parse_dial(dial),
            backup=backup,
        )
        config.validate()
        # gRPC's C core would say the same again, in its own words, before our message.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from controlplane.app import run

        if await_start and sys.stdin.readline() != "start\n":
            raise ConfigError("whoever prepares the data of this replica went away before it was done")
        run(config)
    except ConfigError as error:
        click.echo(f"quarterdeck: {error}", err=True)
        sys.exit(2)
    except QuarterdeckError as error:
        click.echo(f"quarterdeck: replica {name} stopped: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
