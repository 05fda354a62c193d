"""A seed draws the same faults at the same times; never more at once than allowed."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from chaos.schedule import Choice, Schedule, draw
from controlplane.base.rand import SeededRand

CHOICES = (
    Choice("kill", weight=3, target="replica", for_s=(1, 4)),
    Choice("pause", target="leader", for_s=(0.5, 2)),
    Choice("node-death", target="node", for_s=(2, 8)),
    Choice("never", weight=0, target="node"),
)
PLAN = Schedule(120, (0.5, 3), 2, CHOICES)


@given(st.integers(0, 10_000))
@example(3154)  # a beginning rounded down fell into a third fault's time
def test_a_seed_draws_the_same_again_within_its_bounds(seed: int) -> None:
    drawn = draw(PLAN, CHOICES, SeededRand(seed))
    assert drawn == draw(PLAN, CHOICES, SeededRand(seed))
    assert [each.number for each in drawn] == list(range(1, len(drawn) + 1))
    assert all(each.choice.fault != "never" for each in drawn)
    for each in drawn:
        assert 0.5 <= each.at_s < 120
        assert each.choice.for_s[0] <= each.for_s <= each.choice.for_s[1]
        in_force = [o for o in drawn if o.number < each.number and o.at_s + o.for_s > each.at_s]
        assert len(in_force) < 2


def test_other_seeds_draw_others() -> None:
    assert len({repr(draw(PLAN, CHOICES, SeededRand(seed))) for seed in range(20)}) == 20


def test_weights_count() -> None:
    drawn = [each.choice.fault for seed in range(40) for each in draw(PLAN, CHOICES, SeededRand(seed))]
    assert drawn.count("kill") > drawn.count("pause")


def test_without_a_choice_nothing_is_drawn() -> None:
    assert draw(PLAN, (), SeededRand(1)) == []
