"""How long a run takes, what of it fits into a budget, and how much is left. Pure: no clock but what is handed in.

Owns the estimates: what each step of each case costs on a quiet machine of two cores. They need not be right, only in
proportion; the pace of the run so far corrects them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from controlplane.base.errors import ConfigError

__all__ = ["FAULTS", "NAMES", "Progress", "Settings", "check_perf_rounds", "expected", "fit"]

#: Faults of the case ``gaps``, in each of its trials.
FAULTS: Final = ("kill -9", "SIGSTOP", "SIGTERM")
_TRIALS_MIN: Final = 3
#: Pairs of (rounds, seconds of a load), the best first: what a budget has to choose from.
_LOADS: Final = ((3, 10.0), (3, 6.0), (3, 4.0), (2, 4.0), (2, 3.0), (1, 3.0))
#: Part of a budget that is kept for starting and stopping clusters, and for estimates that are wrong.
_RESERVE: Final = 0.12
#: Below so many expected seconds the pace so far says nothing.
_PACE_KNOWN_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        rounds: how often the two take turns under each load.
        trials: faults of each kind on each.
        seconds: of one load.
        sizes: numbers of keys for restart, restore and memory.
    """

    rounds: int = 3
    trials: int = 50
    seconds: float = 10.0
    sizes: tuple[int, ...] = (10_000, 20_000, 100_000, 1_000_000)

    def __str__(self) -> str:
        sizes = ", ".join(f"{size:,}" for size in self.sizes)
        return f"{self.rounds} rounds of {self.seconds:g} s per load, {self.trials} trials per fault, {sizes} keys"


def check_perf_rounds(settings: Settings) -> int:
    """etcdctl's own load takes a minute whatever is asked: one round less than of the others."""
    return max(1, settings.rounds - 1)


def _loads(kinds: int, extra_s: float) -> Callable[[Settings], list[float]]:
    return lambda s: [s.seconds + extra_s] * (kinds * s.rounds * 2)


def _sizes(s: Settings) -> list[float]:
    # Filling, a restart and a restore; ours takes longer to start, and longer per key.
    return [cost for size in s.sizes for cost in (12 + size * 230e-6, 5 + size * 105e-6)]


#: Seconds of every step of a case, in order. The order of the cases is that of the run.
_STEPS: Final[Mapping[str, Callable[[Settings], list[float]]]] = {
    "writes": _loads(3, 1.0),
    "steady": _loads(3, 1.0),
    "reads": _loads(2, 1.0),
    "mixed": _loads(1, 1.0),
    "check-perf": lambda s: [64.0] * (2 * check_perf_rounds(s)),
    "watch": _loads(1, 3.0),
    "leases": _loads(1, 2.0),
    "gaps": lambda s: [cost for _ in range(s.trials) for cost in (5.5, 4.0, 4.0, 4.0, 5.5, 4.0)],
    "stalls": lambda s: [s.seconds + 8.0],
    "cut-links": lambda s: [4.5, 4.5] * s.trials,
    "sizes": _sizes,
}
NAMES: Final = tuple(_STEPS)


def expected(name: str, settings: Settings) -> list[float]:
    """Seconds of every step of that case."""
    return _STEPS[name](settings)


def fit(names: Sequence[str], asked: Settings, budget_s: float) -> Settings:
    """What of ``asked`` fits into the budget: shorter loads and fewer rounds, fewer trials, at last the largest sizes
    left out. Never more than was asked for.

    Raises:
        ConfigError: not even the least fits; the message says what would.
    """
    room_s = budget_s * (1 - _RESERVE)
    sizes = asked.sizes
    while True:
        for rounds, seconds in _LOADS:
            tried = replace(
                asked, rounds=min(asked.rounds, rounds), seconds=min(asked.seconds, seconds), sizes=sizes, trials=0
            )
            fixed_s = sum(sum(expected(name, tried)) for name in names)
            a_trial_s = sum(sum(expected(name, replace(tried, trials=1))) for name in names) - fixed_s
            trials = asked.trials if a_trial_s == 0 else min(asked.trials, int((room_s - fixed_s) / a_trial_s))
            # The longer loads only if enough trials are left beside them.
            enough = min(asked.trials, _TRIALS_MIN if (rounds, seconds) == _LOADS[-1] else 3 * _TRIALS_MIN)
            if fixed_s <= room_s and trials >= enough:
                return replace(tried, trials=trials)
        if not sizes or "sizes" not in names:
            least = replace(asked, rounds=1, seconds=_LOADS[-1][1], sizes=sizes, trials=min(asked.trials, _TRIALS_MIN))
            needs_s = sum(sum(expected(name, least)) for name in names) / (1 - _RESERVE)
            raise ConfigError(f"a budget of {budget_s / 60:g} minutes is too short: the least is {needs_s / 60:.1f}")
        sizes = sizes[:-1]


class Progress:
    """Where a run is: which step of how many, how long the rest will take, and whether a budget is used up.

    Args:
        names: the cases, in the order in which they are run.
        now: seconds, monotonic.
        budget_s: when the run should be over; None: when it is.
    """

    def __init__(
        self, names: Sequence[str], settings: Settings, now: Callable[[], float], budget_s: float | None = None
    ) -> None:
        self._cases = [(name, expected(name, settings)) for name in names]
        self._now = now
        self._begun = now()
        self._budget_s = budget_s
        self._case = 0
        self._step = 0  # of the case: those that have begun

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return sum(len(steps) for _, steps in self._cases)

    @property
    def number(self) -> int:
        """Of the step that runs, from 1."""
        return sum(len(steps) for _, steps in self._cases[: self._case]) + self._step

    def begin(self, name: str) -> None:
        """A case begins; what an earlier one left out is behind us."""
        self._case = next(i for i, (case, _) in enumerate(self._cases) if case == name)
        self._step = 0

    def step(self) -> None:
        """The next step of the case begins."""
        self._step = min(self._step + 1, len(self._cases[self._case][1]))

    def left_s(self) -> float:
        """Seconds until the run is over, the present step included, at the pace so far."""
        mine = self._cases[self._case][1]
        return self._pace() * (sum(mine[max(0, self._step - 1) :]) + self._behind_s())

    def time_is_up(self) -> bool:
        """Whether the case should end here, so that those behind it have their time within the budget."""
        if self._budget_s is None:
            return False
        return self._now() - self._begun + self._pace() * self._behind_s() >= self._budget_s

    def fits(self, steps: int) -> bool:
        """Whether the next steps of the case can be done within the budget."""
        if self._budget_s is None:
            return True
        ahead_s = sum(self._cases[self._case][1][self._step : self._step + steps])
        return self._now() - self._begun + self._pace() * ahead_s <= self._budget_s

    def _behind_s(self) -> float:
        return sum(sum(steps) for _, steps in self._cases[self._case + 1 :])

    def _pace(self) -> float:
        """Seconds that an expected second takes."""
        mine = self._cases[self._case][1]
        done_s = sum(sum(steps) for _, steps in self._cases[: self._case]) + sum(mine[: max(0, self._step - 1)])
        if done_s < _PACE_KNOWN_S:
            return 1.0
        return min(max((self._now() - self._begun) / done_s, 0.3), 5.0)
