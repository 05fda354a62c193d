"""What every case is given: both clusters, how much to measure, where the figures go, and the way to say where it is.

Owns also what must be known to believe a figure: what the machine did before each case, and what the generator cost.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from chaos.bench.budget import Progress, Settings
from chaos.bench.figures import Figures, percentile
from chaos.bench.load import Sample
from chaos.bench.peers import OURS, Peer

__all__ = ["Conditions", "Context"]

#: From this share of a core on the generator may be what limits a load.
_GENERATOR_BUSY: Final = 0.85
#: An open loop later than this is not the load that was asked for.
_LATE_S: Final = 0.02
_LOOK_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Conditions:
    """Of the machine as a case began: load average of the last minute (what was measured before is in it), and the
    share of the processors that was busy in one second in which nothing was measured."""

    case: str
    load_average: float
    busy: float


@dataclass
class Context:
    """What a case is given.

    Attributes:
        running: both clusters, for cases that only add load; each case runs on one and then the other. None while a
            case has clusters of its own.
        folder: for clusters of a case's own.
        port_base: of the clusters' ports.
        generator: what the load generator cost, one figure per load.
        cautions: reasons to doubt a figure.
    """

    running: tuple[Peer, Peer] | None
    folder: Path
    settings: Settings
    progress: Progress
    say: Callable[[str], None]
    port_base: int
    figures: Figures = field(default_factory=Figures)
    generator: Figures = field(default_factory=Figures)
    conditions: list[Conditions] = field(default_factory=list)
    cautions: dict[str, None] = field(default_factory=dict)

    async def begin(self, case: str) -> None:
        """A case begins: look at the machine first."""
        self.progress.begin(case)
        psutil.cpu_percent()
        await asyncio.sleep(_LOOK_S)
        self.conditions.append(Conditions(case, os.getloadavg()[0], psutil.cpu_percent() / 100))

    def step(self, text: str) -> None:
        """The next step of the case begins: say so, and what is left."""
        self.progress.step()
        left = self.progress.left_s()
        about = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        self.say(f"[{self.progress.number}/{self.progress.steps}, about {about} left] {text}")

    def note(self, peer: Peer, name: str, value: float, unit: str, *, more_is_better: bool = False) -> None:
        self.figures.note(peer.kind == OURS, name, value, unit, higher_is_better=more_is_better)

    @property
    def pair(self) -> tuple[Peer, Peer]:
        """Ours and the peer."""
        assert self.running is not None
        return self.running

    def turns(self, rounds: int | None = None) -> list[Peer]:
        """Ours and the peer, alternating who begins; as many rounds as the settings say, or this many."""
        first, second = self.pair
        rounds = self.settings.rounds if rounds is None else rounds
        return [p for i in range(rounds) for p in ((first, second) if i % 2 == 0 else (second, first))]

    def note_sample(self, peer: Peer, what: str, sample: Sample, members_cpu_s: float) -> None:
        """A load's throughput, latencies and price.

        Raises:
            RuntimeError: calls failed: a benchmark of errors is none.
        """
        if sample.errors:
            raise RuntimeError(f"{peer.kind}, {what}: {len(sample.errors)} calls failed, such as {sample.errors[0]!r}")
        if not sample.late_s:  # of an open loop the rate is given
            self.note(peer, f"{what}: throughput", sample.per_second, "/s", more_is_better=True)
        shares = ((0.5, "p50"), (0.99, "p99"), (0.999, "p99.9")) if sample.late_s else _PERCENTILES
        for share, label in shares:
            self.note(peer, f"{what}: {label}", percentile(sample.latencies_s, share) * 1000, "ms")
        per_call = 1000 * members_cpu_s / max(1, len(sample.latencies_s))
        self.note(peer, f"{what}: processor time of the members per call", per_call, "ms")
        self.note_generator(peer, what, sample)

    def note_generator(self, peer: Peer, what: str, sample: Sample) -> None:
        """What the generator cost, and how late it was."""
        ours = peer.kind == OURS
        self.generator.note(ours, f"{what}: share of a core", 100 * sample.generator_share, "%", higher_is_better=False)
        if sample.generator_share >= _GENERATOR_BUSY:
            share = f"the generator used {sample.generator_share:.0%} of its core; the system may do more than this"
            self.cautions[f"{what}, {peer.kind}: {share}"] = None
        if sample.late_s:
            late = percentile(sample.late_s, 0.99)
            self.generator.note(ours, f"{what}: calls begun late, p99", late * 1000, "ms", higher_is_better=False)
            if late >= _LATE_S:
                text = f"one call in a hundred began {late * 1000:.0f} ms late or more; its latency includes that"
                self.cautions[f"{what}, {peer.kind}: {text}"] = None


_PERCENTILES: Final = ((0.5, "p50"), (0.99, "p99"), (1.0, "slowest"))
