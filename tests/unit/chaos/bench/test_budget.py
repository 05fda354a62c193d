"""What fits into a budget, and what a run says of the time that is left."""

from __future__ import annotations

import pytest

from chaos.bench.budget import NAMES, Progress, Settings, expected, fit
from controlplane.base.errors import ConfigError


def cost_s(names: tuple[str, ...], settings: Settings) -> float:
    return sum(sum(expected(name, settings)) for name in names)


@pytest.mark.parametrize("minutes", [15, 22, 25, 30, 45])
def test_what_was_chosen_fits_and_uses_most_of_the_budget(minutes: int) -> None:
    chosen = fit(NAMES, Settings(), minutes * 60)
    assert 0.6 * minutes * 60 < cost_s(NAMES, chosen) < 0.9 * minutes * 60
    assert chosen.trials >= 3


def test_a_larger_budget_never_measures_less() -> None:
    chosen = [fit(NAMES, Settings(), minutes * 60) for minutes in (20, 30, 60, 120)]
    assert [len(s.sizes) for s in chosen] == sorted(len(s.sizes) for s in chosen)
    assert [s.rounds * s.seconds for s in chosen] == sorted(s.rounds * s.seconds for s in chosen)


def test_nothing_is_measured_more_often_than_asked() -> None:
    asked = Settings(rounds=1, trials=4, seconds=2.0, sizes=(1_000,))
    assert fit(NAMES, asked, 10 * 3600) == asked


def test_the_largest_sizes_are_left_out_last_of_all() -> None:
    chosen = fit(NAMES, Settings(), 8 * 60)
    assert chosen.sizes == Settings().sizes[: len(chosen.sizes)] != Settings().sizes
    assert chosen.rounds == 1


def test_a_budget_that_nothing_fits_into_is_refused_with_the_least() -> None:
    with pytest.raises(ConfigError, match=r"a budget of 1 minutes is too short: the least is \d+\.\d"):
        fit(NAMES, Settings(), 60)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_steps_are_counted_and_what_is_left_follows_the_pace() -> None:
    clock, settings = Clock(), Settings(rounds=1, seconds=9.0)
    progress = Progress(("writes", "mixed"), settings, clock)
    assert progress.steps == 8
    progress.begin("writes")
    progress.step()
    assert (progress.number, progress.left_s()) == (1, 80.0)
    for _ in range(3):
        clock.now_s += 20.0  # twice what was expected
        progress.step()
    assert (progress.number, progress.left_s()) == (4, 2 * 50.0)
    progress.begin("mixed")
    progress.step()
    assert progress.number == 7


def test_trials_end_when_the_cases_behind_them_need_what_is_left_of_the_budget() -> None:
    clock, settings = Clock(), Settings(trials=10)
    behind = sum(expected("cut-links", settings))
    progress = Progress(("gaps", "cut-links"), settings, clock, budget_s=behind + 300)
    progress.begin("gaps")
    assert not progress.time_is_up()
    clock.now_s += 301
    assert progress.time_is_up()


def test_a_size_is_begun_only_if_it_can_be_ended_within_the_budget() -> None:
    clock, settings = Clock(), Settings(sizes=(10_000, 1_000_000))
    steps = expected("sizes", settings)
    progress = Progress(("sizes",), settings, clock, budget_s=sum(steps) + 1)
    progress.begin("sizes")
    assert progress.fits(2)
    progress.step()
    progress.step()
    clock.now_s += sum(steps[:2])
    assert progress.fits(2)
    clock.now_s += 2
    assert not progress.fits(2)


def test_without_a_budget_time_is_never_up() -> None:
    clock = Clock()
    progress = Progress(("gaps",), Settings(), clock)
    progress.begin("gaps")
    clock.now_s += 1e6
    assert not progress.time_is_up()
    assert progress.fits(1)
