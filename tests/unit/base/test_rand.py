"""Randomness, handed in."""

from __future__ import annotations

import pytest

from controlplane.base.rand import Rand, SeededRand, SystemRand


@pytest.mark.parametrize("rand", [SystemRand(), SeededRand(1)])
def test_numbers_and_tokens_are_in_their_range(rand: Rand) -> None:
    assert all(0.0 <= rand.random() < 1.0 for _ in range(200))
    assert {rand.randint(3, 5) for _ in range(200)} == {3, 4, 5}
    assert [len(rand.token(n)) for n in (0, 1, 16)] == [0, 1, 16]
    assert len({rand.token(16) for _ in range(50)}) == 50


@pytest.mark.parametrize("seed", [7, "seven"])
def test_one_seed_gives_one_sequence(seed: int | str) -> None:
    def draw() -> list[object]:
        rand = SeededRand(seed)
        return [rand.random(), rand.randint(0, 10**9), rand.token(8)]

    assert draw() == draw()
    assert draw() != [SeededRand(8).random(), SeededRand(8).randint(0, 10**9), SeededRand(8).token(8)]


def test_the_machines_randomness_does_not_repeat() -> None:
    assert SystemRand().token(16) != SystemRand().token(16)
