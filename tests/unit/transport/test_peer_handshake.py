"""Who is admitted on a link between replicas, and what the refused are told."""

from __future__ import annotations

import pytest

from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import Frame, HelloAck, Ping
from controlplane.transport.peer_handshake import GUESTS_MAX, Handshake
from tests.unit.transport.hellos import hello


def handshake(n: int, *, certified: bool = False, epoch: bytes = b"life", empty_disk: bool = False) -> Handshake:
    """Of replica ``r<n>`` of cluster 9, whose peers are the others of 1 to 3; 3 has no name yet; 7 was removed."""
    made = Handshake(
        cluster_id=9, member_id=n, name=f"r{n}", address=f"r{n}:1", epoch=epoch, empty_disk=empty_disk,
        certified=certified,
    )  # fmt: skip
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
    assert [ours.is_holder(peer_id, "r2") for peer_id in (2, 3, 7)] == [True, True, False]


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


def guest(**changes: object) -> Frame:
    """The hello of a member that nobody here has heard of, but for the changes."""
    return hello(**{"member_id": 99, "member_name": "r9", "peer_address": "r9:1", **changes})


def test_a_member_of_the_cluster_that_is_not_known_yet_is_a_guest() -> None:
    ours = handshake(1)
    assert not ours.answer(guest(), "").refused
    assert ours.name(99) == "r9"
    ours.set_peers({2: "r2"}, {99: 70})
    assert ours.answer(guest(), "").removed_at_index == 70
    assert ours.name(99) == "63"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"peer_address": ""}, "not in this cluster"),
        ({"peer_address": "r9"}, "not in this cluster"),
        ({"member_id": 1}, "not in this cluster"),
        ({"member_id": 7}, "was removed"),
        ({"cluster_id": 8}, "cluster 8"),
        ({"to_member_id": 5}, "you want member 5"),
    ],
)
def test_who_cannot_be_a_member_is_no_guest(changes: dict[str, object], why: str) -> None:
    ours = handshake(1)
    assert why in ours.answer(guest(**changes), "").refused


def test_a_guest_has_the_certificate_of_its_name_and_keeps_the_name() -> None:
    ours = handshake(1, certified=True)
    assert "your certificate is that of r3" in ours.answer(guest(), "r3").refused
    assert not ours.answer(guest(), "r9").refused
    assert ours.answer(guest(member_name="r3"), "r3").refused
    assert [ours.is_holder(99, name) for name in ("r9", "r3")] == [True, False]


def test_guests_are_few_and_make_room() -> None:
    ours = handshake(1)
    for n in range(GUESTS_MAX):
        assert not ours.answer(guest(member_id=100 + n), "").refused
    assert "not in this cluster" in ours.answer(guest(), "").refused
    assert not ours.answer(guest(member_id=100), "").refused, "one that is here already"
    assert ours.answer(guest(member_id=100, peer_address=""), "").refused, "and must be reached all the same"
    ours.see_out(100)
    assert not ours.answer(guest(), "").refused
