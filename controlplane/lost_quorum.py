"""A cluster whose majority is lost for good goes on with what a survivor has: `qd recover`, while no replica runs.

Owns the judgement (which survivor, what may be lost) and the rewriting of its data directory. Raft cannot do this: it
decides without a majority, so a person must, knowing what it costs. Nothing is changed by :func:`inspect` and
:func:`plan`; :func:`recover` keeps everything it replaces.

The survivor with the highest (term, index) has every entry that any of the others has and that was committed (Raft's
election rule, section 5.4.1). Its whole log becomes the truth, its unacknowledged tail included, and it becomes the
only member. All others are entered as removed, so that one of them that comes back with its old data is told so and
stops, and cannot be a quorum with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from controlplane import swapping
from controlplane.base import failpoints
from controlplane.base.clock import Clock
from controlplane.base.errors import ConfigError, CorruptStateError, StorageError
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader
from controlplane.raft.disk import RealDisk
from controlplane.raft.founding import Founding, read_founding, write_founding
from controlplane.raft.membership import Membership, Removed, membership_of, to_wire
from controlplane.raft.proposals import decode_batch
from controlplane.raft.snapshots import SnapshotRef, SnapshotStore, seed_data_dir
from controlplane.raft.storage import newest_valid, supersede, superseded
from controlplane.raft.types import Member
from controlplane.raft.wal import Entry
from controlplane.raft.wal_recovery import Identity, identity_on_disk, read_log
from controlplane.store.store import Store

__all__ = ["RECORD_NAME", "TERM_BUMP", "Plan", "Survivor", "inspect", "plan", "recover"]

_log = logging.getLogger("quarterdeck.recover")

#: Further than the lost members can have gone on in terms of their own, of which the survivor may not have heard: an
#: entry is known by its index and term, to a replica that comes back as to an archive of the lost cluster's log.
TERM_BUMP = 1_000_000
RECORD_NAME = "recovery.json"
#: Of what is in it. No program reads it back.
RECORD_VERSION = 1
#: What a recovery replaces in a data directory.
_REPLACED = ("wal", "snapshots", "founding", RECORD_NAME)
_COMMAND, _CONFIG = b"\x00", b"\x02"


@dataclass(frozen=True, slots=True)
class Survivor:
    """What one stopped replica's data directory holds. ``commit_index``: committed for certain, perhaps more.
    ``superseded``: why it never starts again, if it was not chosen by a recovery before this one."""

    data_dir: Path
    identity: Identity
    membership: Membership
    term: int  # of the log's last entry
    index: int  # of the log's last entry
    commit_index: int
    current_term: int
    snapshot: SnapshotRef | None
    entries: Sequence[Entry]
    superseded: str | None

    @property
    def name(self) -> str:
        me = self.membership.get(self.identity.member_id)
        return me.name if me is not None and me.name else f"{self.identity.member_id:x}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recovery would do. ``lost``: members of which no directory was given."""

    chosen: Survivor
    others: tuple[Survivor, ...]
    lost: tuple[Member, ...]

    @property
    def nothing_acknowledged_is_lost(self) -> bool:
        """Whether every majority there was has one of the survivors in it."""
        voters = self.chosen.membership.voters
        present = {s.identity.member_id for s in (self.chosen, *self.others)} & voters
        return len(voters) - len(present) < len(voters) // 2 + 1

    @property
    def had_quorum(self) -> bool:
        """Whether the survivors are a majority: then they need no recovery at all."""
        voters = self.chosen.membership.voters
        present = {s.identity.member_id for s in (self.chosen, *self.others)} & voters
        return len(present) > len(voters) // 2

    def warnings(self) -> list[str]:
        """What this costs, for the person who decides."""
        chosen = self.chosen
        said = []
        if self.nothing_acknowledged_is_lost:
            said.append("nothing acknowledged is lost: every majority of the members has a survivor in it")
        else:
            said.append(
                f"LOST: whatever was acknowledged after entry {chosen.index} and reached only "
                f"{', '.join(m.name or f'{m.id:x}' for m in self.lost)}. How much that is, nobody can say now"
            )
        if chosen.index > chosen.commit_index:
            said.append(
                f"KEPT: entries {chosen.commit_index + 1} to {chosen.index} of {chosen.name} were perhaps never "
                "acknowledged (their clients heard an error or nothing); they become part of the state"
            )
        if self.had_quorum:
            said.append("the survivors are a majority: start them, and they go on by themselves, without any of this")
        said.append("the members not chosen must never start again with their old data; delete them, join as new ones")
        return said


def inspect(data_dir: Path) -> Survivor:
    """Read a stopped replica's directory, changing nothing of its log and snapshots. What a recovery that was cut short
    had moved is put back first.

    Raises:
        ConfigError: it is in use, or no data directory.
        CorruptStateError: it is damaged, or was found to differ from the others; then it is no survivor.
        StorageError: the disk refused.
    """
    with _opened(data_dir) as disk:
        if swapping.undo(data_dir, _REPLACED):
            _log.warning("a recovery that was cut short is undone data_dir=%s", data_dir)
        return _inspect(disk, data_dir)


@contextlib.contextmanager
def _opened(data_dir: Path) -> Iterator[RealDisk]:
    disk = RealDisk(data_dir)
    try:
        yield disk
    finally:
        disk.close()


def _inspect(disk: RealDisk, data_dir: Path) -> Survivor:
    identity = identity_on_disk(disk)
    if identity is None:
        raise ConfigError(f"{data_dir} holds no log")
    recovered = read_log(disk, identity).recovered
    founding = read_founding(disk)
    info, damaged = newest_valid(SnapshotStore(disk), identity)
    entries = recovered.entries
    at = info.header.index if info is not None else 0
    if recovered.first_index > at + 1:
        reason = f" ({'; '.join(map(str, damaged.values()))})" if damaged else ""
        raise CorruptStateError(
            f"{data_dir}: the log begins at entry {recovered.first_index} and no usable snapshot holds what was before"
            f"{reason}; this replica cannot be recovered from"
        )
    behind = [entry for entry in entries if entry[1] > at]
    membership = membership_of(info.header) if info is not None else founding.membership if founding else None
    for command, _, _ in behind:
        if command[:1] == _CONFIG:
            membership = Membership.decode(command[1:])
    if membership is None or not membership.members:
        raise ConfigError(f"{data_dir} does not say who the members were; it is too old for this, restore a snapshot")
    last_index, last_term = (behind[-1][1], behind[-1][2]) if behind else (at, info.header.term if info else 0)
    commit_index = min(max(at, recovered.hard_state.commit_index), last_index)
    ref = SnapshotRef(info.header.index, info.header.term) if info is not None else None
    term = recovered.hard_state.term
    return Survivor(
        data_dir, identity, membership, last_term, last_index, commit_index, term, ref, behind, superseded(disk)
    )


def plan(survivors: Sequence[Survivor]) -> Plan:
    """Choose the one to go on with: of equals one that may start, so that a recovery which was cut short, and had
    superseded the others already, goes on from the same one.

    Raises:
        ConfigError: no distinct members of one cluster, nothing in them, or the one with the most is superseded.
    """
    ids = {s.identity.member_id for s in survivors}
    clusters = {s.identity.cluster_id for s in survivors}
    if len(clusters) != 1 or len(ids) != len(survivors):
        raise ConfigError("the data directories are not those of different members of one cluster")
    chosen, *others = sorted(
        survivors, key=lambda s: (s.term, s.index, s.commit_index, s.superseded is None), reverse=True
    )
    if chosen.index < 1:
        raise ConfigError("no survivor holds anything; start a new cluster")
    if chosen.superseded is not None:
        raise ConfigError(
            f"{chosen.data_dir} is superseded: {chosen.superseded}. Whatever was acknowledged since is not in it: run "
            "this on what has it, or restore a snapshot; only if that is lost too, remove the file superseded from it"
        )
    lost = tuple(m for m in chosen.membership.members if m.id not in ids)
    return Plan(chosen, tuple(others), lost)


def recover(decided: Plan, *, clock: Clock) -> Path:
    """Do it: the chosen survivor becomes the only member, the others' directories refuse to start from now on.

    Returns:
        the folder that keeps the chosen one's directory as it was.

    Raises:
        ConfigError: a directory is in use, or is not what was planned with any more.
        CorruptStateError, StorageError: see :func:`inspect`. A recovery that is cut short leaves the chosen directory
            as it was, or one that refuses to start; in both cases it can be done again.
    """
    chosen = decided.chosen
    data_dir = chosen.data_dir
    with contextlib.ExitStack() as held:
        disk = held.enter_context(_opened(data_dir))
        others = [held.enter_context(_opened(other.data_dir)) for other in decided.others]
        now = _inspect(disk, data_dir)
        if (now.term, now.index, now.identity) != (chosen.term, chosen.index, chosen.identity):
            raise ConfigError(f"{data_dir} has changed since it was looked at; run this again")
        backup = _rewrite(disk, now, decided, clock)
        for other in others:
            supersede(other, f"the cluster went on from {chosen.name} at entry {chosen.index}, after a lost quorum")
            failpoints.hit("recover.supersede.after")
        # Only now: a stop before this leaves no two directories that both start.
        swapping.finish(data_dir)
    _log.warning(
        "lost quorum recovered member=%s index=%d term=%d commit=%d backup=%s",
        chosen.name, chosen.index, chosen.term, chosen.commit_index, backup,
    )  # fmt: skip
    return backup


def _rewrite(disk: RealDisk, chosen: Survivor, decided: Plan, clock: Clock) -> Path:
    membership = _alone(chosen)
    store = _state(disk, chosen)
    header = SnapshotHeader(
        cluster_id=chosen.identity.cluster_id,
        members=to_wire(membership.members),
        membership=membership.encode(),
        index=chosen.index,
        term=chosen.term,
        revision=store.revision,
        created_at_ms=clock.wall_ms(),
    )
    workspace = chosen.data_dir / swapping.WORKSPACE
    stamp = datetime.fromtimestamp(clock.wall_ms() / 1000, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    backup = swapping.backup_of(chosen.data_dir, stamp)
    record = {
        "version": RECORD_VERSION,
        "at": stamp,
        "member": chosen.name,
        "term": chosen.term,
        "index": chosen.index,
        "committed_for_certain": chosen.commit_index,
        "state_hash": store.state_hash(),
        "removed": [r.name or f"{r.id:x}" for r in membership.removed],
        "said": decided.warnings(),
        "backup": str(backup),
    }
    try:
        shutil.rmtree(workspace, ignore_errors=True)
        with contextlib.closing(RealDisk(workspace, create=True)) as made:
            seed_data_dir(made, chosen.identity, header, store.snapshot(), term=chosen.current_term + TERM_BUMP)
            write_founding(made, Founding(chosen.identity.cluster_id, chosen.identity.member_id, membership))
        _write(workspace / RECORD_NAME, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise StorageError(f"cannot prepare {workspace}: {error}", errno=error.errno or 0) from error
    failpoints.hit("recover.prepare.after")
    swapping.begin(chosen.data_dir, _REPLACED, backup)
    return backup


def _alone(chosen: Survivor) -> Membership:
    """The membership with the chosen one only; whoever else was in it is removed for good."""
    old = chosen.membership
    me = old.get(chosen.identity.member_id)
    if me is None:
        raise ConfigError(
            f"{chosen.data_dir}: this replica was removed from the cluster before; choose another survivor"
        )
    gone = tuple(Removed(m.id, m.name, chosen.index) for m in old.members if m.id != me.id)
    return replace(old, members=(replace(me, learner=False),), removed=(*old.removed, *gone))


def _state(disk: RealDisk, chosen: Survivor) -> Store:
    """The newest snapshot, and every entry behind it applied."""
    store = Store(cluster_id=chosen.identity.cluster_id)
    if chosen.snapshot is not None:
        store.restore(SnapshotStore(disk).chunks(chosen.snapshot))
    for command, index, term in chosen.entries:
        proposals = list(decode_batch(command[1:])) if command[:1] == _COMMAND else []
        store.apply(index, term, proposals)
    return store


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
