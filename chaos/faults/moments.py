"""Faults that hit at a certain moment of a replica's work: while it cuts a snapshot, is sent one, or binds pods.

The moment is certain, not lucky: the replica dies by a failpoint, between two steps of that work, however busy the
machine is. What proves a snapshot's is on the disk: a file that was begun and has not got its name. What proves a
bind's is in the store (the probe ``bound_by_next_leader``). Beside them the operator's way to have a snapshot cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from chaos.claims import RECEIVED_AT_KILL, SNAPSHOT_AT_KILL
from chaos.fault import JSON, Fault, FaultError, Strike, Undo
from chaos.faults.disks import OnDisk, armed, until_dead
from chaos.faults.params import known
from chaos.ground import Ground, aside
from controlplane.base.errors import ConfigError, StatusError
from controlplane.base.rand import Rand
from controlplane.client.etcd_client import Acknowledged
from controlplane.client.fenced import LEADER_KEY

__all__ = ["FAULTS"]

_KEY: Final = b"/chaos/while-away"
#: A start, and what the leader sends until the snapshot is wanted and offered.
_RECEIVES_S: Final = 60.0


class SnapshotCut(Fault):
    """What an operator asks for with `qd snapshot cut`."""

    name = "snapshot-cut"
    doc = "replicas cut a snapshot of their own now and drop the log it holds; nothing to heal"
    target = "all-replicas"
    params: Mapping[str, str] = {}

    def missing(self, ground: Ground) -> str | None:
        return "the state is in etcd, which cuts its own snapshots" if ground.cluster.spec.store else None

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        for name in targets:
            if name not in ground.seen.replicas:
                raise ConfigError(f"{self.name}: {name} is no replica; there are: {', '.join(ground.seen.replicas)}")
        says = f"a snapshot cut by {', '.join(targets)}, and the log dropped"
        return Strike(self.name, tuple(targets), {}, (), quorum_lost=False, says=says)

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        return {"snapshots_cut": await _cut(ground, strike.victims)}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        """A snapshot more takes nothing from anybody."""


class KillCutting(OnDisk):
    """Half of a snapshot."""

    name = "kill-cutting"
    doc = "kill -9 of a replica while it cuts a snapshot that it was asked for; down until healed"
    params: Mapping[str, str] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        says = f"kill -9 {', '.join(targets)} while a snapshot is cut"
        return self._planned(ground, targets, {}, [{"name": name} for name in targets], says)

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        seen = []
        for name in strike.victims:
            armed(ground, name, await aside(ground.cluster.arm, name, "snapshot.write.after=kill"))
            asking = asyncio.create_task(_cut_again(ground, name))
            try:
                await until_dead(ground, name, "cut no snapshot")
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            await aside(ground.cluster.arm, name, "")
            seen.append(_unfinished(ground, name, ".tmp"))
        return {"proved": {SNAPSHOT_AT_KILL: "; ".join(seen) if all(seen) else ""}}


class KillReceiving(OnDisk):
    """Half of a snapshot that somebody else sent."""

    name = "kill-receiving"
    doc = "kill -9 of a replica, and again when it is started and being sent a snapshot; down until healed"
    target = "follower"
    params: Mapping[str, str] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        if len(targets) != 1:
            raise ConfigError(f"{self.name}: one replica at a time, not {', '.join(targets)}")
        says = f"kill -9 {targets[0]}, the log dropped by the others, and kill -9 while it is sent a snapshot"
        return self._planned(ground, targets, {}, [{"name": targets[0]}], says)

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        name = strike.victims[0]
        await aside(ground.cluster.kill, name)
        # Something it lacks, and nobody has in a log any more.
        if not isinstance(await ground.patiently(lambda: ground.kv.put(_KEY, name.encode())), Acknowledged):
            raise FaultError(f"nothing could be written that {name} would lack")
        await _cut(ground, [each for each in ground.seen.replicas if each != name and each not in ground.seen.down])
        await aside(ground.cluster.arm, name, "snapshot.receive.write.after=kill")
        await aside(ground.cluster.start, name)
        await until_dead(ground, name, "was sent no snapshot", _RECEIVES_S)
        await aside(ground.cluster.arm, name, "")
        return {"proved": {RECEIVED_AT_KILL: _unfinished(ground, name, ".part")}}


class KillBinding(OnDisk):
    """Pods that have been given their nodes, and nobody has been told."""

    name = "kill-binding"
    doc = "kill -9 of a replica when its scheduler is about to write where pods go; down until healed"
    target = "scheduler"
    params: Mapping[str, str] = {}

    def missing(self, ground: Ground) -> str | None:
        return None  # scheduler and failpoints are in the replicas, wherever the state is

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        says = f"kill -9 {', '.join(targets)} at its next bind"
        return self._planned(ground, targets, {}, [{"name": name} for name in targets], says)

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        """Returns before it dies: pods to bind come after."""
        office = await ground.patiently(lambda: ground.kv.get(LEADER_KEY))
        for name in strike.victims:
            armed(ground, name, await aside(ground.cluster.arm, name, "bind.before=kill"))
        return {"office_at_kill": str(office.mod_revision if office is not None else 0)}

    async def proof(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        alive = [name for name in strike.victims if ground.cluster.processes.pid(name) is not None]
        return {"bit": not alive, "alive": alive}


FAULTS: Final[tuple[Fault, ...]] = (SnapshotCut(), KillCutting(), KillReceiving(), KillBinding())


async def _cut_again(ground: Ground, name: str) -> None:
    """Until it dies of it. A replica that has applied nothing since its last snapshot cuts none, so each time something
    is written; when that comes to it is its own affair."""
    while True:
        await ground.kv.put(_KEY, name.encode())
        await ground.replicas.cut_snapshot(name)


async def _cut(ground: Ground, names: Sequence[str]) -> int:
    """All of them at once; returns how many. Raises FaultError: one did not."""
    try:
        return len(await asyncio.gather(*(ground.replicas.cut_snapshot(name) for name in names)))
    except StatusError as error:
        raise FaultError(f"no snapshot was cut: {error.message}") from error


def _unfinished(ground: Ground, name: str, suffix: str) -> str:
    """What a dead replica left of a snapshot it was writing; empty: nothing."""
    for path in sorted((ground.cluster.replica_dir(name) / "snapshots").glob(f"*{suffix}")):
        return f"{name} died and left {path.name}, {path.stat().st_size} bytes"
    return ""
