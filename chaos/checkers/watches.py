"""What every watch promises: etcd's six properties, and what an event says of its key.

- ordered: revisions only go up, within a response and over responses;
- unique: no event comes twice, over resumed watches too;
- reliable: nothing is missing between the first revision asked for and the last told;
- atomic: the events of one revision come in one response;
- resumable: a watch from a later revision goes on there, or is told of a compaction that reached it;
- bookmarkable: after progress to revision R no event up to R comes.

What happened is the log: what was acknowledged, and what any other watch was told.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from chaos.checkers.log import Log
from chaos.findings import Finding, judge
from chaos.records import Change, Told

__all__ = ["check_watches"]

_ANY_REVISION: Final = 1 << 63


def check_watches(log: Log) -> list[Finding]:
    """Nothing if nobody watched shared keys."""
    if not log.history.told:
        return []
    segments: defaultdict[tuple[str, int], list[Told]] = defaultdict(list)
    for told in log.history.told:
        segments[told.watch, told.segment].append(told)
    watches = _Watches(log, [_Segment(responses) for _, responses in sorted(segments.items())])
    return [
        watches.ordered(),
        watches.unique(),
        watches.reliable(),
        watches.atomic(),
        watches.resumable(),
        watches.bookmarkable(),
        watches.truthful(),
    ]


class _Segment:
    """One watch, from its creation to its end."""

    def __init__(self, responses: Sequence[Told]) -> None:
        self.responses = responses
        first = responses[0]
        self.name = f"watch {first.watch}.{first.segment}"
        self.watch = first.watch
        self.prefix = first.prefix
        self.single = first.single
        self.brief = first.brief
        self.prev_kv = first.prev_kv
        self.created = first.created
        #: First revision asked for; of a watch from now on, what comes after its creation.
        self.start = first.start_revision or first.revision + 1
        self.changes = [change for told in responses for change in told.changes]
        self.refused_at = next((told.compact_revision for told in responses if told.canceled), 0)

    @property
    def until(self) -> int:
        """The revision up to which everything must have come."""
        promised = [told.revision for told in self.responses if told.progress]
        return max([*(change.mod_revision for change in self.changes), *promised], default=self.start - 1)


class _Watches:
    """All watches of shared keys, and the log."""

    def __init__(self, log: Log, segments: Sequence[_Segment]) -> None:
        self._log = log
        self._segments = segments
        by_revision: list[tuple[int, str, str | None]] = []
        for key in log.keys:
            for revision, value in log.changes(key).items():
                if value is not None or log.before(key, revision).value is not None:
                    by_revision.append((revision, key, value))
        self._happened = sorted(by_revision, key=lambda item: item[0])
        self._revisions = [revision for revision, _, _ in self._happened]
        self._final = max((one.revision for one in log.history.listings if one.reason == "shared"), default=0)
        last = {segment.watch: segment for segment in segments}
        self._to_the_end = {segment.name for segment in last.values() if not segment.refused_at and not segment.brief}
        asked_for = (op.asked for op in log.history.ops if op.kind == "compact" and op.outcome != "fail")
        self._compacted = max(asked_for, default=0)
        if any(mark.name == "fault" and mark.detail.get("fault") == "compact" for mark in log.history.marks):
            self._compacted = _ANY_REVISION  # the experiment compacted too, and only the store knows how far
        self._events = sum(len(segment.changes) for segment in segments)

    def ordered(self) -> Finding:
        broken = []
        for segment in self._segments:
            last = 0
            for change in segment.changes:
                if change.mod_revision < last:
                    broken.append(f"{segment.name}: {_said(change)} came after revision {last}")
                last = max(last, change.mod_revision)
        return judge("watches: ordered", self._events, broken)

    def unique(self) -> Finding:
        broken = []
        seen: set[tuple[str, str, int]] = set()
        for segment in self._segments:
            for change in segment.changes:
                event = (segment.watch, change.key, change.mod_revision)
                if event in seen:
                    broken.append(f"{segment.name}: {_said(change)} came twice")
                seen.add(event)
        return judge("watches: unique", self._events, broken)

    def reliable(self) -> Finding:
        checked = 0
        broken = []
        for segment in self._segments:
            if not segment.created:
                continue
            until = segment.until
            if segment.name in self._to_the_end:
                until = max(until, self._final)
            told = {(change.key, change.mod_revision) for change in segment.changes}
            for n in range(bisect_left(self._revisions, segment.start), bisect_right(self._revisions, until)):
                revision, key, value = self._happened[n]
                mine = key == segment.prefix if segment.single else key.startswith(segment.prefix)
                if not mine or not self._log.lineage.holds(until, revision):
                    continue
                checked += 1
                if (key, revision) not in told:
                    what = "deleted" if value is None else f"set to {value!r}"
                    broken.append(f"{segment.name}: never told of {key}, {what} at revision {revision}")
        return judge("watches: reliable, nothing missing", checked, broken)

    def atomic(self) -> Finding:
        broken = []
        for segment in self._segments:
            told_before: set[int] = set()
            for told in segment.responses:
                now = {change.mod_revision for change in told.changes}
                twice = sorted(now & told_before)
                broken += [f"{segment.name}: revision {revision} came in two responses" for revision in twice]
                told_before |= now
        return judge("watches: atomic, a revision in one response", self._events, broken)

    def resumable(self) -> Finding:
        """A watch starts where it was asked to, or says why not."""
        checked = 0
        broken = []
        asked_for = max([self._compacted, *(restore.revision for restore in self._log.lineage.restores)])
        for segment in self._segments:
            checked += 1
            early = [change for change in segment.changes if change.mod_revision < segment.start]
            broken += [f"{segment.name}, asked from revision {segment.start}: told of {_said(c)}" for c in early]
            compacted = segment.refused_at
            if not compacted:
                continue
            last = max([segment.start, *(change.mod_revision + 1 for change in segment.changes)])
            if compacted <= last:
                broken.append(
                    f"{segment.name}: refused at revision {last} because of a compaction at {compacted}, which does "
                    "not reach it"
                )
            elif compacted > asked_for:
                broken.append(f"{segment.name}: told of a compaction at {compacted}, and nobody asked for that much")
        return judge("watches: resumable", checked, broken)

    def bookmarkable(self) -> Finding:
        checked = 0
        broken = []
        for segment in self._segments:
            promised = 0
            for told in segment.responses:
                if late := [change for change in told.changes if change.mod_revision <= promised]:
                    broken.append(f"{segment.name}: {_said(late[0])} came after progress to revision {promised}")
                if told.progress:
                    checked += 1
                    promised = max(promised, told.revision)
        return judge("watches: bookmarkable", checked, broken, at_least=0)

    def truthful(self) -> Finding:
        """An event says how often its key was written, when it was created, and what it was before."""
        checked = 0
        broken = []
        for segment in self._segments:
            for change in segment.changes:
                if not self._log.certain(change.key, change.mod_revision):
                    continue
                checked += 1
                now = self._log.state(change.key, change.mod_revision)
                was = self._log.before(change.key, change.mod_revision)
                if change.value is not None and now.revision == change.mod_revision:
                    said = (change.version, change.create_revision)
                    if said != (now.version, now.create_revision):
                        broken.append(
                            f"{segment.name}: {_said(change)} at version {change.version}, created at "
                            f"{change.create_revision}; it was {now.version} and {now.create_revision}"
                        )
                if not segment.prev_kv or (change.was is None and was.revision <= self._compacted):
                    continue  # as in etcd, what a compaction has reached is not told
                if (change.was, change.was_revision) != (was.value, was.revision):
                    broken.append(
                        f"{segment.name}: {_said(change)} said that it was {change.was!r} of revision "
                        f"{change.was_revision}; it was {was.value!r} of {was.revision}"
                    )
        return judge("watches: events tell what was before", checked, broken)


def _said(change: Change) -> str:
    return f"the event of {change.key} at revision {change.mod_revision}"
