"""Faults of what a machine has too little of: processor time, memory.

Processor time is taken by the kernel where it lets us (control groups, version 1, as root): a process gets so many
percent of one processor. Elsewhere it is stopped and continued ten times a second, so that it runs that share of
the time; then this process must live while the fault lasts, and whoever heals continues it.

Memory is taken from the whole machine, by a process of ours that fills it and touches it again and again. How much is
bounded: chaos must not kill who is not meant.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from chaos.fault import JSON, Fault, FaultError, Strike, Undo
from chaos.faults.params import integer, known
from chaos.ground import Ground, aside
from chaos.groups import PREFIX, CpuGroup
from chaos.remote import RemoteCluster
from chaos.targets import TargetError
from controlplane.base.errors import ConfigError
from controlplane.base.rand import Rand
from controlplane.local.processes import Processes
from controlplane.local.procfs import stat_of

__all__ = ["FAULTS"]

_PERIOD_S: Final = 0.1
_MIB: Final = 1 << 20
#: Of what is available, at most so much is taken.
_SHARE_MAX: Final = 0.5
_FILLED_S: Final = 30.0
#: Every page is written to once a second, by one copy inside the interpreter: a loop over half a gigabyte would take
#: a processor as well, and the processor is not what this is about.
_HOG: Final = """
import os, sys, time
held = bytearray(int(sys.argv[1]))
ends = time.monotonic() + 3600
turn = 0
while time.monotonic() < ends and os.path.exists(sys.argv[2]):
    turn = (turn + 1) % 256
    held[::4096] = bytes([turn]) * len(range(0, len(held), 4096))
    print("filled", flush=True)
    time.sleep(1)
"""


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
        token = f"memory-{rand.token(4).hex()}"
        return Strike(
            self.name, (), {"token": token, "mib": mib}, (Undo(self.name, {"token": token}),), quorum_lost=False,
            says=f"{mib} MiB of the machine's memory are taken",
        )  # fmt: skip

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        available = psutil.virtual_memory().available
        if strike.args["mib"] * _MIB > available * _SHARE_MAX:
            raise FaultError(f"{self.name}: {available // _MIB} MiB are available, and at most half of it is taken")
        hogs, token = _hogs(ground), strike.args["token"]
        # It ends by itself when the cluster is gone, or an hour has passed.
        there = str((ground.cluster.root / "chaos").resolve())
        argv = [sys.executable, "-c", _HOG, str(strike.args["mib"] * _MIB), there]
        await aside(hogs.start, token, argv, env={}, cwd=Path("/"))
        deadline_s = ground.clock.monotonic() + _FILLED_S
        while "filled" not in hogs.log_tail(token):
            if ground.clock.monotonic() > deadline_s or hogs.pid(token) is None:
                raise FaultError(f"{self.name}: the memory could not be taken: {hogs.log_tail(token)}")
            await ground.clock.sleep(_PERIOD_S)
        return {}

    async def proof(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        pid = _hogs(ground).pid(strike.args["token"])
        try:
            taken = psutil.Process(pid).memory_info().rss // _MIB if pid is not None else 0
        except psutil.NoSuchProcess:
            taken = 0
        return {"bit": taken >= strike.args["mib"], "mib_taken": taken}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        hogs = _hogs(ground)
        await aside(hogs.stop, [undo.args["token"]])
        hogs.log_path(undo.args["token"]).unlink(missing_ok=True)


FAULTS: Final[tuple[Fault, ...]] = (CpuThrottle(), MemoryPressure())


def _hogs(ground: Ground) -> Processes:
    folder = ground.cluster.root / "chaos" / "hogs"
    return Processes(folder, folder)


def _running(ground: Ground, name: str) -> int:
    pid: Any = ground.cluster.processes.pid(name)
    if pid is None:
        raise FaultError(f"{name} does not run: it cannot be throttled")
    return int(pid)
