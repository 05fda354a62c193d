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
from controlplane.config import ReplicaConfig, parse_initial_cluster

_DIRECTORY = click.Path(path_type=Path, file_okay=False)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--name", required=True, help="This replica's name in the initial cluster.")
@click.option("--data-dir", required=True, type=_DIRECTORY, help="Log and snapshots.")
@click.option("--initial-cluster", required=True, help="NAME=PEER@CLIENT@METRICS,... of every member, HOST:PORT each.")
@click.option("--cluster-token", default="quarterdeck", help="Tells clusters apart; the same on all members.")
@click.option("--heartbeat-ms", default=50, help="How often a leader speaks.")
@click.option("--election-ms-min", default=500, help="Shortest wait of a follower before it stands.")
@click.option("--election-ms-max", default=1000, help="Longest wait of a follower before it stands.")
@click.option("--service-cidr", default="127.96.0.0/16", help="Service VIPs.")
@click.option("--cluster-cidr", default="127.128.0.0/16", help="Pod addresses; each node gets a /24.")
@click.option("--node-heartbeat-ms", default=500, help="How often agents say they live.")
@click.option("--snapshot-entries", default=10_000, help="Log entries between two snapshots.")
@click.option("--log-level", default="info", type=click.Choice(LEVELS))
def main(
    name: str,
    data_dir: Path,
    initial_cluster: str,
    cluster_token: str,
    heartbeat_ms: int,
    election_ms_min: int,
    election_ms_max: int,
    service_cidr: str,
    cluster_cidr: str,
    node_heartbeat_ms: int,
    snapshot_entries: int,
    log_level: str,
) -> None:
    """Run one control-plane replica."""
    setup_logging(log_level)
    try:
        config = ReplicaConfig(
            name=name,
            data_dir=data_dir,
            initial_cluster=parse_initial_cluster(initial_cluster),
            cluster_token=cluster_token,
            heartbeat_ms=heartbeat_ms,
            election_ms_min=election_ms_min,
            election_ms_max=election_ms_max,
            service_cidr=service_cidr,
            cluster_cidr=cluster_cidr,
            node_heartbeat_ms=node_heartbeat_ms,
            snapshot_entries=snapshot_entries,
            log_level=log_level,
        )
        config.validate()
        # gRPC's C core would say the same again, in its own words, before our message.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from controlplane.app import run

        run(config)
    except ConfigError as error:
        click.echo(f"quarterdeck: {error}", err=True)
        sys.exit(2)
    except QuarterdeckError as error:
        click.echo(f"quarterdeck: replica {name} stopped: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
