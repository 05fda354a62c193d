"""Faults of processes: kill -9, SIGTERM, SIGSTOP for a while; a machine that dies with its pods; a zone.

A target is a replica, an agent, a pod (``pod/NAME``: all its containers) or one container of a pod
(``container/POD/NAME``: the others are untouched). Killed replicas and agents stay down until healed; the agent starts
containers again by itself, as the pod's restartPolicy says. Scheduler and controllers have no process of their own:
they live in the leader's, and the selector says so.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from chaos.fault import JSON, Fault, Strike, Undo
from chaos.faults.params import known, nodes_only
from chaos.ground import Ground, aside
from chaos.in_pods import INSIDE, identified, signal_pods, split
from chaos.targets import TargetError, quorum_lost
from controlplane.base.errors import ConfigError
from controlplane.base.rand import Rand
from controlplane.local.procfs import stat_of

__all__ = ["FAULTS"]


class Kill(Fault):
    """kill -9."""

    name = "kill"
    doc = "kill -9 of a replica, an agent (its pods run on), both down until healed; or of a pod or one container"
    target = "leader"
    params: Mapping[str, str] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        # An agent that is away longer than the deadline of its node is a dead node: its pods run elsewhere then.
        nodes = tuple(name for name in targets if name in ground.seen.nodes)
        return _strike(self.name, ground, targets, f"kill -9 {_names(ground, targets)}", starts=True, excused=nodes)

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        inside, processes = split(strike.victims)
        await aside(lambda: [ground.cluster.kill(name) for name in processes])
        killed = signal_pods(ground, inside, signal.SIGKILL)
        missed = [name for name in inside if name.startswith("container/") and not killed[name]]
        if missed:
            raise TargetError(f"{', '.join(missed)} does not run now: it cannot be killed")
        return {}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        await start(ground, undo.args["start"])


class Stop(Fault):
    """SIGTERM."""

    name = "stop"
    doc = "SIGTERM of a replica, which hands over, or of an agent, which stops its pods; down until healed"
    target = "leader"
    params: Mapping[str, str] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        _no_pods(self.name, targets)
        nodes = tuple(name for name in targets if name in ground.seen.nodes)
        return _strike(self.name, ground, targets, f"SIGTERM to {_names(ground, targets)}", starts=True, excused=nodes)

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        killed = [name for name in strike.victims if await aside(ground.cluster.stop, name)]
        return {"had_to_be_killed": killed} if killed else {}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        await start(ground, undo.args["start"])


class Pause(Fault):
    """SIGSTOP, and SIGCONT when healed."""

    name = "pause"
    doc = "SIGSTOP of a replica, an agent, a pod or one container, until healed (SIGCONT)"
    target = "leader"
    params: Mapping[str, str] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        struck = _strike(self.name, ground, targets, f"SIGSTOP {_names(ground, targets)}", starts=False)
        # The process groups themselves: who heals may not be able to ask the API which pod had which.
        undo = tuple(Undo(self.name, {"continue": name, "groups": identified(ground, name)}) for name in targets)
        return replace(struck, undo=undo)

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        inside, processes = split(strike.victims)
        for name in processes:
            if not ground.cluster.kill(name, signal.SIGSTOP):
                raise TargetError(f"{name} does not run now: it cannot be paused")
        signal_pods(ground, inside, signal.SIGSTOP)
        return {}

    async def proof(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        inside, processes = split(strike.victims)
        states = {name: await aside(ground.cluster.state, name) for name in processes}
        for name in inside:
            groups = [stat_of(group) for group, _ in identified(ground, name)]
            states[name] = "T" if groups and all(stat is not None and stat.state == "T" for stat in groups) else "gone"
        return {"bit": all(state == "T" for state in states.values()), "states": states}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        for group, start_ticks in undo.args["groups"]:
            stat = stat_of(group)
            if stat is not None and stat.start_ticks == start_ticks:
                os.killpg(group, signal.SIGCONT)
        if undo.args["continue"] in ground.cluster.names:
            ground.cluster.kill(undo.args["continue"], signal.SIGCONT)


class NodeDeath(Fault):
    """What a dead machine is: its agent and every process of its pods gone at once."""

    name = "node-death"
    doc = "kill -9 of an agent and of all its pods' processes, as a machine dies; down until healed"
    target = "busiest-node"
    params: Mapping[str, str] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        nodes_only(self.name, targets, ground.seen.nodes)
        left = {pod.node for pod in ground.seen.pods if pod.ready} - set(targets)
        if not left:
            raise TargetError(f"{self.name}: all pods are on {', '.join(targets)}: nothing would be left to serve")
        says = f"kill -9 {', '.join(targets)} with {_pods_on(ground, targets)} pods"
        return _strike(self.name, ground, targets, says, starts=True, excused=tuple(targets))

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        killed = [await aside(ground.cluster.kill_node, name) for name in strike.victims]
        return {"pods_killed": sum(killed)}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        await start(ground, undo.args["start"])


class ZoneLoss(Fault):
    """A rack without power: replica, agents and pods of one zone at once."""

    name = "zone-loss"
    doc = "kill -9 of everything in a zone (a replica, agents, their pods) at once; down until healed"
    target = "zone"
    params: Mapping[str, str] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        _no_pods(self.name, targets)
        nodes = tuple(name for name in targets if name in ground.seen.nodes)
        says = f"kill -9 {_names(ground, targets)} with {_pods_on(ground, nodes)} pods"
        return _strike(self.name, ground, targets, says, starts=True, excused=nodes)

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        nodes = [name for name in strike.victims if name in ground.seen.nodes]
        others = [name for name in strike.victims if name not in nodes]
        await aside(lambda: [ground.cluster.kill(name) for name in others])
        return {"pods_killed": sum([await aside(ground.cluster.kill_node, name) for name in nodes])}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        await start(ground, undo.args["start"])


FAULTS: Final[tuple[Fault, ...]] = (Kill(), Stop(), Pause(), NodeDeath(), ZoneLoss())


async def start(ground: Ground, name: str) -> None:
    """Start it if it is still part of the cluster and does not run; not waited for until it serves."""
    if name in ground.cluster.names:
        await aside(ground.cluster.start, name)


def _strike(
    fault: str, ground: Ground, targets: Sequence[str], says: str, *, starts: bool, excused: tuple[str, ...] = ()
) -> Strike:
    for name in targets:
        if not name.startswith(INSIDE) and name not in ground.cluster.names:
            raise ConfigError(f"{fault}: no process {name!r}; there are: {', '.join(ground.cluster.names)}")
    inside, processes = split(targets)
    if inside and ground.cluster.remote:
        raise ConfigError(f"{fault}: {', '.join(targets)}: what runs on other machines cannot be signalled from here")
    undo = tuple(Undo(fault, {"start": name}) for name in processes) if starts else ()
    gone = [name for name in processes if name in {*ground.seen.replicas, *ground.seen.store}]
    return Strike(
        fault=fault, victims=tuple(targets), args={}, undo=undo, says=says,
        quorum_lost=bool(gone) and quorum_lost(ground.seen, gone),
        # Of a container that is killed the restart is expected, and counted; a paused one has no reason to restart.
        excused=(*excused, *(name for name in inside if name.startswith("pod/"))),
    )  # fmt: skip


def _no_pods(fault: str, targets: Sequence[str]) -> None:
    if any(name.startswith(INSIDE) for name in targets):
        raise ConfigError(f"{fault}: {', '.join(targets)}: wants a replica or a node, not a pod or a container")


def _pods_on(ground: Ground, nodes: Sequence[str]) -> int:
    return sum(1 for pod in ground.seen.pods if pod.node in nodes and not pod.deleting)


def _names(ground: Ground, targets: Sequence[str]) -> str:
    """``r2, the leader of term 4, r3``."""
    seen = ground.seen
    return ", ".join(f"{name}, the leader of term {seen.term}" if name == seen.leader else name for name in targets)
