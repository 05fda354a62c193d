"""Who wrote what at which revision: the log of the shared keys, put together from all that was acknowledged or seen.

A write that was acknowledged is in it at the revision it was told. One of unknown outcome is in it where its value was
seen, by a read, a watch or the final read-back: values are unique. What cannot be (two values at one revision of a key,
a value that nobody wrote, one that was refused, one at two revisions) is a problem, by name.

Owns the state of a key at a revision, across restores. Trusts revisions to be what they claim; ``search`` does not.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from chaos.checkers.lineage import Lineage
from chaos.records import KEYED, History, Op, Seen

__all__ = ["Access", "Log", "State", "access", "named"]


@dataclass(frozen=True, slots=True)
class State:
    """A key at some revision. ``value`` is None and the rest 0 if it is not there; ``revision`` is its mod revision."""

    value: str | None
    revision: int
    create_revision: int
    version: int


_ABSENT: Final = State(None, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Access:
    """What one answered operation did: the keys it saw, the keys it wrote (None: deleted), in this order."""

    reads: Sequence[tuple[str, Seen | None]]
    writes: Mapping[str, str | None]


def access(op: Op) -> Access:
    """The access of an operation whose outcome is ok."""
    if op.kind == "get":
        seen = None if op.value is None else (op.value, op.create_revision, op.mod_revision, op.version)
        return Access([(op.key, seen)], {})
    if op.kind == "put":
        return Access([], {op.key: op.value or ""})
    if op.kind == "delete":
        return Access([(op.key, None)], {}) if op.succeeded is False else Access([], {op.key: None})
    reads: list[tuple[str, Seen | None]] = []
    writes: dict[str, str | None] = {}
    steps = op.then if op.succeeded else op.otherwise
    results = op.results if len(op.results) == len(steps) else [None] * len(steps)
    for step, result in zip(steps, results, strict=True):
        if step[0] == "put":
            writes[step[1]] = step[2]
        elif step[0] == "delete":
            writes[step[1]] = None
        elif op.results and step[1] not in writes:
            reads.append((step[1], result))
    return Access(reads, writes)


def might_write(op: Op) -> Iterator[tuple[str, str | None]]:
    """Everything an operation of unknown outcome may have written."""
    if op.kind == "put":
        yield op.key, op.value or ""
    elif op.kind == "delete":
        yield op.key, None
    for step in (*op.then, *op.otherwise):
        if step[0] == "put":
            yield step[1], step[2]
        elif step[0] == "delete":
            yield step[1], None


class Log:
    """The log of all keys that are not written once each (parts other than ``kv``)."""

    def __init__(self, history: History, lineage: Lineage) -> None:
        self.history = history
        self.lineage = lineage
        self.ops = [op for op in history.ops if op.part != "kv" and op.kind in KEYED]
        self.answered = [op for op in self.ops if op.outcome == "ok"]
        self.accesses = {op.id: access(op) for op in self.answered}
        #: What contradicts itself, as text.
        self.problems: list[str] = []
        self.sightings = 0
        self._entries: defaultdict[str, dict[int, str | None]] = defaultdict(dict)
        self._open: defaultdict[str, list[Op]] = defaultdict(list)
        self._leased: set[str] = set()
        self._found: dict[int, tuple[Op, int]] = {}
        self._chains: dict[tuple[str, int], tuple[list[int], list[State]]] = {}
        #: Life -> the revision that a watch of everything from the beginning had come to.
        self._watched_until = self._coverage()
        self._ended = any(listing.reason == "shared" for listing in history.listings)
        self._collect()
        self._attribute()

    @property
    def keys(self) -> Iterable[str]:
        """Every key that was ever there."""
        return self._entries.keys()

    def changes(self, key: str) -> Mapping[int, str | None]:
        """Revision -> value, or None where it was deleted."""
        return self._entries.get(key, {})

    def state(self, key: str, revision: int) -> State:
        """The key at that revision."""
        revisions, states = self._chain(key, self.lineage.life(revision))
        at = bisect_right(revisions, revision)
        return states[at - 1] if at else _ABSENT

    def before(self, key: str, revision: int) -> State:
        """The key just before that revision."""
        revisions, states = self._chain(key, self.lineage.life(revision))
        at = bisect_right(revisions, revision - 1)
        return states[at - 1] if at else _ABSENT

    def changed(self, op: Op) -> bool:
        """Whether the operation, answered or found, changed anything: a delete of nothing did not, and has the
        revision of what was before it."""
        if op.outcome != "ok":
            return True
        writes = self.accesses[op.id].writes.items()
        return any(value is not None or self.before(key, op.revision).value is not None for key, value in writes)

    def certain(self, key: str, revision: int) -> bool:
        """Whether everything that happened to the key until then is known: someone who watched everything was told so
        far, or nothing of unknown outcome is left unseen, and no lease can have deleted it. Of a life that ended in a
        loss, what came last may never have been told."""
        if revision <= self._watched_until.get(self.lineage.life(revision), 0):
            return True
        return not self._open.get(key) and key not in self._leased

    def found(self) -> Iterable[tuple[Op, int]]:
        """Operations of unknown outcome that did happen, and where."""
        return self._found.values()

    def _chain(self, key: str, life: int) -> tuple[list[int], list[State]]:
        found = self._chains.get((key, life))
        if found is not None:
            return found
        restores = self.lineage.restores[:life]
        revisions: list[int] = []
        states: list[State] = []
        now = _ABSENT
        for revision, value in sorted(self._entries.get(key, {}).items()):
            if self.lineage.life(revision) > life or any(r.snapshot_revision < revision < r.revision for r in restores):
                continue
            if value is None:
                if now.value is None:
                    continue  # deleting nothing changes nothing
                now = _ABSENT
            else:
                created = now.create_revision if now.value is not None else revision
                now = State(value, revision, created, now.version + 1)
            revisions.append(revision)
            states.append(now)
        self._chains[key, life] = revisions, states
        return revisions, states

    # -- putting it together -------------------------------------------------------------------------------------

    def _coverage(self) -> dict[int, int]:
        """How far the watches of everything came. One that was refused because of a compaction has missed something,
        unless it began anew after a restore."""
        until: dict[int, int] = {}
        wide = {told.watch for told in self.history.told if told.created and not told.brief and not told.single}
        for told in self.history.told:
            if told.canceled and self.lineage.life(told.compact_revision) in until:
                wide.discard(told.watch)
            if told.watch in wide:
                seen = [change.mod_revision for change in told.changes]
                for revision in [*seen, *([told.revision] if told.progress else [])]:
                    life = self.lineage.life(revision)
                    until[life] = max(until.get(life, 0), revision)
        finals = [listing.revision for listing in self.history.listings if listing.reason == "shared"]
        for revision in finals:
            if until and wide:
                until[self.lineage.life(revision)] = revision  # a watch that did not come so far fails by itself
        return until

    def _collect(self) -> None:
        for op in self.ops:
            if op.lease:
                self._leased.add(op.key)
            self._leased |= {step[1] for step in op.then if len(step) > 3}
            if op.outcome == "ok" and op.revision:
                for key, value in self.accesses[op.id].writes.items():
                    self._enter(key, op.revision, value, named(op))
        for op in self.answered:
            for key, seen in self.accesses[op.id].reads:
                if seen is not None and seen[2]:
                    self._enter(key, seen[2], seen[0], named(op))
        for told in self.history.told:
            for change in told.changes:
                where = f"watch {told.watch}, told of revision {change.mod_revision},"
                self._enter(change.key, change.mod_revision, change.value, where)
        for listing in self.history.listings:
            if listing.reason == "shared":
                for row in listing.rows:
                    self._enter(row.key, row.mod_revision, row.value, "the final read-back")

    def _enter(self, key: str, revision: int, value: str | None, where: str) -> None:
        self.sightings += 1
        entries = self._entries[key]
        if revision not in entries:
            entries[revision] = value
        elif entries[revision] != value:
            self.problems.append(
                f"{where} says {key} became {_said(value)} at revision {revision}; elsewhere it became "
                f"{_said(entries[revision])}"
            )

    def _attribute(self) -> None:
        """Every value in the log has an operation that wrote it, and is there once in a life of the cluster."""
        told: defaultdict[tuple[str, str | None], set[int]] = defaultdict(set)
        writers: defaultdict[tuple[str, str | None], list[Op]] = defaultdict(list)
        refused: dict[tuple[str, str | None], Op] = {}
        for op in self.ops:
            written = self.accesses[op.id].writes if op.outcome == "ok" else {}
            for key, value in might_write(op):
                if op.outcome == "info":
                    writers[key, value].append(op)
                elif key in written and written[key] == value:
                    writers[key, value].append(op)
                    told[key, value].add(op.revision)
                else:
                    refused[key, value] = op
        for key, entries in self._entries.items():
            places: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
            for revision, value in entries.items():
                by = writers[key, value]
                if revision in told[key, value] or (value is None and key in self._leased):
                    continue
                if not by and not self._ended:
                    continue  # of a run that was killed, what was under way then is not recorded
                if not by:
                    why = f"{named(refused[key, value])} was refused" if (key, value) in refused else "nobody did that"
                    self.problems.append(f"{key} became {_said(value)} at revision {revision}, and {why}")
                elif len(by) == 1 and by[0].outcome == "ok":
                    self.problems.append(
                        f"{key} became {_said(value)} at revision {revision}; {named(by[0])} was told {by[0].revision}"
                    )
                elif len(by) == 1 and value is not None:
                    self._found[by[0].id] = by[0], revision
                    places[value, self.lineage.life(revision)].append(revision)
            for (value, _), revisions in places.items():
                if len(revisions) > 1:
                    self.problems.append(f"{key} became {value!r} {len(revisions)} times: at revisions {revisions}")
        for op in self.ops:
            if op.outcome == "info" and op.id not in self._found:
                for key, _ in might_write(op):
                    self._open[key].append(op)


def named(op: Op) -> str:
    """An operation, in a violation."""
    return f"{op.kind} #{op.id} of {op.process} ({op.key})"


def _said(value: str | None) -> str:
    return "deleted" if value is None else repr(value)
