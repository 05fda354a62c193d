"""Faults of the state as a whole: history compacted, and the loss of every replica with its disk.

The loss is undone from a snapshot that was taken before (the action ``snapshot_save``); without one it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from chaos.fault import JSON, Fault, FaultError, Strike, Undo
from chaos.faults.params import integer, known
from chaos.ground import Ground, aside
from controlplane.base.errors import ConfigError
from controlplane.base.rand import Rand
from controlplane.local.etcd_restore import restore_store
from controlplane.local.restore import restore_replicas
from controlplane.local.snapshot_file import Restored

__all__ = ["FAULTS", "restore"]


class Compact(Fault):
    """History is forgotten under the feet of those who read and watch."""

    name = "compact"
    doc = "compact the history of the store, up to a few revisions ago"
    target = ""
    params: Mapping[str, str] = {"keep": "revisions that are kept, 1000 by default"}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        keep = integer(self.name, params, "keep", 1000, 0, 1_000_000)
        says = f"compact the history but for {keep} revisions"
        return Strike(self.name, (), {"keep": keep}, (), quorum_lost=False, says=says)

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        status = await ground.patiently(ground.kv.status)
        revision = status.header.revision - int(strike.args["keep"])
        if revision < 1:
            return {"bit": False, "why": f"the store is at revision {status.header.revision} only"}
        outcome = await ground.kv.compact(revision)
        return {"compacted_to": revision, "outcome": type(outcome).__name__}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        """What is forgotten is forgotten, as it is meant to be."""


class LoseControlPlane(Fault):
    """The disaster."""

    name = "lose-control-plane"
    doc = "kill -9 of every replica (and member of a store apart), all data destroyed; restored when healed"
    target = "all-replicas"
    params: Mapping[str, str] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        if set(targets) != set(ground.seen.replicas):
            raise ConfigError(f"{self.name}: it is all replicas or none")
        if ground.snapshot is None:
            raise ConfigError(f"{self.name}: take a snapshot first (the action snapshot_save), or nothing undoes it")
        members = " and of every etcd member" if ground.cluster.spec.store else ""
        return Strike(
            self.name, tuple(targets), {}, (Undo(self.name, {"restore": str(ground.snapshot)}),), quorum_lost=True,
            says=f"kill -9 of every replica{members}, and their data destroyed",
        )  # fmt: skip

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        store = [member.name for member in ground.cluster.spec.store]

        def lose() -> None:
            for name in (*strike.victims, *store):
                ground.cluster.kill(name)
            for name in strike.victims:
                ground.cluster.destroy_replica_data(name)
            for name in store:
                ground.cluster.destroy_store_data(name)

        await aside(lose)
        return {}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        await restore(ground, Path(undo.args["restore"]))


FAULTS: Final[tuple[Fault, ...]] = (Compact(), LoseControlPlane())


async def restore(ground: Ground, snapshot: Path) -> Restored:
    """A new control plane from the snapshot; not waited for until it serves.

    Raises:
        FaultError: the snapshot is not there.
    """
    if not snapshot.is_file():
        raise FaultError(f"the snapshot {snapshot} is gone; restore another by hand: qd local restore FILE")

    def kill_and_restore() -> Restored:
        # Nothing runs, unless this undoes a loss that was stopped half-way.
        spec = ground.cluster.spec
        for name in (*(replica.name for replica in spec.replicas), *(member.name for member in spec.store)):
            ground.cluster.kill(name)
        return (restore_store if spec.store else restore_replicas)(ground.cluster, snapshot)

    return await aside(kill_and_restore)
