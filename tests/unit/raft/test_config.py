"""Relations between Raft's settings, and ids of clusters and members."""

from __future__ import annotations

import dataclasses

import pytest

from controlplane.base.errors import ConfigError
from controlplane.base.limits import MIB
from controlplane.raft.config import RaftConfig, make_members

ROWS = [("r2", "127.0.0.1:2", "", ""), ("r1", "127.0.0.1:1", "", "")]


def test_the_defaults_are_valid() -> None:
    RaftConfig().validate()


@pytest.mark.parametrize(("heartbeat", "low", "high"), [(50, 500, 1000), (5, 16, 20), (100, 1000, 2000)])
def test_what_follows_from_a_users_settings_is_valid(heartbeat: int, low: int, high: int) -> None:
    config = RaftConfig.of(heartbeat_ms=heartbeat, election_min_ms=low, election_max_ms=high, snapshot_entries=100)
    config.validate()
    assert config.step_down_ms < low


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"heartbeat_ms": 0}, "heartbeat 0 ms"),
        ({"heartbeat_ms": 200}, "three heartbeats"),
        ({"election_max_ms": 500}, "election maximum 500 ms"),
        ({"step_down_ms": 500}, "two leaders overlap"),
        ({"step_down_ms": 50}, "two leaders overlap"),
        ({"hasten_max_ms": 600}, "hastened election"),
        ({"hastened_retry_min_ms": 0}, "hastened retry"),
        ({"append_bytes": 4 * MIB}, "largest log entry"),
        ({"append_bytes": 15 * MIB}, "must fit a frame"),
        ({"inflight_entries_max": 0}, "entries in flight 0"),
        ({"pace_ms": -1}, "pace -1 ms"),
        ({"catch_up_entries": 10_000}, "catch-up entries 10000"),
        ({"catch_up_bytes_per_s": 0}, "catch-up rate 0"),
        ({"snapshot_chunk_bytes": 0}, "snapshot chunk 0 bytes"),
        ({"resend_ms": 50}, "resend 50 ms"),
    ],
)
def test_a_broken_relation_names_the_setting(change: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        dataclasses.replace(RaftConfig(), **change).validate()


def test_ids_do_not_depend_on_the_order_of_members_and_differ_between_clusters() -> None:
    first = make_members("a", ROWS)
    assert make_members("a", reversed(ROWS)) == first
    other_id, other_members = make_members("b", ROWS)
    assert other_id != first[0]
    assert {m.id for m in other_members}.isdisjoint(m.id for m in first[1])
    assert all(0 < m.id < 1 << 63 for m in first[1])


def test_members_need_different_names() -> None:
    with pytest.raises(ConfigError, match="twice"):
        make_members("a", [ROWS[0], ROWS[0]])
    with pytest.raises(ConfigError, match="at least one"):
        make_members("a", [])
