"""Who is admitted on a link between replicas, and what the refused are told."""

from __future__ import annotations

import pytest

from controlplane.base.identity import member
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import Frame, HelloAck, Ping
from controlplane.transport.peer_handshake import Handshake
from tests.unit.transport.hellos import hello


def handshake(n: int, *, certified: bool = False, epoch: bytes = b"life", empty_disk: bool = False) -> Handshake:
    """Of replica ``r<n>`` of cluster 9, whose peers are the others of 1 to 3; 3 has no name yet; 7 was removed."""
    made = Handshake(cluster_id=9, member_id=n, name=f"r{n}", epoch=epoch, empty_disk=empty_disk, certified=certified)
    made.set_peers({m: "" if m == 3 else f"r{m}" for m in (1, 2, 3) if m != n}, {7: 44, 2: 50})
    return made


def test_members_of_a_cluster_admit_each_other() -> None:
    ack = handshake(1).answer(Frame(hello=handshake(2).hello(1)), "")
    assert ack == HelloAck(member_id=1, epoch=b"life", revision=ack.revision)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cluster_id": 8}, "cluster 8"),
        ({"member_id": 77}, "not in this cluster"),
        ({"member_id": 1}, "not in this cluster"),
        ({"to_member_id": 5}, "you want member 5"),
        ({"protocol_version": 99}, "protocol version 99"),
        ({"member_id": 7}, "member 7 was removed"),
    ],
)
def test_a_wrong_hello_is_refused_with_the_reason(changes: dict[str, object], why: str) -> None:
    assert why in handshake(1).answer(hello(**changes), "").refused


def test_anything_but_a_hello_is_refused() -> None:
    assert handshake(1).answer(Frame(ping=Ping(seq=1)), "").refused == "say hello first"


def test_a_removed_member_is_told_when_unless_it_is_another_clusters() -> None:
    assert handshake(1).answer(hello(member_id=7), "").removed_at_index == 44
    assert handshake(1).answer(hello(member_id=7, cluster_id=8), "").removed_at_index == 0


def test_with_tls_a_name_counts_with_its_certificate_only() -> None:
    ours = handshake(1, certified=True)
    assert not ours.answer(hello(), "r2").refused
    assert ours.answer(hello(), "r3").refused == "your certificate is that of r3, you say 'r2'"
    assert ours.answer(hello(member_name="r3"), "r3").refused  # 2 is known as r2
    assert not ours.answer(hello(member_id=3, member_name="new"), "new").refused  # 3 has no name yet
    assert [ours.is_holder(peer_id, member("r2")) for peer_id in (2, 3, 7)] == [True, True, False]


def test_an_empty_disk_is_admitted_in_one_life_only() -> None:
    ours = handshake(1)
    for _ in range(2):
        assert not ours.answer(hello(epoch=b"first", empty_disk=True), "").refused
    ack = ours.answer(hello(epoch=b"second", empty_disk=True), "")
    assert ack.disk_lost
    assert "comes with an empty disk" in ack.refused
    assert not ours.answer(hello(epoch=b"third"), "").refused  # its disk is there


def test_a_refused_life_is_not_the_one_that_was_admitted() -> None:
    ours = handshake(1)
    assert ours.answer(hello(epoch=b"wrong", to_member_id=5), "").refused
    assert not ours.answer(hello(epoch=b"first", empty_disk=True), "").refused


def test_peers_are_called_by_name_and_by_id_until_they_have_one() -> None:
    ours = handshake(1)
    assert [ours.name(peer_id) for peer_id in (2, 3, 255)] == ["r2", "3", "ff"]
