"""When a packet leaves a link that is slow, narrow or both. Times are told; nothing is waited for."""

from __future__ import annotations

import random

from chaos.shaper import Order, Pacer


def pacer(**figures: float) -> Pacer:
    return Pacer(Order(links=[], stats="", **figures), random.Random(1))  # type: ignore[arg-type]


def test_a_packet_is_held_for_the_delay() -> None:
    assert pacer(delay_ms=75).leaves_at(10.0, 100) == 10.075


def test_jitter_never_turns_the_order_round() -> None:
    slow = pacer(delay_ms=50, jitter_ms=50)
    times = [slow.leaves_at(now, 100) for now in (1.0, 1.001, 1.002, 1.003, 1.5)]
    assert times == sorted(times)  # type: ignore[type-var]
    assert len(set(times)) > 1


def test_a_narrow_link_sends_one_after_the_other() -> None:
    narrow = pacer(rate_bytes_s=1000)
    assert [narrow.leaves_at(0.0, 100) for _ in range(3)] == [0.1, 0.2, 0.30000000000000004]


def test_what_does_not_fit_the_queue_is_lost_and_counted() -> None:
    narrow = pacer(rate_bytes_s=1)
    assert narrow.leaves_at(0.0, 4 * 1024 * 1024) is not None
    assert narrow.leaves_at(0.0, 1) is None
    assert narrow.lost == 1
