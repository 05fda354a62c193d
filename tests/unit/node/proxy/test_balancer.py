"""Where the next connection goes."""

from __future__ import annotations

from node.proxy.balancer import Balancer

A, B, C = ("127.1.0.1", 80), ("127.1.0.2", 80), ("127.1.0.3", 80)


def balancer(affinity_s: int = 0) -> Balancer:
    made = Balancer()
    made.update((A, B, C), affinity_s)
    return made


def test_connections_go_round() -> None:
    b = balancer()
    assert [next(b.candidates("x", 0.0)) for _ in range(4)] == [A, B, C, A]


def test_each_endpoint_is_a_candidate_once() -> None:
    assert sorted(balancer().candidates("x", 0.0)) == [A, B, C]


def test_no_endpoint_means_no_candidate() -> None:
    assert list(Balancer().candidates("x", 0.0)) == []


def test_a_failed_endpoint_comes_last_for_a_moment() -> None:
    b = balancer()
    b.failed(A, 0.0)
    assert list(b.candidates("x", 0.5)) == [B, C, A]
    assert next(Balancer.candidates(b, "x", 2.0)) == B  # the turn went on
    b.update((A, B, C), 0)
    assert list(b.candidates("x", 2.0))[-1] != A


def test_a_client_with_affinity_keeps_its_endpoint_until_it_expires() -> None:
    b = balancer(affinity_s=10)
    b.connected("x", C, 0.0)
    assert next(b.candidates("x", 9.9)) == C
    b.connected("x", C, 9.9)
    assert next(b.candidates("x", 19.0)) == C
    assert list(b.candidates("x", 20.0)) == [A, B, C]  # expired: the round again


def test_affinity_gives_way_when_the_endpoint_fails_or_leaves() -> None:
    b = balancer(affinity_s=10)
    b.connected("x", C, 0.0)
    b.failed(C, 1.0)
    assert next(b.candidates("x", 1.1)) != C
    b.connected("y", B, 1.0)
    assert b.update((A, C), 10) == {B}
    assert B not in list(b.candidates("y", 1.1))
