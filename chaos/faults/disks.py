"""Faults of a replica's disk: full, refusing, losing what was not synced, tearing it, and rotting.

What is real:

- ``disk-full``: as root the replica's data are moved to a small file system of their own (``chaos.small_disk``), which
  is filled to the last byte; else a failpoint at every write of the log answers "no space left on device".
- ``disk-error``: a failpoint at the log's write or sync answers with the error; the code behind it is what runs when a
  device does.
- ``lose-unsynced``, ``tear``: the replica dies (SIGKILL) between the write and the sync of its log, and then the frame
  that was not synced is taken from the file, whole or in part. It is exactly what a power cut may do, no more: one
  frame is written per sync.
- ``flip``: one bit of a synced file turns while the replica is down. It must be found out.
- ``tear`` of a snapshot: the newest one loses its end while the replica is down. A snapshot has its name only once all
  of it is synced, so no power cut does this: it is rot of another kind, and must be found out as well.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from chaos.claims import UNSYNCED_TAIL
from chaos.fault import JSON, Fault, FaultError, Strike, Undo
from chaos.faults.again import restart, until_serving
from chaos.faults.params import integer, known, word
from chaos.ground import Ground, aside
from chaos.remote import RemoteCluster
from chaos.small_disk import SmallDisk
from chaos.small_disk import missing as small_disk_missing
from chaos.targets import quorum_lost
from controlplane.base.errors import ConfigError
from controlplane.base.rand import Rand
from controlplane.local import damage

__all__ = ["FAULTS", "OnDisk", "armed", "until_dead"]

_DIES_S: Final = 15.0
_POLL_S: Final = 0.02
_FULL_SPEC: Final = "wal.write.before=error:ENOSPC,wal.open.write.after=error:ENOSPC"


class OnDisk(Fault):
    """A fault of a replica's own directory; healed by starting it with no failpoint armed."""

    target = "leader"

    def missing(self, ground: Ground) -> str | None:
        if ground.cluster.spec.store:
            return "the state is in etcd: replicas have no disk"
        return None

    def _planned(
        self, ground: Ground, targets: Sequence[str], args: dict[str, JSON], undo: Sequence[dict[str, JSON]], says: str
    ) -> Strike:
        for name in targets:
            if name not in ground.seen.replicas:
                raise ConfigError(f"{self.name}: {name} is no replica; there are: {', '.join(ground.seen.replicas)}")
        return Strike(
            self.name, tuple(targets), {**args, "down": list(targets)}, tuple(Undo(self.name, step) for step in undo),
            quorum_lost=quorum_lost(ground.seen, targets), says=says,
        )  # fmt: skip

    async def heal(self, ground: Ground, undo: Undo) -> None:
        """Failpoints off, and running."""
        name = undo.args["name"]
        if name not in ground.cluster.names:
            return
        await aside(ground.cluster.arm, name, "")
        await aside(ground.cluster.start, name)

    async def proof(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        """Whether those struck are out of service."""
        answers = await ground.replicas.statuses()
        out = [name for name in strike.victims if name not in answers or not answers[name].ready]
        return {"bit": len(out) == len(strike.victims), "out_of_service": out}


class DiskFull(OnDisk):
    """No space left on device."""

    name = "disk-full"
    doc = "a replica's disk is full (root: a small file system, filled; else a failpoint), until healed"
    params: Mapping[str, str] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        real = small_disk_missing() is None and not ground.cluster.remote
        how = "moved to a small file system, which is filled" if real else "by a failpoint at every write"
        undo = [{"name": name, "mounted": real} for name in targets]
        return self._planned(
            ground, targets, {"real": real}, undo, f"the disk of {', '.join(targets)} is full ({how})"
        )  # fmt: skip

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        for name in strike.victims:
            if strike.args["real"]:
                disk = SmallDisk(ground.cluster.replica_dir(name))
                await restart(ground, name, disk.move_in)
                await aside(disk.fill)
            else:
                armed(ground, name, await aside(ground.cluster.arm, name, _FULL_SPEC))
        return {"means": "small disk" if strike.args["real"] else "failpoint"}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        name = undo.args["name"]
        if not undo.args["mounted"]:
            await super().heal(ground, undo)
            return
        disk = SmallDisk(ground.cluster.replica_dir(name))
        if not disk.mounted and ground.cluster.processes.pid(name) is None:
            await aside(disk.settle)  # what a runner killed half-way left
        if disk.mounted:
            await aside(disk.relieve)
            if name not in ground.cluster.names:  # removed meanwhile
                await aside(disk.move_out)
                return
            # It comes back by itself, and only then its data go back to where they were.
            await aside(ground.cluster.start, name)
            await until_serving(ground, name)
            await restart(ground, name, disk.move_out, keep_leader=False)
        await super().heal(ground, undo)


class DiskError(OnDisk):
    """The device answers with an error."""

    name = "disk-error"
    doc = "writes or syncs of a replica's log fail (a failpoint: EIO by default), until healed"
    params: Mapping[str, str] = {
        "errno": "EIO (the default), EROFS or ENOSPC", "at": "sync (the default) or write",
    }  # fmt: skip

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        code = word(self.name, params, "errno", "EIO", ("EIO", "EROFS", "ENOSPC"))
        at = word(self.name, params, "at", "sync", ("sync", "write"))
        spec = f"wal.{at}.before=error:{code},wal.open.write.after=error:{code}"
        says = f"every {at} of the log of {', '.join(targets)} fails with {code} (a failpoint)"
        return self._planned(ground, targets, {"spec": spec}, [{"name": name} for name in targets], says)

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        for name in strike.victims:
            armed(ground, name, await aside(ground.cluster.arm, name, strike.args["spec"]))
        return {"means": "failpoint"}


class LoseUnsynced(OnDisk):
    """A power cut, seen by the disk."""

    name = "lose-unsynced"
    doc = "kill -9 between write and sync of the log; what was not synced is gone; down until healed"
    params: Mapping[str, str] = {}
    #: Share of the frame that stays.
    kept = (0, 0)

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        keep = {name: rand.randint(*self.kept) / 100 for name in targets}
        says = f"kill -9 {', '.join(targets)} before a sync, and {self._loses()} of what was not synced is lost"
        return self._planned(ground, targets, {"keep": keep}, [{"name": name} for name in targets], says)

    def _loses(self) -> str:
        return "all"

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        lost = 0
        for name in strike.victims:
            armed(ground, name, await aside(ground.cluster.arm, name, "wal.sync.before=kill"))
            await until_dead(ground, name, "wrote nothing: there is nothing unsynced to lose")
            await aside(ground.cluster.arm, name, "")
            lost += await aside(ground.cluster.cut_tail, name, strike.args["keep"][name])
        seen = f"{', '.join(strike.victims)} died with {lost} bytes of the last frame lost" if lost else ""
        return {"bytes_lost": lost, "proved": {UNSYNCED_TAIL: seen}}


class Tear(LoseUnsynced):
    """A write that the power cut ended half-way."""

    name = "tear"
    doc = (
        "kill -9 between write and sync of the log; what was not synced is there in part; down until healed; "
        "or kill -9, and the newest snapshot without its end; started again; put back when healed"
    )
    params: Mapping[str, str] = {"where": "wal (the default) or snapshot"}
    kept = (1, 99)

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        if word(self.name, params, "where", "wal", ("wal", "snapshot")) == "wal":
            return super().plan(ground, targets, {}, rand)
        _one(self.name, targets)
        if isinstance(ground.cluster, RemoteCluster):
            raise ConfigError(f"{self.name}: agents tear the log only; flip (where: snapshot) damages a snapshot there")
        percent = rand.randint(*self.kept)
        note = ground.cluster.root / "chaos" / f"torn-{targets[0]}"
        says = f"kill -9 {targets[0]}, and its newest snapshot ends after {percent} %"
        return self._planned(
            ground, targets, {"snapshot_percent": percent}, [{"name": targets[0], "note": str(note)}], says
        )

    def _loses(self) -> str:
        return "the end"

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        if "snapshot_percent" not in strike.args:
            return await super().strike(ground, strike)
        name, note = strike.victims[0], Path(strike.undo[0].args["note"])
        await aside(ground.cluster.kill, name)
        try:
            path, _, last = await aside(damage.rot_target, ground.cluster.replica_dir(name), "snapshot")
        except ConfigError as error:
            raise FaultError(str(error)) from error
        size = last + 1
        # All of it is kept, and where it belongs is on disk, before it is torn: whoever heals has nothing else.
        await aside(shutil.copy, path, _kept(note))  # its mode too: it holds secrets
        _write_note(note, f"{path}\n{path.stat().st_ino}\n")
        keep = max(1, size * strike.args["snapshot_percent"] // 100)
        await aside(os.truncate, path, keep)
        await aside(ground.cluster.start, name)
        await until_known(ground, name)
        return {"torn": f"{path.name} after {keep} of {size} bytes"}

    async def proof(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        """Of a snapshot: whether it was found out, and how, the cluster says."""
        if "snapshot_percent" not in strike.args:
            return await super().proof(ground, strike)
        return {"bit": True, "refused_to_start": ground.cluster.processes.pid(strike.victims[0]) is None}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        note = Path(undo.args["note"]) if "note" in undo.args else None
        if note is not None and note.exists():
            await aside(ground.cluster.kill, undo.args["name"], signal.SIGKILL)
            path, inode = note.read_text().splitlines()
            if _is(Path(path), inode):
                await aside(os.replace, _kept(note), path)
            _kept(note).unlink(missing_ok=True)
            note.unlink()
        await super().heal(ground, undo)


class Flip(OnDisk):
    """Rot."""

    name = "flip"
    doc = "kill -9, and one bit of the log or the newest snapshot turned; started again; put back when healed"
    target = "follower"
    params: Mapping[str, str] = {"where": "wal (the default) or snapshot"}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        where = word(self.name, params, "where", "wal", ("wal", "snapshot"))
        _one(self.name, targets)
        place = integer(self.name, {"place": rand.randint(0, 999_999)}, "place", 0, 0, 999_999)
        says = f"kill -9 {targets[0]}, and a bit of its {where} turned"
        args = {"where": where, "place": place, "bit": rand.randint(0, 7)}
        note = ground.cluster.root / "chaos" / f"flipped-{targets[0]}"
        return self._planned(ground, targets, args, [{"name": targets[0], "note": str(note)}], says)

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        name, args = strike.victims[0], strike.args
        if isinstance(ground.cluster, RemoteCluster):
            await aside(ground.cluster.kill, name)
            offset = await aside(ground.cluster.flip, name, args["where"], args["place"], args["bit"])
            await aside(ground.cluster.start, name)
            await until_known(ground, name)
            return {"flipped": f"{args['where']} at {offset}"}
        directory, note = ground.cluster.replica_dir(name), Path(strike.undo[0].args["note"])
        await aside(ground.cluster.kill, name)
        try:
            path, low, high = await aside(damage.rot_target, directory, args["where"])
        except ConfigError as error:
            raise FaultError(str(error)) from error
        offset = low + (high - low) * args["place"] // 1_000_000
        before = path.read_bytes()[offset]
        # Where it was, on disk before it is turned: whoever heals has nothing else.
        _write_note(note, f"{path}\n{offset}\n{before}\n{path.stat().st_ino}\n")
        await aside(damage.flip, path, offset, args["bit"])
        await aside(ground.cluster.start, name)
        await until_known(ground, name)
        return {"flipped": f"{path.name} at {offset}"}

    async def proof(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        """A turned bit has bitten; whether it was found out, and how, the cluster says."""
        runs = ground.cluster.processes.pid(strike.victims[0]) is not None
        return {"bit": True, "refused_to_start": not runs}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        note, name = Path(undo.args["note"]), undo.args["name"]
        if isinstance(ground.cluster, RemoteCluster):
            await aside(ground.cluster.flip_back, name)
        elif note.exists():
            path, offset, byte, inode = note.read_text().splitlines()
            await aside(ground.cluster.kill, name, signal.SIGKILL)
            if _is(Path(path), inode):
                await aside(damage.restore, Path(path), int(offset), int(byte))
            note.unlink()
        await super().heal(ground, undo)


async def until_known(ground: Ground, name: str) -> None:
    """Until a damaged replica has ended, or serves: it was found out, or did not matter."""
    deadline_s = ground.clock.monotonic() + _DIES_S
    while ground.cluster.processes.pid(name) is not None and ground.clock.monotonic() < deadline_s:
        answer = (await ground.replicas.statuses()).get(name)
        if answer is not None and answer.ready:
            return
        await ground.clock.sleep(_POLL_S)


def _one(fault: str, targets: Sequence[str]) -> None:
    if len(targets) != 1:
        raise ConfigError(f"{fault}: one replica at a time, not {', '.join(targets)}")


def _is(path: Path, inode: str) -> bool:
    """Whether that is the damaged file still. It may have been set aside, and another have its name since."""
    return path.exists() and path.stat().st_ino == int(inode)


def _kept(note: Path) -> Path:
    return note.with_suffix(".kept")


def _write_note(note: Path, text: str) -> None:
    temporary = note.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(note)  # all of it or nothing, whenever this is killed


FAULTS: Final[tuple[Fault, ...]] = (DiskFull(), DiskError(), LoseUnsynced(), Tear(), Flip())


def armed(ground: Ground, name: str, heard: bool) -> None:
    """Raises FaultError: nobody heard that failpoints were armed."""
    if not heard:
        raise FaultError(f"{name} does not run, or was started without a file for failpoints (an older version?)")


async def until_dead(ground: Ground, name: str, otherwise: str, within_s: float = _DIES_S) -> None:
    """Return when its process has ended. Raises FaultError: not within the time; ``otherwise`` says what that means."""
    deadline_s = ground.clock.monotonic() + within_s
    while ground.cluster.processes.pid(name) is not None:
        if ground.clock.monotonic() > deadline_s:
            raise FaultError(f"{name} did not die within {within_s:g} s: it {otherwise}")
        await ground.clock.sleep(_POLL_S)
