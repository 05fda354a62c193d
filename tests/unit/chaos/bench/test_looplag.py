"""The longest stall between two looks at a replica's metrics."""

from __future__ import annotations

import pytest

from chaos.bench.looplag import LoopLag


def text(longest_s: float, *counts: int) -> str:
    buckets = zip(("0.01", "0.1", "1.0", "+Inf"), counts, strict=True)
    lines = [f'quarterdeck_loop_lag_seconds_bucket{{le="{bound}"}} {n}' for bound, n in buckets]
    return "\n".join(
        [
            "# TYPE quarterdeck_loop_lag_seconds histogram",
            *lines,
            "# TYPE quarterdeck_loop_lag_longest_seconds gauge",
            f"quarterdeck_loop_lag_longest_seconds {longest_s}",
            "",
        ]
    )


def test_the_longest_ever_is_known_exactly() -> None:
    before, after = LoopLag.parse(text(0.05, 5, 6, 6, 6)), LoopLag.parse(text(0.37, 9, 10, 11, 11))
    assert after.longest_since(before) == 0.37


def test_one_that_was_not_the_longest_ever_is_known_by_its_bucket() -> None:
    before, after = LoopLag.parse(text(0.5, 5, 5, 6, 6)), LoopLag.parse(text(0.5, 9, 11, 12, 12))
    assert after.longest_since(before) == 0.1


def test_no_timer_no_stall() -> None:
    lag = LoopLag.parse(text(0.5, 5, 5, 6, 6))
    assert lag.longest_since(lag) == 0.0


def test_other_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing of the loop's lag"):
        LoopLag.parse("# TYPE up gauge\nup 1\n")
