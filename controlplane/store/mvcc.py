"""The keyspace: every key's versions, and the events of every retained revision.

Owns revisions, versions, tombstones, reads at a past revision, and compaction. Must not know of leases' lifetimes,
transactions, watchers or Raft.

Layout, chosen so that the common cases touch one dictionary:

* ``_live``   sorted: key -> its newest version, for keys that exist now;
* ``_old``    key -> superseded versions in ascending order (for a deleted key the last one is its tombstone);
* ``_dead``   sorted: deleted keys that still have retained versions;
* ``_log``    per retained revision, its events in order. Watchers and snapshots read this.

Versions and events are immutable. Compaction is logical first (the revision is refused from then on) and physical
later: :meth:`sweep` frees at most so many revisions at a time, and never what a pinned reader still needs. What reads
and snapshots show depends on the logical state only, so replicas may sweep at different speeds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple
from weakref import WeakSet

from sortedcontainers import SortedDict, SortedList

from controlplane.pb.etcd import kv_pb2
from controlplane.store.keyspan import Span
from controlplane.store.wire import version_frame

__all__ = ["Event", "Keyspace", "Pin", "Version", "kv_bytes", "parse_kv"]

_CHUNK_KEYS = 256
#: What a retained version costs beside its frame: the objects that hold it and the tables that lead to it (measured:
#: 370 to 410 bytes with CPython 3.11 on 64 bits).
_VERSION_BYTES = 400
#: A dictionary that only grew takes up to a hundred bytes a key.
_TABLE_BYTES_PER_KEY_MAX = 400


class Version(NamedTuple):
    """One version of one key. A tombstone has ``version`` 0."""

    mod_revision: int
    create_revision: int
    version: int
    lease: int
    #: The mvccpb.KeyValue, serialized, as protobuf field 2 (tag, length, bytes). Field 2 is what RangeResponse.kvs,
    #: PutResponse.prev_kv and Event.kv have in common, so answers are made by joining bytes, not by building messages.
    frame: bytes
    #: Its place among the changes of its revision, as in etcd's own keys (main, sub).
    sub: int = 0


class Event(NamedTuple):
    """One change: what the key became, and what it was before the revision (None: it did not exist)."""

    key: bytes
    version: Version
    previous: Version | None

    @property
    def is_delete(self) -> bool:
        return self.version.version == 0


class Pin:
    """Keeps what is readable at ``revision`` from being swept, for as long as this object lives or until closed."""

    __slots__ = ("__weakref__", "revision")

    def __init__(self, revision: int) -> None:
        self.revision = revision


def kv_bytes(frame: bytes) -> bytes:
    """The serialized KeyValue inside a frame."""
    start = 1
    while frame[start] & 0x80:
        start += 1
    return frame[start + 1 :]


def parse_kv(version: Version) -> kv_pb2.KeyValue:
    """The KeyValue message of a version."""
    return kv_pb2.KeyValue.FromString(kv_bytes(version.frame))


def _make_version(key: bytes, value: bytes, mod: int, create: int, version: int, lease: int, sub: int) -> Version:
    frame = version_frame(key, value, mod, create, version, lease)
    return tuple.__new__(Version, (mod, create, version, lease, frame, sub))  # half the time of Version(...)


def _outgrown(table: dict[bytes, Any]) -> bool:
    return dict.__sizeof__(table) > _TABLE_BYTES_PER_KEY_MAX * (len(table) + _CHUNK_KEYS)


class Keyspace:
    """See the module. ``revision`` is the newest committed one; changes are made at an explicit revision, in order."""

    def __init__(self) -> None:
        self.revision = 1
        self.compact_revision = 0
        self.size_bytes = 0
        self._live: Any = SortedDict()
        self._old: dict[bytes, list[Version]] = {}
        self._dead: Any = SortedList()
        self._log: list[tuple[Event, ...]] = []
        self._log_first = 2  # revision of _log[0]
        self._swept = 1  # superseded versions are trimmed up to here
        self._pins: WeakSet[Pin] = WeakSet()
        self._open: list[Event] = []  # events of the revision being made
        self._dismantled = False

    # -- writes

    def put(self, key: bytes, value: bytes, lease: int) -> Version:
        """Write a version at revision + 1 (visible at once); :meth:`commit` closes the revision."""
        revision = self.revision + 1
        before: Version | None = self._live.get(key)
        if before is None:
            created = _make_version(key, value, revision, revision, 1, lease, len(self._open))
        else:
            create, version = before.create_revision, before.version + 1
            created = _make_version(key, value, revision, create, version, lease, len(self._open))
        self._record(key, created, before)
        return created

    def delete(self, key: bytes) -> Version | None:
        """Write a tombstone at revision + 1. Returns what was deleted, None if there was nothing."""
        before: Version | None = self._live.get(key)
        if before is not None:
            self._record(key, _make_version(key, b"", self.revision + 1, 0, 0, 0, len(self._open)), before)
        return before

    def _record(self, key: bytes, after: Version, before: Version | None) -> None:
        self._install(key, after, before)
        previous = before
        if before is not None and before.mod_revision == after.mod_revision:
            # Written and deleted in one transaction (sibling sub-transactions may): "previous" is the earlier revision.
            previous = next((e.previous for e in self._open if e.key == key), None)
        self._open.append(tuple.__new__(Event, (key, after, previous)))

    def _install(self, key: bytes, after: Version, before: Version | None) -> None:
        self.size_bytes += _VERSION_BYTES + len(after.frame)
        if before is not None:
            old = self._old.get(key)
            if old is None:
                self._old[key] = [before]
            else:
                old.append(before)
        if after.version:
            if before is not None:
                dict.__setitem__(self._live, key, after)  # its place in the order stays
                return
            if key in self._old:
                self._dead.remove(key)
            self._live[key] = after
        elif before is not None:
            del self._live[key]
            self._old[key].append(after)
            self._dead.add(key)

    @property
    def changed(self) -> bool:
        """Whether a revision is open: something was written since the last commit."""
        return bool(self._open)

    def commit(self) -> tuple[Event, ...]:
        """Close the open revision and return its events; with nothing written, no revision is made."""
        events = tuple(self._open)
        if events:
            self.revision += 1
            self._log.append(events)
            self._open = []
        return events

    # -- reads

    def get(self, key: bytes, revision: int = 0) -> Version | None:
        """The version of a key at a revision (0: now, the open revision included), or None if it did not exist."""
        live: Version | None = self._live.get(key)
        if not revision or (live is not None and live.mod_revision <= revision):
            return live
        old = self._old.get(key)
        if old is None:
            return None
        at = bisect_right(old, (revision + 1,)) - 1
        return old[at] if at >= 0 and old[at].version else None

    def scan(self, keys: Span, limit: int = 0) -> list[Version]:
        """Versions now, in key order; at most ``limit`` if it is not 0."""
        found = islice(self._live.irange(keys.low, keys.high, (True, False)), limit or None)
        live = self._live
        return [live[key] for key in found]

    def keys(self, keys: Span) -> list[bytes]:
        """Keys that exist now, in order."""
        return list(self._live.irange(keys.low, keys.high, (True, False)))

    def scan_at(self, keys: Span, revision: int) -> Iterator[Version]:
        """Versions at a past revision, in key order, lazily: writes may go on between two items."""
        low, inclusive = keys.low, True
        while True:
            bounds = (low, keys.high, (inclusive, False))
            chunk = list(islice(self._live.irange(*bounds), _CHUNK_KEYS))
            chunk += islice(self._dead.irange(*bounds), _CHUNK_KEYS)
            chunk.sort()
            del chunk[_CHUNK_KEYS:]
            for version in [self.get(key, revision) for key in chunk]:
                if version is not None:
                    yield version
            if len(chunk) < _CHUNK_KEYS:
                return
            low, inclusive = chunk[-1], False

    def count(self, keys: Span) -> int:
        """How many keys exist now; logarithmic."""
        live = self._live
        low: int = live.bisect_left(keys.low)
        high: int = len(live) if keys.high is None else live.bisect_left(keys.high)
        return max(0, high - low)

    def count_at(self, keys: Span, revision: int) -> int:
        """How many keys existed at a past revision: today's count, less what has changed since."""
        if self.revision - revision > len(self._live) + len(self._dead):
            return sum(1 for _ in self.scan_at(keys, revision))
        born = 0
        for later in range(revision + 1, self.revision + 1):
            for event in self.events(later):
                if event.key in keys:
                    born += 1 if event.version.version == 1 else -1 if event.is_delete else 0
        for event in self._open:
            if event.key in keys:
                born += 1 if event.version.version == 1 else -1 if event.is_delete else 0
        return self.count(keys) - born

    @property
    def key_count(self) -> int:
        return len(self._live)

    def events(self, revision: int) -> tuple[Event, ...]:
        """The events of a retained revision (none for a revision that made none, or that is gone)."""
        at = revision - self._log_first
        return self._log[at] if 0 <= at < len(self._log) else ()

    # -- compaction

    def compact(self, revision: int) -> None:
        """From now on nothing before ``revision`` is readable. Memory is given back by :meth:`sweep`."""
        self.compact_revision = revision

    def pin(self) -> Pin:
        """Keep everything readable now readable to the holder, through later compactions."""
        pin = Pin(self.compact_revision)
        self._pins.add(pin)
        return pin

    def unpin(self, pin: Pin) -> None:
        self._pins.discard(pin)

    @property
    def needs_sweep(self) -> bool:
        return self._swept < self.compact_revision

    @property
    def sweepable(self) -> bool:
        """Whether a sweep would free something now: what a pinned reader needs waits for it."""
        return self._swept < min([self.compact_revision, *(pin.revision for pin in self._pins)])

    def sweep(self, revisions_max: int) -> bool:
        """Free what compaction made unreachable, looking at no more than so many revisions. True: nothing is left."""
        goal = min([self.compact_revision, *(pin.revision for pin in self._pins)])
        until = min(goal, self._swept + revisions_max)
        for revision in range(max(self._swept + 1, self._log_first), until + 1):
            for event in self.events(revision):
                self._trim(event.key, goal)
        self._swept = max(self._swept, until)
        # Events of the compact revision itself stay: a watch may start there. Dropping shifts the list, so in bulk.
        gone = min(self._swept, goal) - self._log_first
        if gone > 0 and (gone >= 4096 or self._swept >= goal):
            del self._log[:gone]
            self._log_first += gone
        return self._swept >= self.compact_revision

    def rebuild(self) -> Iterator[None]:
        """Make tables that have outgrown their contents anew: a dictionary keeps its size when keys are deleted. One
        table per step; a step takes about half a microsecond per key that is left. Between two steps a restore may
        have replaced all this: then nothing is left to do."""
        if _outgrown(self._old) and not self._dismantled:
            self._old = dict(self._old.items())
        yield
        if _outgrown(self._live) and not self._dismantled:
            live = self._live
            self._live = SortedDict((key, live[key]) for key in live)
        yield

    def _trim(self, key: bytes, revision: int) -> None:
        """Drop versions of a key that no read at ``revision`` or later can see."""
        old = self._old.get(key)
        if old is None:
            return
        live = self._live.get(key)
        if live is not None and live.mod_revision <= revision:
            keep = len(old)
        else:
            keep = bisect_right(old, (revision + 1,)) - 1
            if keep >= 0 and not old[keep].version:
                keep += 1
        if keep <= 0:
            return
        self.size_bytes -= sum(_VERSION_BYTES + len(version.frame) for version in islice(old, keep))
        if keep < len(old):
            del old[:keep]
            return
        del self._old[key]
        if live is None:
            self._dead.remove(key)

    # -- restore (only by snapshot.py)

    def load_start(self, compact_revision: int) -> None:
        """Begin at the compact revision: the keys that existed then, its events, and those after it follow."""
        self.compact_revision = compact_revision
        if compact_revision > 0:
            self.revision = compact_revision
            self._swept = compact_revision
            self._log_first = compact_revision
            self._log = [()]

    def move_to(self, revision: int) -> None:
        """Go on at a later revision, all before it being compacted: of a keyspace that was loaded without history."""
        self.revision = self.compact_revision = self._swept = self._log_first = revision
        self._log = [()]

    def dismantle(self, keys_max: int) -> bool:
        """Take apart what nobody will read again, so many keys at a time: freed at once, a big one would take longer
        than a loop may stand still. True: nothing is left that matters, or a reader keeps it, who frees it then."""
        if self._pins:
            return True
        self._dismantled = True
        del self._log[-keys_max:]
        # Past the sorted index, which nobody needs any more.
        for table in (self._live, self._old):
            for _ in range(min(keys_max, dict.__len__(table))):
                dict.popitem(table)
        return not (self._log or dict.__len__(self._live) or self._old)

    def load_key(self, key: bytes, version: Version) -> None:
        """A key as it was at the compact revision."""
        self._live[key] = version
        self.size_bytes += _VERSION_BYTES + len(version.frame)

    def load_events(self, versions: list[tuple[bytes, Version]]) -> None:
        """Replay one revision. Those of the compact revision are history only: the base already shows them."""
        revision = versions[0][1].mod_revision
        if revision == self.compact_revision:
            self._log = [tuple(Event(key, version, None) for key, version in versions)]
            return
        for key, version in versions:
            self._record(key, version, self._live.get(key))
        self.commit()
