"""Faults of clocks: the wall clock set, the wall clock running fast or slow, the clock that never jumps jumping.

By libfaketime, process by process: the machine's own clock is never touched. A process that was not started under it
is restarted first, and given its leadership back. Nothing is a failure for that: the cluster must not mind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from chaos.fault import JSON, Fault, Strike, Undo
from chaos.faults.again import restart
from chaos.faults.params import known, number
from chaos.ground import Ground, aside
from chaos.targets import TargetError, quorum_lost
from controlplane.base.errors import ConfigError
from controlplane.base.rand import Rand
from controlplane.local.clocks import Clocks, library

__all__ = ["FAULTS"]

#: libfaketime looks at the file once a second.
_TAKEN_UP_S: Final = 1.2


class _OnClock(Fault):
    target = "leader"
    monotonic = False

    def missing(self, ground: Ground) -> str | None:
        return None if library() is not None else "not installed: libfaketime (Debian package faketime)"

    def _planned(self, ground: Ground, targets: Sequence[str], wrong: dict[str, float], what: str) -> Strike:
        for name in targets:
            if name not in {*ground.seen.replicas, *ground.seen.nodes}:
                raise ConfigError(f"{self.name}: {name} is no replica and no node: only those have clocks of their own")
        there = {name for e in ground.undo.entries if e.strike.fault in _NAMES for name in e.strike.victims}
        if already := sorted(there & set(targets)):
            # There is one file a process: the first to be healed would put the other's clock right as well.
            raise TargetError(f"{self.name}: the clock of {', '.join(already)} is wrong already: heal that first")
        fresh = [name for name in targets if not self._prepared(ground, name)]
        first = f" ({', '.join(fresh)} restarted first)" if fresh else ""
        return Strike(
            self.name, tuple(targets),
            # Who is restarted is of no use meanwhile: what is drawn beside must not take the next one.
            {"wrong": wrong, "down": [name for name in fresh if name in ground.seen.replicas]},
            tuple(Undo(self.name, {"name": name}) for name in targets),
            quorum_lost=any(quorum_lost(ground.seen, [name]) for name in fresh if name in ground.seen.replicas),
            says=f"{what} of {', '.join(targets)}{first}",
        )  # fmt: skip

    def _prepared(self, ground: Ground, name: str) -> bool:
        pid = ground.cluster.processes.pid(name)
        return pid is not None and Clocks.faked(pid) == ("monotonic" if self.monotonic else "wall")

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        clocks, restarted = ground.cluster.clocks, []
        for name in strike.victims:
            if not self._prepared(ground, name):
                await restart(ground, name, lambda name=name: clocks.set(name, monotonic=self.monotonic))  # type: ignore[misc]
                restarted.append(name)
        for name in strike.victims:
            await aside(clocks.set, name, **strike.args["wrong"], monotonic=self.monotonic)
        await ground.clock.sleep(_TAKEN_UP_S)
        return {"restarted_first": restarted} if restarted else {}

    async def proof(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        """Whether every victim that runs is under a clock of its own."""
        pids = {name: ground.cluster.processes.pid(name) for name in strike.victims}
        faked = {name: Clocks.faked(pid) for name, pid in pids.items() if pid is not None}
        return {"bit": bool(faked) and all(faked.values()), "clocks": faked, **strike.args["wrong"]}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        """The right time; the process stays under libfaketime until its next start."""
        name = undo.args["name"]
        pid = ground.cluster.processes.pid(name)
        if pid is not None and Clocks.faked(pid):
            await aside(ground.cluster.clocks.right, name)
        else:
            await aside(ground.cluster.clocks.clear, name)


class ClockStep(_OnClock):
    """Somebody sets the clock."""

    name = "clock-step"
    doc = "the wall clock jumps by some seconds, either way, until healed"
    params: Mapping[str, str] = {"step_s": "seconds, 3600 by default; negative: back"}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        step_s = number(self.name, params, "step_s", 3600, -10_000_000, 10_000_000)
        return self._planned(ground, targets, {"offset_s": step_s}, f"a step of {step_s:+g} s of the wall clock")


class ClockSkew(_OnClock):
    """A bad quartz."""

    name = "clock-skew"
    doc = "the wall clock runs fast or slow, until healed"
    params: Mapping[str, str] = {"rate": "seconds it tells per second, 2 by default"}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        rate = number(self.name, params, "rate", 2, 0.1, 10)
        if rate == 1:
            raise ConfigError(f"{self.name}: rate is 1: that is no skew")
        return self._planned(ground, targets, {"rate": rate}, f"a wall clock {rate:g} times as fast")


class MonotonicJump(_OnClock):
    """A machine that slept without being told."""

    name = "monotonic-jump"
    doc = "both clocks jump ahead, as after a machine was frozen; restarted under its own when healed"
    monotonic = True
    params: Mapping[str, str] = {"jump_s": "seconds, 5 by default"}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        jump_s = number(self.name, params, "jump_s", 5, 0.1, 100_000)
        return self._planned(ground, targets, {"offset_s": jump_s}, f"a jump of {jump_s:g} s of both clocks")

    async def heal(self, ground: Ground, undo: Undo) -> None:
        """A clock that never goes back cannot be put back: the process is restarted without."""
        name = undo.args["name"]
        pid = ground.cluster.processes.pid(name)
        if pid is not None and Clocks.faked(pid):
            await restart(ground, name, lambda: ground.cluster.clocks.clear(name), keep_leader=False)
        else:
            await aside(ground.cluster.clocks.clear, name)


FAULTS: Final[tuple[Fault, ...]] = (ClockStep(), ClockSkew(), MonotonicJump())
_NAMES: Final = frozenset(fault.name for fault in FAULTS)
