"""The lookout remembers when a leader came, so that who asks later is not told a later time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from chaos.lookout import Lookout
from chaos.probes import PROBES
from chaos.stage import Stage
from controlplane.base.rand import SeededRand
from controlplane.pb.quarterdeck.v1 import operator_pb2
from tests.unit.chaos.fakes import JumpingClock


class Told:
    """Replicas that all say the same leader and term, which the test sets."""

    names = ("r1", "r2", "r3")

    def __init__(self) -> None:
        self.leader: tuple[str | None, int] = ("r1", 4)

    async def status(self, name: str) -> operator_pb2.StatusResponse:
        return operator_pb2.StatusResponse(term=self.leader[1])

    def leader_among(self, answers: Mapping[str, operator_pb2.StatusResponse]) -> tuple[str | None, int]:
        return self.leader if answers else (None, 0)


class Said:
    """As much of a ground as a wait needs."""

    def __init__(self, clock: JumpingClock) -> None:
        self.clock = clock
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


async def test_the_time_to_a_new_leader_ends_when_it_led_not_when_it_was_asked() -> None:
    clock, replicas = JumpingClock(), Told()
    ground = Said(clock)
    async with Lookout(cast(Any, replicas), clock, lambda *_: None) as lookout:
        await clock.sleep(0.1)
        stage = Stage(cast(Any, ground), lookout, act="mine", n=1, rand=SeededRand(1), wanted=0, by="run")
        stage.leader_before, stage.term_before, stage.leader_fault_s = "r1", 4, clock.monotonic()
        replicas.leader = ("r2", 5)
        await clock.sleep(0.1)
        led_s = clock.monotonic()
        await clock.sleep(2.0)  # the old one is still on its way out
        assert await PROBES["new_leader"].ask(stage, within_s=1.0)
    assert 0 < stage.observed["leader_s"] <= led_s - stage.leader_fault_s
    assert (stage.observed["leader_after"], stage.observed["term_after"]) == ("r2", 5)
    assert ground.lines == [f"r2 leads term 5 after {stage.observed['leader_s']:.2f} s"]
