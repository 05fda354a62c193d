"""Faults of what a machine has too little of: processor time, memory.

Processor time is taken by the kernel where it lets us (control groups, version 1, as root): a process gets so many
percent of one processor. Elsewhere it is stopped and continued ten times a second, so that it runs that share of
the time; then this process must live while the fault lasts, and whoever heals continues it.

Memory is taken from the whole machine, by a process of ours that fills it and touches it again and again (``hog``). How
much is bounded: chaos must not kill who is not meant.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Final

from chaos.fault import JSON, Fault, Strike, Undo
from chaos.faults.params import integer, known
from chaos.ground import Ground, aside
from chaos.groups import PREFIX, CpuGroup
from chaos.hog import Hogs
from chaos.remote import RemoteCluster
from chaos.targets import TargetError
from controlplane.base.errors import ConfigError
from controlplane.base.rand import Rand
from controlplane.local.procfs import stat_of

__all__ = ["FAULTS"]

_PERIOD_S: Final = 0.1


class CpuThrottle(Fault):
    """A neighbour who takes the processor."""

    name = "cpu-throttle"
    doc = "a replica or an agent gets no more than some percent of one processor, until healed"
    target = "leader"
    params: Mapping[str, str] = {"percent": "of one processor, 1 to 90; 10 by default"}

    def __init__(self) -> None:
        self._driving: dict[str, asyncio.Task[None]] = {}
        self._stops: dict[str, int] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        percent = integer(self.name, params, "percent", 10, 1, 90)
        for name in targets:
            if name not in ground.cluster.names:
                raise ConfigError(f"{self.name}: no process {name!r}; there are: {', '.join(ground.cluster.names)}")
        there = {name for e in ground.undo.entries if e.strike.fault == self.name for name in e.strike.victims}
        if already := sorted(there & set(targets)):
            # One inside the other could have no more than the outer, and must be healed before it.
            raise TargetError(f"{self.name}: {', '.join(already)} is throttled already: heal that first")
        kernel = ground.cluster.remote or CpuGroup.missing() is None
        token = f"{PREFIX}{rand.token(4).hex()}"
        undo = tuple(Undo(self.name, {"token": token, "name": name, "kernel": kernel}) for name in targets)
        how = "control group" if kernel else "stopped and continued"
        return Strike(
            self.name, tuple(targets), {"token": token, "percent": percent, "kernel": kernel}, undo, quorum_lost=False,
            says=f"{', '.join(targets)} get {percent} % of a processor ({how})",
        )  # fmt: skip

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        args = strike.args
        if isinstance(ground.cluster, RemoteCluster):
            await aside(ground.cluster.throttle, args["token"], strike.victims, args["percent"])
            return {"means": "control group, by an agent"}
        pids = [_running(ground, name) for name in strike.victims]
        if args["kernel"]:
            await aside(CpuGroup(args["token"]).throttle, pids, args["percent"])
        else:
            for name, pid in zip(strike.victims, pids, strict=True):
                key = f"{args['token']}/{name}"
                self._stops[key] = 0
                self._driving[key] = asyncio.create_task(self._stutter(ground, key, pid, args["percent"] / 100))
        return {"means": "control group" if args["kernel"] else "signals"}

    async def _stutter(self, ground: Ground, key: str, pid: int, share: float) -> None:
        began = stat_of(pid)
        try:
            while (stat := stat_of(pid)) is not None and began is not None and stat.start_ticks == began.start_ticks:
                os.kill(pid, signal.SIGSTOP)
                self._stops[key] += 1
                await ground.clock.sleep(_PERIOD_S * (1 - share))
                os.kill(pid, signal.SIGCONT)
                await ground.clock.sleep(_PERIOD_S * share)
        except ProcessLookupError:
            pass  # it ended: there is nothing to throttle

    async def proof(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        if isinstance(ground.cluster, RemoteCluster):
            times = await aside(ground.cluster.unthrottle, strike.args["token"], strike.victims)
        elif strike.args["kernel"]:
            times = await aside(CpuGroup(strike.args["token"]).throttled)
        else:
            times = sum(count for key, count in self._stops.items() if key.startswith(f"{strike.args['token']}/"))
        return {"bit": times > 0, "times_throttled": times}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        key = f"{undo.args['token']}/{undo.args['name']}"
        if isinstance(ground.cluster, RemoteCluster):
            await aside(ground.cluster.unthrottle, undo.args["token"], [undo.args["name"]])
            return
        if undo.args["kernel"]:
            await aside(CpuGroup(undo.args["token"]).release)
            return
        task = self._driving.pop(key, None)
        self._stops.pop(key, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if undo.args["name"] in ground.cluster.names:
            await aside(ground.cluster.kill, undo.args["name"], signal.SIGCONT)


class MemoryPressure(Fault):
    """A neighbour who takes the memory."""

    name = "memory-pressure"
    doc = "some MiB of the machine's memory are taken and kept in use, until healed"
    target = "cluster"
    params: Mapping[str, str] = {"mib": "how much, 512 by default; never more than half of what is available"}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        mib = integer(self.name, params, "mib", 512, 1, 1 << 20)
        if not ground.cluster.remote and (why := Hogs.refusal(mib)) is not None:
            raise TargetError(f"{self.name}: {why}")
        token = f"memory-{rand.token(4).hex()}"
        # Whose machines: here there is one; of agents those of the targets, by default all.
        on = [*targets] or ground.cluster.machines() if isinstance(ground.cluster, RemoteCluster) else []
        undo = [Undo(self.name, {"token": token, "on": name}) for name in on] or [Undo(self.name, {"token": token})]
        whose = f"the machines of {', '.join(on)}" if on else "the machine"
        return Strike(
            self.name, (), {"token": token, "mib": mib, "on": on}, tuple(undo), quorum_lost=False,
            says=f"{mib} MiB of the memory of {whose} are taken",
        )  # fmt: skip

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        token, mib = strike.args["token"], strike.args["mib"]
        if isinstance(ground.cluster, RemoteCluster):
            for name in strike.args["on"]:
                await aside(ground.cluster.take_memory, token, name, mib)
        else:
            await aside(_hogs(ground).take, token, mib)
        return {}

    async def proof(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        token, mib = strike.args["token"], strike.args["mib"]
        if isinstance(ground.cluster, RemoteCluster):
            # An agent says it when it gives it back.
            taken = [await aside(ground.cluster.free_memory, token, name) for name in strike.args["on"]]
            return {"bit": all(held >= mib for held in taken), "mib_taken": sum(taken)}
        taken_here = await aside(_hogs(ground).taken, token)
        return {"bit": taken_here >= mib, "mib_taken": taken_here}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        if isinstance(ground.cluster, RemoteCluster):
            await aside(ground.cluster.free_memory, undo.args["token"], undo.args["on"])
        else:
            await aside(_hogs(ground).release, undo.args["token"])


FAULTS: Final[tuple[Fault, ...]] = (CpuThrottle(), MemoryPressure())


def _hogs(ground: Ground) -> Hogs:
    return Hogs(ground.cluster.root / "chaos" / "hogs")


def _running(ground: Ground, name: str) -> int:
    pid: Any = ground.cluster.processes.pid(name)
    if pid is None:
        raise TargetError(f"{name} does not run now: it cannot be throttled")
    return int(pid)
