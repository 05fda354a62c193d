"""Who a replica is: by its data directory, by the running cluster's word, or by its settings."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.base.clock import ManualClock
from controlplane.base.errors import ConfigError, CorruptStateError
from controlplane.config import MemberConfig, ReplicaConfig
from controlplane.joining import _place, find_place
from controlplane.pb.etcd import rpc_pb2
from controlplane.raft.disk import RealDisk
from controlplane.raft.founding import FORMAT_VERSION, Founding, peek_founding, read_founding, write_founding
from controlplane.raft.membership import Membership
from controlplane.raft.types import Member

ME = MemberConfig("r4", "10.0.0.4:1", "10.0.0.4:2", "10.0.0.4:3")
FOUNDING = Founding(7, 4, Membership((Member(1, "r1", "10.0.0.1:1", ""), Member(4, "r4", ME.peer, ME.client))))


def config(data_dir: Path, **changes: object) -> ReplicaConfig:
    return replace(ReplicaConfig("r4", data_dir, (ME,)), **changes)  # type: ignore[arg-type]


def answer(*members: rpc_pb2.Member) -> rpc_pb2.MemberListResponse:
    return rpc_pb2.MemberListResponse(header=rpc_pb2.ResponseHeader(cluster_id=7), members=members)


R1 = rpc_pb2.Member(ID=1, name="r1", peerURLs=["http://10.0.0.1:1"], clientURLs=["http://10.0.0.1:2"])


def written(data_dir: Path) -> None:
    disk = RealDisk(data_dir, create=True)
    write_founding(disk, FOUNDING)
    assert read_founding(disk) == FOUNDING
    disk.close()


async def test_a_replica_that_has_lived_is_who_its_data_directory_says(tmp_path: Path) -> None:
    written(tmp_path / "d")
    assert await find_place(config(tmp_path / "d"), clock=ManualClock()) == FOUNDING
    with pytest.raises(ConfigError, match="is that of member r4, this replica is named r5"):
        await find_place(
            config(tmp_path / "d", name="r5", initial_cluster=(replace(ME, name="r5"),)), clock=ManualClock()
        )


async def test_a_founder_without_data_follows_its_settings(tmp_path: Path) -> None:
    assert await find_place(config(tmp_path / "d"), clock=ManualClock()) is None


def test_a_damaged_founding_file_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "d")
    path = tmp_path / "d" / "founding"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptStateError, match="Replace this member"):
        peek_founding(tmp_path / "d")


def test_a_founding_file_from_before_it_had_a_version_is_read(tmp_path: Path) -> None:
    written(tmp_path / "d")
    path = tmp_path / "d" / "founding"
    path.write_bytes(path.read_bytes()[len(b"QDFOUND\n") + 4 :])
    assert peek_founding(tmp_path / "d") == FOUNDING


def test_a_founding_file_of_a_newer_version_is_refused_and_not_called_damaged(tmp_path: Path) -> None:
    written(tmp_path / "d")
    path = tmp_path / "d" / "founding"
    path.write_bytes(b"QDFOUND\n" + struct.pack("<I", FORMAT_VERSION + 1) + b"whatever it is")
    with pytest.raises(ConfigError, match=r"founding has format 3, this version reads up to 2; start the newer"):
        peek_founding(tmp_path / "d")


def test_a_new_member_finds_itself_by_its_peer_address() -> None:
    new = rpc_pb2.Member(ID=4, peerURLs=["http://10.0.0.4:1"], isLearner=True)
    place = _place(answer(R1, new), ME, "10.0.0.1:2")
    assert (place.cluster_id, place.member_id) == (7, 4)
    assert place.membership.get(4) == Member(4, "r4", ME.peer, "", learner=True)
    assert place.membership.voters == {1}


def test_a_replica_that_was_not_added_is_told_how() -> None:
    with pytest.raises(ConfigError, match=r"add it first: qd member add r4 --peer 10\.0\.0\.4:1"):
        _place(answer(R1), ME, "10.0.0.1:2")


def test_a_member_that_has_started_before_does_not_come_back_on_an_empty_disk() -> None:
    old = rpc_pb2.Member(ID=4, name="r4", peerURLs=["http://10.0.0.4:1"], clientURLs=["http://10.0.0.4:2"])
    with pytest.raises(ConfigError, match="Remove the member and add a new one"):
        _place(answer(R1, old), ME, "10.0.0.1:2")
    other = rpc_pb2.Member(ID=4, name="r9", peerURLs=["http://10.0.0.4:1"])
    with pytest.raises(ConfigError, match="is named r9"):
        _place(answer(R1, other), ME, "10.0.0.1:2")
