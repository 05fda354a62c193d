"""Histories made by hand: a perfect run, to be damaged one way at a time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from chaos.records import Event, Header, History, Listing, Mark, Op, Outcome, Row

SECOND = 1_000_000_000
PREFIX = "/chaos/test/"


@dataclass
class Story:
    """Writes one after the other by one writer, each read by a reader at once and seen by the watcher."""

    ops: list[Op] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)
    listings: list[Listing] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    revision: int = 10
    now_ns: int = SECOND
    segment: int = 1

    def __post_init__(self) -> None:
        self.listings.append(Listing("start", 1, self.revision, self.now_ns, []))

    def put(self, *, outcome: Outcome = "ok", applied: bool = True, seen: bool = True) -> Op:
        """One write; 10 ms."""
        number = len(self.ops) + 1
        key, value = f"{PREFIX}{number:04d}", f"value-{number}"
        if applied:
            self.revision += 1
            self.rows[key] = Row(key, value, self.revision, self.revision, 1)
            if seen:
                self.events.append(Event(self.segment, key, value, self.revision, 1, self.now_ns + 5_000_000))
        revision = self.revision if outcome == "ok" else 0
        end_ns = self.now_ns + 5_000_000
        op = Op(number, "w1", "put", "e1", key, self.now_ns, end_ns, outcome, value, revision=revision)
        self.now_ns += 10_000_000
        self.ops.append(op)
        return op

    def get(self, key: str) -> Op:
        """One read; 10 ms."""
        row = self.rows.get(key)
        op = Op(
            len(self.ops) + 1, "r1", "get", "e1", key, self.now_ns, self.now_ns + 5_000_000, "ok",
            row.value if row else None,
            revision=self.revision,
            mod_revision=row.mod_revision if row else 0,
            version=row.version if row else 0,
        )  # fmt: skip
        self.now_ns += 10_000_000
        self.ops.append(op)
        return op

    def http(self, *, attempts_failed: int = 0) -> None:
        """One request; 10 ms."""
        outcome: Outcome = "ok" if attempts_failed < 2 else "fail"
        number, end_ns = len(self.ops) + 1, self.now_ns + 5_000_000
        self.ops.append(
            Op(number, "h1", "http", "vip", "/", self.now_ns, end_ns, outcome, attempts_failed=attempts_failed)
        )
        self.now_ns += 10_000_000

    def steady(self, n: int = 30) -> None:
        """So many writes, each read, and requests."""
        for _ in range(n):
            self.get(self.put().key)
            self.http()

    def mark(self, name: str, act: str = "leader-kill", **detail: object) -> Mark:
        """Something is done now."""
        mark = Mark(act, 1, name, self.now_ns, detail)
        self.marks.append(mark)
        self.now_ns += 1
        return mark

    def snapshot_then(self, lost: int) -> None:
        """A snapshot now, so many more writes, then the loss of everything and a restore 1000 revisions higher."""
        began_ns = self.now_ns
        self.now_ns += 1
        kept, at = dict(self.rows), self.revision
        for _ in range(lost):
            self.put()
        self.rows = kept
        self.revision = at + 1000
        self.mark(
            "restored",
            "disaster",
            snapshot_revision=at,
            revision=self.revision,
            snapshot_began_ns=began_ns,
        )
        self.segment += 1
        self.listings.append(Listing("relist", self.segment, self.revision, self.now_ns, list(self.rows.values())))

    def history(self) -> History:
        """All of it, read back at the end."""
        final = Listing("final", 0, self.revision, self.now_ns, list(self.rows.values()))
        ended = Mark("run", 1, "run-ended", self.now_ns)
        return History(
            Header("test", PREFIX, "2026-01-01T00:00:00.000+00:00", ["e1"]),
            list(self.ops),
            list(self.events),
            [*self.listings, final],
            [*self.marks, ended],
        )


def change_row(history: History, key: str, **changes: object) -> None:
    """Damage the final read-back: one row changed, or gone if nothing is said."""
    final = history.listings[-1]
    rows = [row for row in final.rows if row.key != key]
    if changes:
        rows += [replace(row, **changes) for row in final.rows if row.key == key]  # type: ignore[arg-type]
    history.listings[-1] = replace(final, rows=rows)
