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
    own_order = list(b.candidates("x", 0.0))
    kept = own_order[-1]
    b.connected("x", kept, 0.0)
    assert next(b.candidates("x", 9.9)) == kept
    b.connected("x", kept, 9.9)
    assert next(b.candidates("x", 19.0)) == kept
    assert list(b.candidates("x", 20.0)) == own_order  # expired: as if it had never come


def test_affinity_gives_way_when_the_endpoint_fails_or_leaves() -> None:
    b = balancer(affinity_s=10)
    b.connected("x", C, 0.0)
    b.failed(C, 1.0)
    assert next(b.candidates("x", 1.1)) != C
    b.connected("y", B, 1.0)
    assert b.update((A, C), 10) == {B}
    assert B not in list(b.candidates("y", 1.1))


def test_agents_that_share_an_address_send_a_client_to_the_same_endpoint() -> None:
    endpoints = tuple((f"127.0.0.{i}", 80) for i in range(1, 6))
    first, second = Balancer(offset=0), Balancer(offset=3)
    for agent in (first, second):
        agent.update(endpoints, 60)
    chosen = [next(first.candidates(f"10.0.0.{i}", 0.0)) for i in range(100)]
    assert chosen == [next(second.candidates(f"10.0.0.{i}", 0.0)) for i in range(100)]
    assert set(chosen) == set(endpoints)
    # One that leaves moves only its own clients.
    for agent in (first, second):
        agent.update(endpoints[1:], 60)
    moved = [next(first.candidates(f"10.0.0.{i}", 0.0)) for i in range(100)]
    assert [m for m, c in zip(moved, chosen, strict=True) if c != endpoints[0]] == [
        c for c in chosen if c != endpoints[0]
    ]
