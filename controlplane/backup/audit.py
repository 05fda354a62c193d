"""Everything that lies among a cluster's backups, checked: could it be restored today?

Owns the order of the checks and the words for what is wrong. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.backup.chain import Log
from controlplane.backup.names import SegmentName, SnapshotName
from controlplane.backup.repository import Repository
from controlplane.base.errors import ConfigError, CorruptStateError
from controlplane.raft.snapshot_format import read_snapshot_file
from controlplane.store.store import Store

__all__ = ["Audit", "audit"]


@dataclass(slots=True)
class Audit:
    """What was found. ``unread``: encrypted objects that were not opened, for lack of a key."""

    snapshots: Sequence[SnapshotName]
    segments: Sequence[SegmentName]
    problems: list[str] = field(default_factory=list)
    unread: int = 0


def audit(repository: Repository, scratch: Path, *, say: Callable[[str], None] = lambda _: None) -> Audit:
    """Check every snapshot and every segment. Blocks as long as reading all of it takes.

    Raises:
        ConfigError: the key is the wrong one, or a newer version wrote something.
        StorageError: the store cannot be read.
    """
    found = Audit(repository.snapshots(), repository.segments())
    for name in found.snapshots:
        say(f"checking {repository.locate(name)}")
        try:
            _check_snapshot(repository, name, scratch, found)
        except CorruptStateError as error:
            found.problems.append(str(error))
    terms: dict[int, set[int]] = {}
    for segment in found.segments:
        try:
            _check_segment(repository, segment, terms, found)
        except CorruptStateError as error:
            found.problems.append(str(error))
    found.problems += _gaps(found)
    return found


def _check_snapshot(repository: Repository, name: SnapshotName, scratch: Path, found: Audit) -> None:
    where = repository.locate(name)
    manifest = repository.manifest(name)
    path = scratch / "audited.qdsnap"
    try:
        if repository.stored_digest(name, path) != manifest.sha256:
            raise CorruptStateError(f"{where} is damaged: its checksum is not the one in its manifest")
        if name.encrypted and not repository.can_decrypt:
            found.unread += 1
            return
        repository.fetch(name, path)
        _, chunks = read_snapshot_file(path)
        store = Store()
        store.restore(chunks)
        if store.state_hash() != manifest.state_hash:
            raise CorruptStateError(f"{where} holds another state than its manifest says")
    finally:
        path.unlink(missing_ok=True)


def _check_segment(repository: Repository, name: SegmentName, terms: dict[int, set[int]], found: Audit) -> None:
    """``terms``: of entries that a segment ended with, by index: more than one, where two histories lie (a cluster that
    was recovered without its majority)."""
    index = name.first
    while index <= name.last:
        try:
            header, entries = repository.read_segment(name, index)
        except ConfigError:
            if repository.can_decrypt or not (name.encrypted or name.packed):
                raise
            found.unread += 1
            return
        before = header.first_index - 1
        ends = terms.get(before)
        if ends and header.previous_term not in ends | {s.term for s in found.snapshots if s.index == before}:
            raise CorruptStateError(
                f"{repository.locate(name)} does not follow on what is before it: entry {before} has term "
                f"{', '.join(map(str, sorted(ends)))} there and {header.previous_term} here"
            )
        terms.setdefault(header.last_index, set()).add(entries[-1].term)
        index = header.last_index + 1


def _gaps(found: Audit) -> list[str]:
    """Entries behind the oldest snapshot that no segment has, though there are later ones."""
    if not found.snapshots:
        return ["there is a log and no snapshot that it goes on from"] if found.segments else []
    log = Log(found.segments)
    index = min(name.index for name in found.snapshots)
    gaps = []
    while index < log.last:
        end = log.end_of_run(index)
        following = log.next_after(index + 1)
        if end is not None:
            index = end.last
        elif following is not None:
            gaps.append(f"the log has a gap: entries {index + 1} to {following.first - 1} are missing")
            index = following.first - 1
        else:
            break
    return gaps
