"""A state out of backups: the newest, of a revision, or of a moment, as a plain snapshot file.

Owns the search (which snapshot, which segments, what instead of a damaged one) and the refusals. Changes nothing where
the backups lie. What comes out was a state of the cluster, to the entry and to the revision, or nothing comes out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from controlplane.backup.age import MAGIC, is_encrypted
from controlplane.backup.chain import Covered, Goal, Log, covered
from controlplane.backup.checks import check_room
from controlplane.backup.keys import read_identities
from controlplane.backup.names import SegmentName, SnapshotName
from controlplane.backup.objects import ObjectStore, is_url, open_objects
from controlplane.backup.replay import DivergedError, Replay
from controlplane.backup.repository import Keys, Repository, clusters, describe_file, open_file
from controlplane.base.errors import ConfigError, CorruptStateError, NotCoveredError, StorageError
from controlplane.pb.quarterdeck.internal.v1.archive_pb2 import ArchivedEntry
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader
from controlplane.raft.snapshot_format import encode_snapshot_file, read_snapshot_file
from controlplane.store.store import Store

__all__ = ["Materialized", "choose_cluster", "materialize", "when"]

_FILE_SUFFIXES: Final = (".qdsnap", ".qdsnap.age", ".age")


@dataclass(frozen=True, slots=True)
class Materialized:
    """What was found, and the plain snapshot file that holds it.

    Attributes:
        time_ms: wall clock, milliseconds since 1970, of the last write in it (the snapshot's, if none was replayed).
        state_hash: hex digest of the state at that revision, as `qd status` showed it then.
        snapshot: where the snapshot lay that it is built on.
        entries_replayed: log entries applied on top of that.
        notes: what a person should know: damage that was got around, where the archive ends.
    """

    path: Path
    cluster_id: int
    revision: int
    index: int
    term: int
    time_ms: int
    keys: int
    state_hash: str
    snapshot: str
    entries_replayed: int
    notes: tuple[str, ...] = ()


def materialize(
    source_url: str,
    *,
    to_revision: int | None = None,
    to_time_ms: int | None = None,
    key_file: Path | None = None,
    scratch: Path,
    cluster_id: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Materialized:
    """Make a state out of backups, as a snapshot file in ``scratch``. Blocks.

    Args:
        source_url: a repository (directory or URL), or one snapshot file (path or URL), encrypted or not.
        to_revision: the last state of that revision: everything before the write that made the next one.
        to_time_ms: everything the archiving replica applied at that moment (its wall clock) or before.
        key_file: opens what is encrypted.
        cluster_id: which cluster's, if several have backups there; by default the one with the newest.
        say: hears progress.

    Raises:
        NotCoveredError: it is not there, or cannot be built without a gap; says what is there.
        ConfigError: no such file or folder, no key or the wrong one, a newer format, both a revision and a time.
        CorruptStateError: what it needs is damaged and nothing else holds it.
        StorageError: the store cannot be read, or the scratch folder has no room.
    """
    if to_revision is not None and to_time_ms is not None:
        raise ConfigError("a state is chosen by its revision or by a time, not by both")
    if not is_url(source_url) and not Path(source_url).exists():
        raise ConfigError(f"{source_url}: no such file or folder")
    goal = Goal(to_revision, to_time_ms)
    keys = Keys(identities=read_identities(key_file) if key_file is not None else ())
    _make_scratch(scratch)
    if _is_file(source_url):
        return _from_file(source_url, goal, keys, scratch)
    objects = open_objects(source_url, scratch=scratch)
    chosen, note = choose_cluster(objects, cluster_id)
    search = _Search(Repository(objects, chosen, keys), goal, scratch, say)
    if note:
        search.note(note)
    return search.run()


def choose_cluster(objects: ObjectStore, cluster_id: int | None) -> tuple[int, str]:
    """The cluster asked for, or the one with the newest backups; and what a person should know of that choice.

    Raises:
        NotCoveredError: there is no backup, or none of that cluster.
    """
    there = clusters(objects)
    if cluster_id is not None:
        if cluster_id not in there:
            shown = ", ".join(f"{one:x}" for one in there) or "no cluster at all"
            raise NotCoveredError(f"{objects.url} has no backup of cluster {cluster_id:x}; it has {shown}")
        return cluster_id, ""
    if not there:
        raise NotCoveredError(f"{objects.url} holds no backups")
    if len(there) == 1:
        return there[0], ""
    newest = {one: _newest_ms(Repository(objects, one)) for one in there}
    chosen = max(there, key=lambda one: newest[one])
    others = ", ".join(f"{one:x} (until {when(newest[one])})" for one in there if one != chosen)
    return chosen, (
        f"{objects.url} has backups of several clusters: taken is {chosen:x}, the newest; there are also {others}"
    )


def _newest_ms(repository: Repository) -> int:
    snapshots = (name.created_at_ms for name in repository.snapshots())
    segments = (name.closed_at_ms for name in repository.segments())
    return max((*snapshots, *segments), default=0)


def when(time_ms: int) -> str:
    """A moment for people: ISO 8601, UTC, milliseconds."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(slots=True)
class _Search:
    repository: Repository
    goal: Goal
    scratch: Path
    say: Callable[[str], None]
    notes: list[str] = field(default_factory=list)
    log: Log = field(init=False)
    #: Segments of another history were met: an older snapshot may lead where a newer one does not.
    forked: bool = False

    def run(self) -> Materialized:
        snapshots = self.repository.snapshots()
        self.log = Log(self.repository.segments())
        bases = self.goal.bases(snapshots)
        if not bases:
            raise NotCoveredError(f"{self._wanted()} is not covered. {_shown(covered(snapshots, self.log))}")
        refusal: CorruptStateError | NotCoveredError | None = None
        for base in bases:
            try:
                return self._from(base)
            except NotCoveredError as error:
                refusal = refusal or error
                if not self.forked:
                    break  # from an older one the way leads to the same end
            except CorruptStateError as error:
                refusal = error
                self.note(f"{error}; taking the snapshot before it")
        if isinstance(refusal, NotCoveredError):
            raise NotCoveredError(f"{refusal} {_shown(covered(snapshots, self.log))}")
        raise CorruptStateError(f"{refusal}; no snapshot before it is left")

    def _from(self, base: SnapshotName) -> Materialized:
        self.say(f"reading the snapshot of revision {base.revision}, {when(base.created_at_ms)}")
        fetched = self.scratch / "base.qdsnap"
        try:
            info = self.repository.fetch(base, fetched)
            limit: int | None = None
            while True:
                _, chunks = read_snapshot_file(fetched)
                store = Store()
                store.restore(chunks)
                replay = Replay(store, self.goal, base.index, base.term, base.created_at_ms, limit_index=limit)
                try:
                    self._follow(replay)
                except DivergedError as error:
                    if limit is not None:
                        raise
                    limit = error.index
                    self.note(f"{error}; going no further than entry {limit - 1}")
                    continue
                return self._finish(base, info.header, replay)
        finally:
            fetched.unlink(missing_ok=True)

    def _follow(self, replay: Replay) -> None:
        """Replay to the goal, or to the end of what can be read. Raises NotCoveredError if that falls short of it."""
        goal = self.goal
        broken = ""
        while not replay.reached:
            if replay.limit_index == replay.index + 1:
                broken = f"entry {replay.limit_index} cannot be replayed"
                break
            entries, broken = self._entries_after(replay)
            if not entries:
                break
            replay.apply(entries)
        at = f"revision {replay.store.revision}, {when(replay.time_ms)}"
        if goal.revision is not None and replay.store.revision != goal.revision:
            reason = "the next revision is beyond it" if replay.reached else broken or "the log ends there"
            raise NotCoveredError(f"{self._wanted()} is not covered: the archive goes to {at}; {reason}.")
        if goal.time_ms is not None and broken:
            raise NotCoveredError(f"{self._wanted()} is not covered: behind {at}, {broken}.")
        if goal.time_ms is not None and not replay.reached:
            self.note(f"nothing is archived behind {at}: that is the last state known before the time")
        if goal.newest and broken:
            self.note(f"behind {at}, {broken}: what was written after that is not in this state")

    def _entries_after(self, replay: Replay) -> tuple[list[ArchivedEntry], str]:
        """The entries that follow, of the first segment that has them whole. If none has: no entries, and why, should
        the log not simply end here."""
        wanted, damaged = replay.index + 1, False
        for name in self.log.holding(wanted):
            try:
                header, entries = self.repository.read_segment(name, wanted)
            except CorruptStateError as error:
                self.note(str(error))
                damaged = True
                continue
            except StorageError:
                if not self._is_gone(name):
                    raise
                return self._entries_after(replay)
            before = replay.index - header.first_index
            previous_term = entries[before].term if before >= 0 else header.previous_term
            if previous_term == replay.term:
                return entries[before + 1 :], ""
            self.forked = True
            self.note(
                f"{self.repository.locate(name)} is of another history: entry {replay.index} has term {previous_term} "
                f"there and {replay.term} here"
            )
        if damaged:
            return [], f"entry {wanted} is damaged"
        behind = self.log.next_after(wanted)
        return [], f"the log has a gap (entries {wanted} to {behind.first - 1})" if behind is not None else ""

    def _is_gone(self, name: SegmentName) -> bool:
        """Whether a segment was removed since the log was listed: of a cluster that runs, they are put together."""
        self.log = Log(self.repository.segments())
        return name not in self.log.segments

    def _finish(self, base: SnapshotName, header: SnapshotHeader, replay: Replay) -> Materialized:
        store = replay.store
        made = SnapshotHeader()
        made.CopyFrom(header)
        made.index, made.term, made.revision = replay.index, replay.term, store.revision
        made.created_at_ms = replay.time_ms
        path = self.scratch / f"materialized-{store.revision}.qdsnap"
        check_room(self.scratch, store.size_bytes, what="the snapshot of the state found")
        _write(path, made, store)
        if replay.entries:
            self.say(f"replayed {replay.entries} entries of the log, to revision {store.revision}")
        return Materialized(
            path=path,
            cluster_id=header.cluster_id,
            revision=store.revision,
            index=replay.index,
            term=replay.term,
            time_ms=replay.time_ms,
            keys=store.key_count,
            state_hash=store.state_hash(),
            snapshot=self.repository.locate(base),
            entries_replayed=replay.entries,
            notes=tuple(self.notes),
        )

    def _wanted(self) -> str:
        if self.goal.revision is not None:
            return f"revision {self.goal.revision}"
        return f"the state at {when(self.goal.time_ms)}" if self.goal.time_ms is not None else "a state"

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self.say(text)


def _shown(stretches: list[Covered]) -> str:
    if not stretches:
        return "There is no snapshot."
    parts = (
        f"revision {s.first_revision} to {s.last_revision} ({when(s.first_ms)} to {when(s.last_ms)})" for s in stretches
    )
    return f"Covered: {', '.join(parts)}"


def _write(path: Path, header: SnapshotHeader, store: Store) -> None:
    temporary = path.with_suffix(".part")
    try:
        with temporary.open("wb") as file:
            for piece in encode_snapshot_file(header, store.snapshot()):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}", errno=error.errno or 0) from error
    finally:
        temporary.unlink(missing_ok=True)


def _make_scratch(scratch: Path) -> None:
    try:
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {scratch}: {error.strerror}") from error


# -- one file --------------------------------------------------------------------------------------------------------


def _is_file(source: str) -> bool:
    return source.partition("?")[0].endswith(_FILE_SUFFIXES) if is_url(source) else Path(source).is_file()


def _from_file(source: str, goal: Goal, keys: Keys, scratch: Path) -> Materialized:
    path = Path(source)
    if is_url(source):
        parent, _, name = source.partition("?")[0].rpartition("/")
        query = source.partition("?")[2]
        path = scratch / name
        open_objects(parent + (f"?{query}" if query else ""), scratch=scratch).fetch(name, path)
    try:
        with path.open("rb") as file:
            encrypted = is_encrypted(file.read(len(MAGIC)))
        size = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}") from error
    if encrypted:
        check_room(scratch, size, what=f"the decrypted {source}")
        plain = scratch / "opened.qdsnap"
        open_file(path, plain, keys.identities, source)
        path = plain
    info, state_hash = describe_file(path)
    header = info.header
    if goal.revision not in (None, header.revision) or (goal.time_ms or header.created_at_ms) < header.created_at_ms:
        raise NotCoveredError(
            f"{source} is one snapshot, of revision {header.revision}, {when(header.created_at_ms)}; for another state "
            "name the repository that has the log beside it"
        )
    _, chunks = read_snapshot_file(path)
    store = Store()
    store.restore(chunks)
    return Materialized(
        path=path,
        cluster_id=header.cluster_id,
        revision=header.revision,
        index=header.index,
        term=header.term,
        time_ms=header.created_at_ms,
        keys=store.key_count,
        state_hash=state_hash,
        snapshot=source,
        entries_replayed=0,
    )
