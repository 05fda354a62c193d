"""How late the timers of a replica's loop fired, read from its metrics. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Self

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["LoopLag"]

_HISTOGRAM: Final = "quarterdeck_loop_lag_seconds"
_LONGEST: Final = "quarterdeck_loop_lag_longest_seconds"


@dataclass(frozen=True, slots=True)
class LoopLag:
    """``longest_s``: since the replica started. ``counts``: upper bound of a bucket -> timers at most so late."""

    longest_s: float
    counts: dict[float, float]

    @classmethod
    def parse(cls, text: str) -> Self:
        """From what a metrics port answers. Raises ValueError: it has no such metrics."""
        longest, counts = math.nan, {}
        for family in text_string_to_metric_families(text):
            if family.name == _LONGEST:
                longest = family.samples[0].value
            elif family.name == _HISTOGRAM:
                counts = {float(s.labels["le"]): s.value for s in family.samples if s.name.endswith("_bucket")}
        if not counts or math.isnan(longest):
            raise ValueError("the metrics say nothing of the loop's lag")
        return cls(longest, counts)

    def longest_since(self, before: LoopLag) -> float:
        """The longest since then, seconds: exactly if it was the longest ever, else the bound of its bucket."""
        if self.longest_s > before.longest_s:
            return self.longest_s
        bounds = sorted(self.counts)
        below, longest = 0.0, 0.0
        for bound in bounds:
            here = self.counts[bound] - before.counts.get(bound, 0.0)
            if here > below:
                longest = min(bound, self.longest_s)
            below = max(below, here)
        return longest
