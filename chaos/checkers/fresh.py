"""The rules for keys that are written once each, and for the one watch over all of them.

The load (part ``kv``) gives every write its own key and value, so what a reply or an event says can be traced to one
operation, and every reply carries the store's revision. Rules over revisions cost O(n log n), where a search for a
linearization would explode; what they trust is that revisions are what they claim, which rules 3 and 4 test from
outside: by real time, and by what reads, events and the final read-back show at each revision.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from chaos.checkers.lineage import Lineage
from chaos.findings import Finding, judge
from chaos.records import Event, History, Listing, Op

__all__ = ["check_fresh"]


def check_fresh(history: History, lineage: Lineage) -> list[Finding]:
    """Every rule, in the order to show them."""
    book = _Book(history, lineage)
    return [
        started_empty(history),
        nothing_lost(book),
        recovery_point(book),
        applied_once(book),
        failures_absent(book),
        real_time_order(book),
        reads_current(book),
        watch_ordered(book),
        watch_complete(book),
        watch_told_to_relist(book),
    ]


class _Book:
    """A history with its writes found by key, and everything that was seen of each key."""

    def __init__(self, history: History, lineage: Lineage) -> None:
        self.history = history
        self.lineage = lineage
        mine = [op for op in history.ops if op.part == "kv"]
        self.puts = [op for op in mine if op.kind == "put"]
        self.gets = [op for op in mine if op.kind == "get" and op.outcome == "ok"]
        self.by_key = {op.key: op for op in self.puts}
        self.acked = [op for op in self.puts if op.outcome == "ok"]
        self.listings = [listing for listing in history.listings if listing.reason != "shared"]
        self.final = next((listing for listing in reversed(self.listings) if listing.reason == "final"), None)

    def sightings(self) -> Iterator[tuple[str, str, str | None, int, int]]:
        """Everything seen of any key: (where, key, value, mod revision, version)."""
        for op in self.gets:
            if op.value is not None:
                yield _named(op), op.key, op.value, op.mod_revision, op.version
        for event in self.history.events:
            yield f"watch event at revision {event.revision}", event.key, event.value, event.revision, event.version
        for listing in self.listings:
            for row in listing.rows:
                yield _called(listing), row.key, row.value, row.mod_revision, row.version


def started_empty(history: History) -> Finding:
    """The harness's own assumption: nobody else writes here, and nothing was here before."""
    starts = [listing for listing in history.listings if listing.reason == "start"]
    broken = [f"{row.key} was there before the run" for listing in starts for row in listing.rows]
    return judge("the prefix was empty at the start", len(starts), broken)


def nothing_lost(book: _Book) -> Finding:
    """Every acknowledged write is in the final read-back, with its value and at the revision it was acknowledged at;
    likewise in every listing on the way. What a restore gave up is counted in the note, not here."""
    broken: list[str] = []
    for listing in book.listings:
        rows = {row.key: row for row in listing.rows}
        for op in book.acked:
            if not book.lineage.holds(listing.revision, op.revision):
                continue
            row = rows.get(op.key)
            if row is None:
                # A listing on the way may be older than the write; holds() has decided that this one is not.
                broken.append(f"{_named(op)} is not in the {_called(listing)}")
            elif (row.value, row.mod_revision) != (op.value, op.revision):
                broken.append(
                    f"{_named(op)} reads back as {row.value!r} at revision {row.mod_revision} in the {_called(listing)}"
                )
    if book.final is None:
        return judge("no acknowledged write lost", 0, broken, note="no final read-back")
    kept = sum(1 for op in book.acked if book.lineage.holds(book.final.revision, op.revision))
    given_up = len(book.acked) - kept
    note = f"{given_up} more were acknowledged after a recovery point" if given_up else ""
    early = [op for op in book.acked if op.revision > book.final.revision]
    broken += [f"{_named(op)} is newer than the {_called(book.final)}" for op in early]
    return judge("no acknowledged write lost", kept, broken, note=note)


def recovery_point(book: _Book) -> Finding:
    """Everything acknowledged before a snapshot was asked for is in that snapshot."""
    checked = 0
    broken = []
    for restore in book.lineage.restores:
        for op in book.acked:
            if op.return_ns < restore.snapshot_began_ns:
                checked += 1
                if op.revision > restore.snapshot_revision:
                    broken.append(f"{_named(op)} came before the snapshot of revision {restore.snapshot_revision}")
    wanted = 1 if book.lineage.restores else 0
    return judge("the snapshot holds every write before it", checked, broken, at_least=wanted)


def applied_once(book: _Book) -> Finding:
    """No write happened twice, and nothing was seen that nobody wrote. Retries carry the same request id, so a key
    written once is at version 1 for ever, at one revision within one life of the cluster."""
    checked = 0
    broken: list[str] = []
    lives: dict[tuple[str, int], int] = {}
    for where, key, value, mod_revision, version in book.sightings():
        checked += 1
        op = book.by_key.get(key)
        if op is None and book.final is None:
            continue  # of a run that was killed, what was under way then is not recorded
        if op is None:
            broken.append(f"{where} shows {key}, which nobody wrote")
            continue
        if value != op.value:
            broken.append(f"{where} shows {key} = {value!r}; {_named(op)} wrote {op.value!r}")
        if version != 1:
            broken.append(f"{where} shows {key} at version {version}: {_named(op)} was applied {version} times")
        life = (key, book.lineage.life(mod_revision))
        if lives.setdefault(life, mod_revision) != mod_revision:
            broken.append(f"{where} shows {key} at revision {mod_revision}, elsewhere it was at {lives[life]}")
        if (
            op.outcome == "ok"
            and mod_revision != op.revision
            and book.lineage.life(op.revision) <= book.lineage.life(mod_revision)
        ):
            broken.append(f"{where} shows {key} at revision {mod_revision}; {_named(op)} was told {op.revision}")
    return judge("every write applied at most once", checked, broken)


def failures_absent(book: _Book) -> Finding:
    """A write that was refused for certain is nowhere to be seen."""
    failed = {op.key: op for op in book.puts if op.outcome == "fail"}
    broken = [f"{where} shows {_named(failed[key])}" for where, key, *_ in book.sightings() if key in failed]
    return judge("a refused write has no effect", len(failed), broken, at_least=0)


def real_time_order(book: _Book) -> Finding:
    """If a returned before b was called, a's revision is not after b's, and is before it if b is a write."""
    placed = [*book.acked, *book.gets]
    seen = {row.key: row.mod_revision for row in book.final.rows} if book.final else {}
    calls = sorted(placed, key=lambda op: op.call_ns)
    returns = sorted(placed, key=lambda op: op.return_ns)
    # A write of unknown fate that turned out to have happened must fit as well; nobody was told, so it orders nothing.
    calls += [op for op in book.puts if op.outcome == "info" and op.key in seen]
    calls.sort(key=lambda op: op.call_ns)
    broken: list[str] = []
    newest: Op | None = None
    returned = 0
    for op in calls:
        while returned < len(returns) and returns[returned].return_ns < op.call_ns:
            candidate = returns[returned]
            if newest is None or candidate.revision > newest.revision:
                newest = candidate
            returned += 1
        if newest is None:
            continue
        revision = op.revision if op.outcome == "ok" else seen[op.key]
        if revision < newest.revision or (revision == newest.revision and op.kind == "put"):
            broken.append(f"{_named(op)} at revision {revision} began after {_named(newest)} had returned")
    return judge("revisions follow real time", len(calls), broken, at_least=2)


def reads_current(book: _Book) -> Finding:
    """A read equals the state at the revision in its header: everything written until then, and nothing after."""
    broken: list[str] = []
    known = {op.key: op.revision for op in book.acked}
    for _, key, _, mod_revision, _ in book.sightings():
        known.setdefault(key, mod_revision)
    for op in book.gets:
        if op.value is not None:
            if not book.lineage.holds(op.revision, op.mod_revision):
                broken.append(f"{_named(op)} shows revision {op.mod_revision}, outside the state it claims")
        elif op.key in known and book.lineage.holds(op.revision, known[op.key]):
            broken.append(f"{_named(op)} shows nothing, though it was written at revision {known[op.key]}")
    return judge("reads show the state of their revision", len(book.gets), broken)


def watch_ordered(book: _Book) -> Finding:
    """Revisions only go up within a segment, each event comes once, and none is older than the segment's listing."""
    broken: list[str] = []
    places = {listing.segment: listing.revision for listing in book.listings if listing.reason != "final"}
    last: dict[int, int] = {}
    for event in book.history.events:
        if event.segment not in places:
            broken.append(f"{_told(event)} belongs to no listing")
            continue
        before = last.get(event.segment, places[event.segment])
        # Every write here is a revision of its own, so an event at the last revision again is that event again.
        if event.revision == before:
            broken.append(f"{_told(event)} came twice")
        elif event.revision < before:
            broken.append(f"{_told(event)} came after revision {before}")
        last[event.segment] = max(before, event.revision)
    return judge("watch events in order, each once", len(book.history.events), broken)


def watch_complete(book: _Book) -> Finding:
    """None is missing: after its listing a segment shows everything up to its end, which for the last segment is the
    final read-back, for one before it the last event that came (the listing that follows has the rest)."""
    events: defaultdict[int, list[Event]] = defaultdict(list)
    for event in book.history.events:
        events[event.segment].append(event)
    listings = [listing for listing in book.listings if listing.reason != "final"]
    written = {op.key: op.revision for op in book.acked}
    for row in book.final.rows if book.final else ():
        written[row.key] = row.mod_revision
    checked = 0
    broken: list[str] = []
    for number, listing in enumerate(listings):
        mine = events[listing.segment]
        shown = {(event.key, event.revision) for event in mine}
        last = mine[-1].revision if mine else listing.revision
        if number == len(listings) - 1 and book.final is not None:
            last = book.final.revision
        for key, revision in written.items():
            if listing.revision < revision <= last:
                checked += 1
                if (key, revision) not in shown:
                    broken.append(f"{key}, written at revision {revision}, never came on segment {listing.segment}")
    return judge("no watch event missing", checked, broken)


def watch_told_to_relist(book: _Book) -> Finding:
    """After a restore a watcher of the lost cluster does not just go on: it is told to list again, exactly then."""
    relists = [listing for listing in book.history.listings if listing.reason == "relist"]
    broken = []
    for restore in book.lineage.restores:
        crossed = [
            event
            for event in book.history.events
            if event.revision >= restore.revision
            and not any(r.segment == event.segment and r.revision >= restore.revision for r in relists)
        ]
        broken += [f"{_told(event)} crossed a restore without a new listing" for event in crossed]
        watched = any(listing.reason == "start" for listing in book.listings)
        if watched and not any(listing.revision >= restore.revision for listing in relists):
            broken.append(f"nobody told the watcher of the restore to revision {restore.revision}")
    compacted = any(op.kind == "compact" and op.outcome != "fail" for op in book.history.ops)
    for listing in relists:
        # One that was far behind may also be told so by a compaction; the rules of watches judge that.
        if not compacted and not any(listing.revision >= restore.revision for restore in book.lineage.restores):
            broken.append(f"told to list again at revision {listing.revision}, without a restore")
    return judge("watchers list again after a restore, only then", len(relists), broken, at_least=0)


def _named(op: Op) -> str:
    return f"{op.kind} #{op.id} of {op.process} ({op.key})"


def _called(listing: Listing) -> str:
    names = {"start": "first listing", "relist": "listing after a re-list"}
    return f"{names.get(listing.reason, 'final read-back')} at revision {listing.revision}"


def _told(event: Event) -> str:
    return f"the event of {event.key} at revision {event.revision}"
