"""What a benchmark's table says: medians, ranges, ratios."""

from __future__ import annotations

import pytest

from chaos.bench.figures import Figures, percentile, table
from chaos.bench.targets import TARGETS


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
    assert "| writes | 200 /s (100 to 900) | 400 /s (300 to 500) | 0.50 | more | 3 |" in table(figures, {})


def test_a_side_without_values_has_no_ratio_and_says_so() -> None:
    figures = Figures()
    figures.note(True, "restore", 1.5, "s", higher_is_better=False)
    assert "| restore | 1.50 s | - | - | less | 1, 0 |" in table(figures, {})


def test_a_row_with_a_target_says_whether_it_is_met() -> None:
    figures = Figures()
    for name, ours in (
        ("longest write gap, kill -9 of the leader", [0.08, 0.4, 0.09]),
        ("writes, 500 clients: p99", [5.0]),
    ):
        for value in ours:
            figures.note(True, name, value, "s", higher_is_better=False)
        figures.note(False, name, 10.0, "s", higher_is_better=False)
    kill, p99 = table(figures, TARGETS).splitlines()[2:]
    assert kill.endswith("| less | median <= 0.1 s, worst <= 0.3 s | **no** | 3, 1 |")
    assert p99.endswith("| less | lower than etcd | yes | 1 |")


def test_a_target_of_nothing_measured_is_neither_met_nor_missed() -> None:
    ratio, gap = TARGETS["etcdctl check perf, load l: writes"], TARGETS["longest write gap, SIGTERM of the leader"]
    assert ratio.met([900.0], None) is None
    assert gap.met([], None) is None
    assert ratio.met([900.0], 1.5) is True
    assert ratio.met([900.0], 1.49) is False
    assert gap.met([0.03, 0.01], None) is True
