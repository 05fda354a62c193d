"""Actions that are no faults of their own: healing in the middle of a method, a snapshot, a restore, random faults.
And the catalogue."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaos.catalogue import Catalogue
from chaos.digest import digest, digest_of_snapshot, read_everything
from chaos.experiment import RANDOM_FAULTS, parse_schedule
from chaos.fault import JSON, DeviationError, FaultError
from chaos.faults.state import restore
from chaos.ground import Ground, aside
from chaos.probes import PROBES, store_leader
from chaos.random_faults import play_schedule
from chaos.stage import Stage, catalogue_of
from controlplane.cli.common import Settings
from controlplane.cli.snapshot.save import save_snapshot
from controlplane.local.etcd_restore import save_store, snapshot_revision
from controlplane.local.snapshot_file import verify
from controlplane.pb.etcd import kv_pb2

__all__ = ["STEPS", "Step", "catalogue"]

_FIRST_WRITE_TIMEOUT_S: Final = 30.0
_CAUGHT_UP_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Step:
    """One action. ``params``: argument -> a sentence. ``do``: with a stage and these arguments."""

    doc: str
    do: Callable[..., Awaitable[JSON]]
    params: Mapping[str, str]


async def _heal(stage: Stage, fault: str = "") -> JSON:
    """What this trial has struck, or of it one kind."""
    if not fault:
        await stage.heal_all()
        return True
    for struck in reversed([s for s in stage.struck if s.entry.strike.fault == fault]):
        await stage.heal(struck)
    return True


async def _store_leader_kill(stage: Stage) -> JSON:
    leader, term = await store_leader(stage)
    if leader is None:
        raise FaultError("no etcd member says that it leads")
    stage.observed |= {"leader_before": leader, "term_before": term}
    await stage.inject("kill", {"target": leader})
    return leader


async def _snapshot_save(stage: Stage) -> JSON:
    """Where the disaster is undone from. On the ground, for the fault to find."""
    ground = stage.ground
    cluster = ground.cluster
    folder = stage.recorder.path.parent if stage.recorder is not None else cluster.root / "snapshots"
    path = folder / f"{stage.act}-{stage.n}{'.db' if cluster.spec.store else '.qdsnap'}"
    began = stage.mark("snapshot", path=str(path))
    began_s = stage.now_s()
    revision, size = await _save(ground, path)
    took_s = stage.now_s() - began_s
    ground.say(f"snapshot of revision {revision}, {size} bytes, in {took_s:.2f} s")
    if cluster.spec.store:
        # Read from the members before they are lost: the file is etcd's, and so is what reads it.
        saved_hash = expected = digest(_lasting(await read_everything(ground.kv, revision)))
    else:
        _, saved = await asyncio.to_thread(verify, path)
        saved_hash, expected = saved.state_hash, await digest_of_snapshot(path)
    ground.snapshot = path
    stage.observed |= {
        "snapshot_s": took_s, "snapshot_bytes": size, "snapshot_revision": revision,
        "snapshot_began_ns": began.at_ns if began is not None else 0,
    }  # fmt: skip
    stage.saved = {"snapshot_hash": saved_hash, "snapshot_digest": expected}
    return {"path": str(path), "revision": revision}


async def _restore(stage: Stage) -> JSON:
    """Out of the disaster: restore, first write, and the comparison of what is served with what was saved."""
    ground, load = stage.ground, stage.load
    if ground.snapshot is None:
        raise FaultError("there is no snapshot to restore from: the action snapshot_save comes first")
    newest = load.board.revision if load is not None else 0
    restored = await restore(ground, ground.snapshot)
    stage.mark(
        "restored", snapshot_revision=restored.snapshot_revision, revision=restored.revision,
        snapshot_began_ns=stage.observed.get("snapshot_began_ns", 0),
    )  # fmt: skip
    for struck in [s for s in stage.struck if s.entry.strike.fault == "lose-control-plane"]:
        ground.undo.remove(struck.entry)
        stage.struck.remove(struck)
        stage.mark("healed", id=struck.entry.id, fault="lose-control-plane", proof={})
    if load is not None:
        await stage.until(
            lambda: load.board.revision > restored.revision, _FIRST_WRITE_TIMEOUT_S, "a write after the restore"
        )
        stage.observed["first_write_s"] = stage.now_s() - stage.last_fault_s
        ground.say(f"serving again after {stage.observed['first_write_s']:.2f} s, at revision {load.board.revision}")
    kept = await ground.patiently(lambda: read_everything(ground.kv, restored.revision))
    served = digest(_lasting(kept) if ground.cluster.spec.store else kept)
    if not await ground.pods.caught_up(restored.revision, _CAUGHT_UP_TIMEOUT_S):
        raise DeviationError("pods could not be listed after the restore")
    stage.observed |= {
        **stage.saved, "keys": restored.keys, "snapshot_revision": restored.snapshot_revision,
        "restored_hash": served if ground.cluster.spec.store else restored.state_hash, "served_digest": served,
        "restored_revision": restored.revision, "revision_before_loss": newest,
    }  # fmt: skip
    return {"revision": restored.revision}


async def _save(ground: Ground, path: Path) -> tuple[int, int]:
    """A snapshot: its revision and size."""
    cluster = ground.cluster
    if not cluster.spec.store:
        return await save_snapshot(Settings(tuple(cluster.spec.endpoints), cluster.root), path)
    await aside(save_store, cluster, path)
    return await aside(snapshot_revision, path), path.stat().st_size


async def _random_faults(stage: Stage, **arguments: JSON) -> JSON:
    """Under Chaos Toolkit; our own runner plays the schedule with the seed of its run."""
    schedule = parse_schedule(arguments, catalogue())
    seed = int(os.environ.get("QD_CHAOS_SEED") or stage.rand.randint(1, 2**31))
    begun: list[asyncio.Task[bool]] = []
    try:
        struck = await play_schedule(stage, schedule, seed, begun)
    finally:
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)  # what failed first has been raised by who waited for it
    if not struck:
        raise DeviationError(f"none of the random faults was struck (QD_CHAOS_SEED={seed})")
    return {"seed": seed, "struck": struck, "left_out": list(stage.observed.get("left_out", ()))}


def _lasting(kvs: Sequence[kv_pb2.KeyValue]) -> list[kv_pb2.KeyValue]:
    """Without the keys that go with a lease: they speak for processes, which are other ones after a restore."""
    return [kv for kv in kvs if not kv.lease]


STEPS: Final[Mapping[str, Step]] = {
    "heal": Step("take back what this trial has struck", _heal, {"fault": "only faults of this name"}),
    "store_leader_kill": Step("kill -9 of the leading member of the etcd that is the store", _store_leader_kill, {}),
    "snapshot_save": Step("save a snapshot and verify it", _snapshot_save, {}),
    RANDOM_FAULTS: Step(
        "random faults, drawn from a seed, one after the other and side by side",
        _random_faults,
        {
            "duration_s": "for how many seconds faults begin",
            "every_s": "seconds from one to the next, or [shortest, longest]",
            "at_most": "in force at one time",
            "faults": "a list of {fault, target, mode, value, params, for_s, weight, optional}",
        },
    ),
    "restore": Step("restore the lost control plane from the snapshot that was saved", _restore, {}),
}


def catalogue() -> Catalogue:
    """Everything an experiment may name."""
    return catalogue_of(
        {name: step.params for name, step in STEPS.items()}, {name: probe.params for name, probe in PROBES.items()}
    )
