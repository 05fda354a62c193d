"""The drills, each a disaster and the way back, on one fleet. They raise DrillFailedError where it falls short."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from chaos.drill.fleet import OWN, Done, DrillFailedError, Fleet
from chaos.drill.load import Load
from chaos.drill.row import Row
from chaos.drill.ticks import Ticks, lost_s

__all__ = ["DRILLS"]

_LOAD_S: Final = 2.0
_ARCHIVED_S: Final = 2.5
#: The archive's interval is a second; the rest is for a machine that is busy with other things.
_POINT_MAX_S: Final = 3.0
#: One object of every kind that users make, in a namespace that will be lost.
_TEAM: Final = """\
apiVersion: v1
kind: Namespace
metadata: {name: team, labels: {floor: "3"}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: team, annotations: {by: drill}}
data: {colour: blue, size: "7"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: texts, namespace: team}
data: {hello: "hello, world"}
---
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: team}
spec:
  selector: {app: shop}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop, namespace: team}
spec:
  replicas: 2
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: shop, image: host, command: [sleep, "3600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: alone, namespace: team}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: alone, image: host, command: [sleep, "3600"]}]
"""
_TEAM_PODS: Final = 3
OWNED: Final = ("ReplicaSet", "Pod")
#: Of these the pods' names are made anew, and owners have other identities: the Deployment says what they are.
_MADE_AGAIN: Final = "shop-"
_OTHERS: Final = """\
apiVersion: v1
kind: Namespace
metadata: {name: others}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: changed, namespace: others}
data: {is: old}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: goes, namespace: others}
data: {is: there}
"""
#: Written after the moment.
_LATER: Final = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: changed, namespace: others}
data: {is: new}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: comes, namespace: others}
data: {is: there}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: team}
data: {colour: red}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: late, namespace: team}
data: {is: too late}
"""


async def all_lost(fleet: Fleet, row: Row, folder: Path) -> None:
    """Every replica and its disk, while pods run."""
    file = folder / "all-lost.qdsnap"
    row.point = "the snapshot"
    ticks = Ticks(fleet.cluster.spec.endpoints, OWN + b"all-lost")
    async with ticks.running():
        began_s = time.monotonic()
        await fleet.ok("snapshot", "save", str(file))
        await asyncio.sleep(_LOAD_S)
        before = fleet.processes()
        dead_s = await asyncio.to_thread(fleet.lose_everything)
    await _restored(fleet, row, dead_s, str(file))
    row.point_s = lost_s(ticks.acknowledged, await ticks.found(), dead_s)
    if row.point_s > dead_s - began_s:
        raise DrillFailedError("a write that was acknowledged before the snapshot was begun is not in it")
    await _as_it_was(fleet, row, file, before)


async def newest_is_damaged(fleet: Fleet, row: Row, folder: Path) -> None:
    """Everything is lost, and the newest backup has a flipped bit."""
    file = folder / "before-damage.qdsnap"
    row.point = "the last archived write"
    await fleet.ok("snapshot", "save", str(file))
    cluster_id = _cluster_id(await fleet.ok("snapshot", "verify", str(file)))
    await _two_archived(fleet, cluster_id)
    await fleet.ok("snapshot", "save", str(file))
    ticks = Ticks(fleet.cluster.spec.endpoints, OWN + b"damaged")
    async with ticks.running():
        await asyncio.sleep(_ARCHIVED_S)
        before = fleet.processes()
        dead_s = await asyncio.to_thread(fleet.lose_everything)
    newest = _archived(fleet, cluster_id)[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 0x10
    newest.chmod(0o644)
    newest.write_bytes(data)
    done = await _restored(fleet, row, dead_s, str(fleet.archive), "--cluster", cluster_id)
    if newest.name not in done.err or "taking the snapshot before it" not in done.err:
        raise DrillFailedError(f"the damage was not said: {done.err.strip()}")
    row.notes.append("the damaged snapshot was named, the one before it and the log were used")
    row.point_s = lost_s(ticks.acknowledged, await ticks.found(), dead_s)
    if row.point_s > _POINT_MAX_S:
        raise DrillFailedError(f"a write acknowledged {row.point_s:.2f} s before the loss is gone")
    await _as_it_was(fleet, row, file, before)


async def _restored(fleet: Fleet, row: Row, dead_s: float, *source: str) -> Done:
    """Restore everything from there, while clients wait for the first write; what the command said."""
    row.recovery_s, done = await asyncio.gather(
        fleet.first_write(dead_s), fleet.ok("snapshot", "restore", *source, "--yes")
    )
    row.command_s = done.seconds
    row.notes.append(f"{_keys(done)} keys restored, each compared")
    return done


async def _as_it_was(fleet: Fleet, row: Row, file: Path, before: Mapping[str, Sequence[int]]) -> None:
    """Raises DrillFailedError: an object or key is not as in the file, but for the drill's own, or a pod did not run
    on."""
    await fleet.settled()
    await fleet.equals(file, OWN.decode())
    row.restarts = await fleet.restarts(before)
    _no_restarts(row)


def _keys(done: Done) -> int:
    found = re.search(r"restored (\d+) keys", done.err)
    if found is None or not int(found[1]):
        raise DrillFailedError(f"the restore did not say what it restored: {done.err.strip()}")
    return int(found[1])


def _no_restarts(row: Row) -> None:
    if row.restarts:
        raise DrillFailedError(f"{row.restarts} pods did not run on as the same processes")


async def namespace_deleted(fleet: Fleet, row: Row, folder: Path) -> None:
    """Somebody changes a namespace and then deletes it; every object of it comes back as of a moment before, and what
    was written elsewhere since stays."""
    manifest, later = folder / "team.yaml", folder / "later.yaml"
    manifest.write_text(f"{_TEAM}---\n{_OTHERS}")
    later.write_text(_LATER)
    await fleet.ok("apply", "-f", str(manifest))
    await _team_runs(fleet)
    then, before = folder / "then.qdsnap", folder / "before.qdsnap"
    await fleet.ok("snapshot", "save", str(then))
    moment, moment_s = datetime.now(UTC).isoformat(timespec="milliseconds"), time.monotonic()
    await asyncio.sleep(1.0)
    await fleet.ok("apply", "-f", str(later))
    await fleet.ok("delete", "configmap", "goes", "-n", "others")
    row.point, row.point_s = "the moment before", time.monotonic() - moment_s
    await fleet.ok("delete", "namespace", "team")
    await fleet.gone("namespace", "team")
    await asyncio.sleep(_ARCHIVED_S)
    await fleet.ok("snapshot", "save", str(before))
    processes = fleet.processes()
    cluster_option = await _cluster_option(fleet, folder)
    began_s = time.monotonic()
    done = await fleet.ok(
        "snapshot", "restore", str(fleet.archive), "--to-time", moment, "--namespace", "team",
        *cluster_option,
    )  # fmt: skip
    row.command_s = done.seconds
    await _team_runs(fleet)
    row.recovery_s = time.monotonic() - began_s
    _nothing_of(inside(await fleet.differences(then), "team"), "are not as they were at the moment")
    _nothing_of(outside(await fleet.differences(before), "team"), "outside the namespace were touched")
    # Identities and times too: what was not written again has the ones it had.
    kept = await fleet.differences(before, "--status")
    _nothing_of([d for d in kept if d["namespace"] == "others"], "of another namespace were written again")
    row.restarts = await fleet.restarts(processes)
    _no_restarts(row)
    row.notes.append(f"{len(re.findall('^[+] ', done.out, re.MULTILINE))} objects came back")
    for namespace in ("team", "others"):
        await fleet.ok("delete", "namespace", namespace)
        await fleet.gone("namespace", namespace)


def inside(found: Sequence[Mapping[str, Any]], namespace: str) -> list[Mapping[str, Any]]:
    """Of the differences of a cluster those in a namespace, itself included, but for what controllers make again and
    the node that a pod is put on."""
    return [
        d
        for d in found
        if (d["namespace"] == namespace and not _made_again(d)) or (d["kind"], d["name"]) == ("Namespace", namespace)
    ]


def _made_again(difference: Mapping[str, Any]) -> bool:
    if difference["kind"] in OWNED and difference["name"].startswith(_MADE_AGAIN):
        return True
    return difference["kind"] == "Pod" and [field["path"] for field in difference["fields"]] == ["spec.nodeName"]


def outside(found: Sequence[Mapping[str, Any]], namespace: str) -> list[Mapping[str, Any]]:
    """Those everywhere else, plain keys included."""
    return [d for d in found if d["namespace"] != namespace and (d["kind"], d["name"]) != ("Namespace", namespace)]


def _nothing_of(found: Sequence[Mapping[str, Any]], what: str) -> None:
    if found:
        shown = ", ".join(f"{d['change']} {d['kind']} {d['namespace']}/{d['name']}" for d in found[:5])
        raise DrillFailedError(f"{len(found)} objects {what}: {shown}")


async def _team_runs(fleet: Fleet) -> None:
    await fleet.ok("rollout", "status", "deployment/shop", "-n", "team", "--timeout", "60s")
    deadline_s = time.monotonic() + 30.0
    while time.monotonic() < deadline_s:
        pods = json.loads((await fleet.ok("get", "pods", "-n", "team", "-o", "json")).out)["items"]
        if len(pods) == _TEAM_PODS and all(pod["status"].get("phase") == "Running" for pod in pods):
            return
        await asyncio.sleep(0.1)
    raise DrillFailedError(f"not {_TEAM_PODS} pods run in the namespace after 30 s")


async def swapped_live(fleet: Fleet, row: Row, folder: Path) -> None:
    """The state goes back to a snapshot while clients write and watch."""
    file = folder / "swap.qdsnap"
    row.point = "the snapshot"
    saved_s = time.monotonic()
    await fleet.ok("snapshot", "save", str(file))
    before = fleet.processes()
    load = Load(fleet.cluster.spec.endpoints)
    running = asyncio.create_task(load.run())
    try:
        await asyncio.sleep(_LOAD_S)
        row.point_s = time.monotonic() - saved_s
        done = await fleet.ok("snapshot", "restore", str(file), "--yes")
        found = re.search(r"going on at revision (\d+)", done.err)
        if found is None:
            raise DrillFailedError(f"the restore did not say where it goes on: {done.err.strip()}")
        swapped = int(found[1])
        await asyncio.sleep(_LOAD_S)
    finally:
        load.stopped = True
        await running
    row.command_s, row.recovery_s, row.gap_s = done.seconds, done.seconds, load.gap_s
    lost = await load.lost_since(swapped)
    row.notes.append(f"{_keys(done)} keys restored, each compared")
    row.notes.append(f"{load.acked} writes acknowledged, {lost} of those after the swap lost")
    if lost or load.failed:
        raise DrillFailedError(f"{lost} acknowledged writes are gone, {load.failed} failed")
    if not load.told:
        raise DrillFailedError("the watcher was not told to list again")
    await load.clear()
    await _as_it_was(fleet, row, file, before)


def _archived(fleet: Fleet, cluster_id: str) -> list[Path]:
    """This cluster's snapshots in the archive, the newest last: their names begin with the index they were cut at."""
    mine = [folder for folder in fleet.archive.iterdir() if int(folder.name, 16) == int(cluster_id, 16)]
    return sorted((path for folder in mine for path in folder.rglob("*.qdsnap")), key=lambda path: path.name)


async def _two_archived(fleet: Fleet, cluster_id: str) -> None:
    """Wait until two were taken by the clock."""
    deadline_s = time.monotonic() + 60.0
    while len(_archived(fleet, cluster_id)) < 2:
        if time.monotonic() > deadline_s:
            raise DrillFailedError("the replicas did not save two snapshots within 60 s")
        await asyncio.sleep(0.2)


async def _cluster_option(fleet: Fleet, folder: Path) -> list[str]:
    file = folder / "which.qdsnap"
    await fleet.ok("snapshot", "save", str(file))
    return ["--cluster", _cluster_id(await fleet.ok("snapshot", "verify", str(file)))]


def _cluster_id(verified: object) -> str:
    found = re.search(r"^cluster:\s+([0-9a-f]+)$", getattr(verified, "out", ""), re.MULTILINE)
    if found is None:
        raise DrillFailedError("qd snapshot verify did not say whose snapshot it is")
    return found[1]


Drill = Callable[[Fleet, Row, Path], Awaitable[None]]

#: In an order in which one fleet can go through all of them.
DRILLS: Final[dict[str, Drill]] = {
    "namespace deleted": namespace_deleted,
    "swapped live": swapped_live,
    "all replicas lost": all_lost,
    "newest backup damaged": newest_is_damaged,
}
