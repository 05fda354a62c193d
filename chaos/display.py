"""The live view of a run in a terminal: replicas, faults in force, and how many writes are acknowledged.

Owns layout; changes nothing. What is shown is made by a pure function of a :class:`Frame`. Not a terminal: nothing is
drawn, and the run's lines are all there is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chaos.ground import Ground
from chaos.load import Load
from chaos.lookout import Lookout, ReplicaView

__all__ = ["Board", "Display", "Frame", "curve", "render"]

_EVERY_S: Final = 0.25
_SAMPLES: Final = 72
_BARS: Final = " ▁▂▃▄▅▆▇█"
_NONE: Final = "x"
_STYLES: Final = {"leader": "bold green", "follower": "green", "candidate": "yellow", "silent": "bold red"}


@dataclass(frozen=True, slots=True)
class Frame:
    """What is shown at one moment. ``writes``: acknowledged in each quarter of a second, the newest last."""

    experiment: str
    n: int
    leader: str | None
    replicas: Sequence[ReplicaView]
    faults: Sequence[str]
    pods_ready: int
    pods_wanted: int
    writes: Sequence[int]


@dataclass(frozen=True, slots=True)
class Board:
    """Where frames come from. ``current``: the experiment and the trial."""

    ground: Ground
    lookout: Lookout
    load: Load
    current: Callable[[], tuple[str, int]]

    def frame(self, writes: Sequence[int]) -> Frame:
        """Now."""
        experiment, n = self.current()
        return Frame(
            experiment, n, self.lookout.leader()[0], self.lookout.views(),
            [entry.strike.says for entry in reversed(self.ground.undo.entries)],
            len(self.ground.pods.ready()), self.ground.seen.wanted, list(writes),
        )  # fmt: skip


def curve(writes: Sequence[int]) -> str:
    """A bar for each sample, of the highest; one without any write is a cross, so that a gap is seen."""
    most = max(writes, default=0)
    if not most:
        return _NONE * len(writes)
    return "".join(_NONE if not count else _BARS[max(1, round(count / most * (len(_BARS) - 1)))] for count in writes)


def render(frame: Frame) -> RenderableType:
    """One frame."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("REPLICA", "ROLE", "TERM", "REVISION", "APPLIED"):
        table.add_column(heading, justify="left" if heading in {"REPLICA", "ROLE"} else "right", min_width=9)
    for view in frame.replicas:
        table.add_row(
            f"{'* ' if view.name == frame.leader else '  '}{view.name}",
            Text(view.role, style=_STYLES.get(view.role, "")),
            str(view.term), str(view.revision or "-"), str(view.applied_index or "-"),
        )  # fmt: skip
    per_s = sum(frame.writes[-4:])
    faults = Text("; ".join(frame.faults) or "none", style="bold red" if frame.faults else "dim")
    return Group(
        Text(f"{frame.experiment}, trial {frame.n}", style="bold"),
        table,
        Text.assemble("faults in force: ", faults),
        Text(f"pods ready: {frame.pods_ready}/{frame.pods_wanted}   writes acknowledged: {per_s}/s"),
        Text(curve(frame.writes), style="cyan"),
    )


class Display:
    """Draws a run on a console, if that is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @asynccontextmanager
    async def following(self, board: Board) -> AsyncIterator[None]:
        """Draw until it is left."""
        if not self._console.is_terminal:
            yield
            return
        task = asyncio.create_task(self._draw(board))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _draw(self, board: Board) -> None:
        writes: deque[int] = deque(maxlen=_SAMPLES)
        before = board.load.board.acknowledged_total
        with Live(console=self._console, refresh_per_second=4, transient=True) as live:
            while True:
                now = board.load.board.acknowledged_total
                writes.append(now - before)
                before = now
                live.update(render(board.frame(writes)))
                await asyncio.sleep(_EVERY_S)
