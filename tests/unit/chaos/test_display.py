"""What the live view shows, and what it shows where there is no terminal: nothing."""

from __future__ import annotations

import io
from typing import Any, cast

from rich.console import Console

from chaos.display import Display, Frame, curve, render
from chaos.lookout import ReplicaView

FRAME = Frame(
    "leader-kill", 3, "r2",
    [ReplicaView("r1", "silent", 4, 0, 0, ready=False), ReplicaView("r2", "leader", 5, 1234, 77, ready=True)],
    ["kill -9 r1"], 5, 6, [10, 0, 20, 20],
)  # fmt: skip


def test_a_frame_shows_replicas_faults_and_writes() -> None:
    output = io.StringIO()
    Console(file=output, width=100).print(render(FRAME))
    text = output.getvalue()
    assert "leader-kill, trial 3" in text
    assert "* r2" in text
    assert "1234" in text
    assert "silent" in text
    assert "faults in force: kill -9 r1" in text
    assert "pods ready: 5/6   writes acknowledged: 50/s" in text


def test_a_gap_is_seen_in_the_curve() -> None:
    assert curve([10, 0, 20, 1]) == "▄x█▁"
    assert curve([0, 0]) == "xx"
    assert curve([]) == ""


async def test_without_a_terminal_nothing_is_drawn() -> None:
    output = io.StringIO()
    async with Display(Console(file=output)).following(cast(Any, None)):
        pass
    assert output.getvalue() == ""
