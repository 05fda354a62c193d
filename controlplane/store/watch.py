"""Watchers: positions in the shared history of events.

Owns who watches what, who must be woken, and reading events from a position. Must not know of streams, clients or
clocks. A watcher holds no events: a slow one costs the same few fields as a fast one, and falls behind until compaction
overtakes it (CompactedError), never until memory ends.

``_from`` is the revision from which events for this watcher may be unread; None means there are none (synced), so a
write costs nothing to watchers it does not concern: keys are matched in a dictionary, prefixes by their distinct
lengths, and only other ranges one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from controlplane.pb.etcd import kv_pb2
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.store import mvcc
from controlplane.store.errors import CompactedError
from controlplane.store.keyspan import Span, prefix_end, span
from controlplane.store.mvcc import Keyspace

__all__ = ["Watcher", "Watchers"]

_NOPUT = e.WatchCreateRequest.FilterType.NOPUT
_NODELETE = e.WatchCreateRequest.FilterType.NODELETE
#: Revisions one poll looks at, at most: a poll is never longer than a few milliseconds.
_SCAN_REVISIONS_MAX = 2_000
#: Messages kept for the next watcher of the same event, and the largest that is.
_SHARED_EVENTS_MAX = 256
_SHARED_BYTES_MAX = 16 * 1024

#: (revision, place among its changes)
_Place = tuple[int, int]


class Watcher:
    """One watch. Made by :meth:`Watchers.create`."""

    __slots__ = ("_from", "_hub", "_prev_kv", "_start", "_wake", "_woken", "cancelled", "no_delete", "no_put", "span")

    def __init__(
        self,
        hub: Watchers,
        keys: Span,
        start_revision: int,
        filters: Iterable[int],
        prev_kv: bool,
        wake: Callable[[], None],
    ) -> None:
        chosen = tuple(filters)
        self.span = keys
        self.no_put = _NOPUT in chosen
        self.no_delete = _NODELETE in chosen
        self.cancelled = False
        self._hub = hub
        self._prev_kv = prev_kv
        self._wake = wake
        self._woken = False
        current = hub.keyspace.revision
        self._start = start_revision or current + 1
        self._from: int | None = self._start if self._start <= current else None

    @property
    def synced(self) -> bool:
        """Nothing is known to be unread: poll again only after a wake. Else poll again now (yield in between)."""
        return self._from is None

    @property
    def progress(self) -> int:
        """Every event of this watch up to this revision has been polled."""
        return self._hub.keyspace.revision if self._from is None else self._from - 1

    def poll(self, max_events: int) -> list[tuple[int, list[kv_pb2.Event]]]:
        """The next events, in order, by revision; a revision is never split, so there may be more than asked for when
        one transaction made more. May be empty although not yet synced: each poll looks at a bounded stretch. Watchers
        of one event share its message: it is only to be read.

        Raises:
            CompactedError: history this watcher had not read is gone.
        """
        self._woken = False
        batch: list[tuple[int, list[kv_pb2.Event]]] = []
        if self._from is None or self.cancelled:
            return batch
        keyspace = self._hub.keyspace
        if self._from < keyspace.compact_revision:
            raise CompactedError(keyspace.compact_revision)
        current = keyspace.revision
        revision = self._from
        until = min(current, revision + _SCAN_REVISIONS_MAX - 1)
        found = 0
        while revision <= until and found < max_events:
            events = [self._message(event, revision) for event in keyspace.events(revision) if self.wants(event)]
            if events:
                batch.append((revision, events))
                found += len(events)
            revision += 1
        self._from = revision if revision <= current else None
        return batch

    def cancel(self) -> None:
        """No more events and no more wakes."""
        if not self.cancelled:
            self.cancelled = True
            self._hub.remove(self)

    def wants(self, event: mvcc.Event) -> bool:
        if event.is_delete:
            return not self.no_delete and event.key in self.span
        return not self.no_put and event.key in self.span

    def _message(self, event: mvcc.Event, revision: int) -> kv_pb2.Event:
        # As in etcd, the previous version is the one readable a revision earlier: not if that has been compacted.
        return self._hub.message(event, self._prev_kv and revision > self._hub.keyspace.compact_revision)

    def notice(self, revision: int) -> bool:
        """An event of this watch was made. Returns whether to wake it (once until it polls)."""
        if revision < self._start:
            return False
        if self._from is None:
            self._from = revision
        if self._woken:
            return False
        self._woken = True
        return True

    def rewind(self, revision: int) -> None:
        """History after ``revision`` was replaced by a restore: what follows may be unread."""
        if self._from is None:
            self._from = max(revision + 1, self._start)
            if self._from > self._hub.keyspace.revision >= revision:
                self._from = None

    def wake(self) -> None:
        self._woken = True
        self._wake()


class Watchers:
    """All watchers of one store."""

    def __init__(self, keyspace: Keyspace) -> None:
        self.keyspace = keyspace
        # Dictionaries used as ordered sets throughout, so that iteration never depends on addresses.
        self._by_key: dict[bytes, dict[Watcher, None]] = {}
        self._by_prefix: dict[bytes, dict[Watcher, None]] = {}
        self._prefix_lengths: dict[int, int] = {}
        self._by_range: dict[Watcher, None] = {}
        self._all: dict[Watcher, None] = {}
        self._to_wake: list[Watcher] = []
        # Messages of events read lately, by revision and place in it, without and with what was before the event.
        self._messages: tuple[dict[_Place, kv_pb2.Event], dict[_Place, kv_pb2.Event]] = ({}, {})

    def __len__(self) -> int:
        return len(self._all)

    @property
    def unsynced(self) -> int:
        """How many have something that they have not polled."""
        return sum(1 for watcher in self._all if not watcher.synced)

    def create(
        self,
        key: bytes,
        range_end: bytes,
        start_revision: int,
        *,
        filters: Iterable[int] = (),
        prev_kv: bool = False,
        wake: Callable[[], None],
    ) -> Watcher:
        """Watch keys from a revision on: 0 is "from now", a past one is read from history, a future one waits.

        ``wake`` is called from apply when there is something to poll, at most once until the next poll. It is not
        called for what is there already: poll once after creating. An empty ``key`` means the first possible one.
        """
        watcher = Watcher(self, span(key or b"\0", range_end), start_revision, filters, prev_kv, wake)
        self._all[watcher] = None
        keys = watcher.span
        if not range_end:
            self._by_key.setdefault(keys.low, {})[watcher] = None
        elif self._is_prefix(keys):
            if keys.low not in self._by_prefix:
                self._by_prefix[keys.low] = {}
                self._prefix_lengths[len(keys.low)] = self._prefix_lengths.get(len(keys.low), 0) + 1
            self._by_prefix[keys.low][watcher] = None
        else:
            self._by_range[watcher] = None
        return watcher

    @staticmethod
    def _is_prefix(keys: Span) -> bool:
        return keys.high is not None and prefix_end(keys.low) == keys.high

    def remove(self, watcher: Watcher) -> None:
        """Only by Watcher.cancel."""
        del self._all[watcher]
        keys = watcher.span
        if watcher in self._by_range:
            del self._by_range[watcher]
            return
        exact = self._by_key.get(keys.low)
        if exact is not None and watcher in exact:
            del exact[watcher]
            if not exact:
                del self._by_key[keys.low]
            return
        group = self._by_prefix[keys.low]
        del group[watcher]
        if not group:
            del self._by_prefix[keys.low]
            length = len(keys.low)
            self._prefix_lengths[length] -= 1
            if not self._prefix_lengths[length]:
                del self._prefix_lengths[length]

    def notice(self, revision: int, events: Iterable[mvcc.Event]) -> None:
        """Mark whom a revision concerns. Wakes come with :meth:`flush`, after the whole log entry."""
        if not self._all:
            return
        for event in events:
            key = event.key
            if key in self._by_key:
                self._mark(self._by_key[key], event, revision)
            for length in self._prefix_lengths:
                group = self._by_prefix.get(key[:length])
                if group is not None and len(key) >= length:
                    self._mark(group, event, revision)
            if self._by_range:
                self._mark(self._by_range, event, revision)

    def _mark(self, watchers: Iterable[Watcher], event: mvcc.Event, revision: int) -> None:
        for watcher in watchers:
            if watcher.wants(event) and watcher.notice(revision):
                self._to_wake.append(watcher)

    def message(self, event: mvcc.Event, with_previous: bool) -> kv_pb2.Event:
        """An event as its watchers are sent it, made once for all that read it soon after one another."""
        known = self._messages[with_previous]
        place = event.version.mod_revision, event.version.sub
        message = known.get(place)
        if message is not None:
            return message
        data = (b"\x08\x01" if event.is_delete else b"") + event.version.frame
        if with_previous and event.previous is not None:
            data += b"\x1a" + event.previous.frame[1:]
        message = kv_pb2.Event.FromString(data)
        if len(data) <= _SHARED_BYTES_MAX:
            if len(known) >= _SHARED_EVENTS_MAX:
                known.clear()
            known[place] = message
        return message

    def flush(self) -> None:
        """Wake whom the applied entry concerned."""
        if self._to_wake:
            to_wake, self._to_wake = self._to_wake, []
            for watcher in to_wake:
                if not watcher.cancelled:
                    watcher.wake()

    def restored(self, keyspace: Keyspace) -> None:
        """The state was replaced. Every watcher looks again: at what it missed, or at a compaction."""
        before = self.keyspace.revision
        self.keyspace = keyspace
        for known in self._messages:
            known.clear()
        for watcher in tuple(self._all):
            watcher.rewind(before)
            watcher.wake()
