"""What a benchmark's table says: medians, ranges, ratios."""

from __future__ import annotations

import pytest

from chaos.bench.figures import Figures, percentile, table


def test_a_percentile_is_the_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert percentile([7.0], 0.99) == 7.0


def test_the_ratio_is_of_the_medians() -> None:
    figures = Figures()
    for ours, peer in ((100.0, 300.0), (200.0, 400.0), (900.0, 500.0)):
        figures.note(True, "writes", ours, "/s", higher_is_better=True)
        figures.note(False, "writes", peer, "/s", higher_is_better=True)
    (writes,) = figures
    assert writes.ratio == pytest.approx(0.5)
    assert "| writes | 200 /s (100 to 900) | 400 /s (300 to 500) | 0.50 | more | 3 |" in table(figures)


def test_a_side_without_values_has_no_ratio_and_says_so() -> None:
    figures = Figures()
    figures.note(True, "restore", 1.5, "s", higher_is_better=False)
    assert "| restore | 1.50 s | - | - | less | 1, 0 |" in table(figures)
