"""A replica's settings: each rule has a test at its edge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.backup.config import BackupConfig
from controlplane.backup.retention import Keep
from controlplane.base.errors import ConfigError
from controlplane.config import ReplicaConfig, parse_dial, parse_initial_cluster
from controlplane.external.config import StoreConfig

GOOD = ReplicaConfig(
    name="r1",
    data_dir=Path("unused"),
    initial_cluster=parse_initial_cluster("r1=h:1@h:2@h:3,r2=h:4@h:5@h:6"),
)


def test_the_defaults_are_valid() -> None:
    GOOD.validate()
    replace(GOOD, backup=BackupConfig("s3://bucket/prefix")).validate()
    replace(GOOD, backup=BackupConfig("folder", interval_ms=0, snapshot_every_s=0)).validate()
    assert GOOD.me.client == "h:2"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": "r9"}, "r9"),
        ({"heartbeat_ms": 4}, "heartbeat 4 ms"),
        ({"election_ms_min": 149}, "three heartbeats"),
        ({"election_ms_max": 500}, "election maximum"),
        ({"service_cidr": "127.128.0.0/24"}, "overlaps"),
        ({"service_cidr": "127.96.0.1/16"}, "service range"),
        ({"cluster_cidr": "127.128.0.0/25"}, "/24 or wider"),
        ({"node_heartbeat_ms": 99}, "node heartbeat"),
        ({"snapshot_entries": 99}, "snapshot entries"),
        ({"backup": BackupConfig("x", interval_ms=99)}, "archive interval 99 ms"),
        ({"backup": BackupConfig("x", snapshot_every_s=4)}, "snapshots every 4 s"),
        ({"backup": BackupConfig("x", keep=Keep())}, "say what to keep"),
        ({"backup": BackupConfig("x"), "store": StoreConfig.parse("etcd://h:1")}, "--archive"),
        ({"initial_cluster": parse_initial_cluster("r1=h:1@h:2@h:2")}, "address appears twice"),
        ({"initial_cluster": parse_initial_cluster("r1=h:1@h:2@h:3,r1=h:4@h:5@h:6")}, "name appears twice"),
        ({"initial_cluster": parse_initial_cluster("r1=h:1@h:2@h:3,R_2=h:4@h:5@h:6")}, "R_2"),
    ],
)
def test_a_wrong_setting_is_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        replace(GOOD, **change).validate()  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "r1", "r1=h:1", "r1=h:1@h:2"])
def test_a_wrong_initial_cluster_shows_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match="NAME=PEER@CLIENT@METRICS"):
        parse_initial_cluster(text)


def test_a_peer_is_dialled_elsewhere_if_it_is_said_so() -> None:
    assert parse_dial(["10.0.0.1:1=127.0.0.1:2"]) == (("10.0.0.1:1", "127.0.0.1:2"),)
    with pytest.raises(ConfigError, match="want PEER=INSTEAD"):
        parse_dial(["10.0.0.1:1"])
